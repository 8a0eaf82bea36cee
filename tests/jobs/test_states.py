from jobs.states import TRANSITIONS, JobState, source_states


def test_ended_jobs_never_move():
    assert {state for state in JobState if state.terminal} == {
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.CANCELED,
        JobState.EXPIRED,
    }


def test_these_are_the_moves():
    moves = {(source.value, target.value) for source, targets in TRANSITIONS.items() for target in targets}
    assert moves == {
        ("queued", "running"), ("queued", "canceled"), ("queued", "expired"),
        ("running", "succeeded"), ("running", "failed"), ("running", "canceled"), ("running", "queued"),
    }  # fmt: skip


def test_sources_are_the_moves_backwards():
    assert source_states(JobState.CANCELED) == [JobState.QUEUED, JobState.RUNNING]
    assert source_states(JobState.QUEUED) == [JobState.RUNNING]
