from jobs.states import MOVES, JobState, sources


def test_ended_jobs_never_move():
    assert {state for state in JobState if state.terminal} == {
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.CANCELED,
        JobState.EXPIRED,
    }


def test_every_state_has_its_moves_and_every_move_its_source():
    assert set(MOVES) == set(JobState)
    assert {(source, target) for target in JobState for source in sources(target)} == {
        (source, target) for source, targets in MOVES.items() for target in targets
    }
