"""Two lanes in one order: what a batch sends runs after everything that somebody waits for."""

BATCH_OFFSET = -1000  # added to the priority (-100 to 100) of a batch's jobs
LANE = -500  # below it lies the batches' lane
LOWEST = -2000


def lane_floor(priority: int) -> int:
    """The lowest priority of the lane that a job is in."""
    return LOWEST if priority < LANE else LANE
