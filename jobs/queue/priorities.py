"""Two lanes in one order: the jobs of batches run after all jobs that were sent one by one."""

BATCH_OFFSET = -1000  # added to the priority (-100 to 100) of a batch's jobs
LANE = -500  # priorities below it are the batch lane
LOWEST = -2000


def lane_floor(priority: int) -> int:
    """Return the lowest priority of the lane that a priority belongs to."""
    return LOWEST if priority < LANE else LANE
