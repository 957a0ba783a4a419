"""Three hundred cells under a SIGKILL every few seconds; and that the soak would notice a leak or a lost byte.

python -m pytest tests/faults/test_soak.py -m slow
"""

from __future__ import annotations

import pytest

from tests.faults.soak import ARMS, Life, Soaked, soak, write_suite


def life(seconds: int, mib_a_minute: float = 0.0, handles_a_minute: float = 0.0) -> Life:
    """A process that loads its libraries for half a minute and then grows, or does not."""
    found = Life()
    for second in range(seconds):
        warm = max(0, second - 30) / 60
        found.seconds.append(float(second))
        found.rss.append(int((min(second, 30) * 10 + 100 + warm * mib_a_minute + second % 3) * 2**20))
        found.handles.append(int(20 + warm * handles_a_minute + second % 2))
    return found


def test_what_is_only_loaded_is_no_leak():
    assert Soaked(1, lives=[life(240)]).problems() == []
    assert life(60).slopes() is None, "too short a life says nothing"


@pytest.mark.parametrize(
    ("grows", "told"), [({"mib_a_minute": 8}, "memory grew"), ({"handles_a_minute": 3}, "handles")]
)
def test_a_leak_is_seen(grows, told):
    (problem,) = Soaked(1, lives=[life(240), life(240, **grows)]).problems()
    assert told in problem


def test_a_lost_byte_and_a_process_left_over_are_said():
    found = Soaked(2, files=10, entries=4, different=["cells/ab/x"], left_over=["python -m kdbench.run.worker"])
    assert len(found.problems()) == 2 and "9 of 10 files" in str(found)


def test_the_suite_of_a_soak_has_the_cells_that_were_asked_for(tmp_path):
    from kdbench.suite import loader, matrix
    from kdbench.suite.schema import Suite

    suite = loader.validate(Suite, loader.parse(write_suite(tmp_path, 300)))
    assert len(list(matrix.cells(suite))) == 300 + 1 and ARMS * len(suite.seeds) == 300


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.fault("A1", "SIGKILLs at random, of workers and of whole runs, until 300 cells are done")
@pytest.mark.fault("F5", "300 cells in one store: memory and handles of the run flat, no process left over")
def test_three_hundred_cells_under_random_kills_end_as_if_nothing_had_happened(tmp_path, record_property):
    found = soak(tmp_path, cells=300, kill_every_s=8.0, limit_s=2600)
    print(found)
    record_property("tried", found.workers_killed + found.parents_killed)
    assert found.problems() == [] and found.cells == 301
    assert found.workers_killed >= 10 and found.slopes, "it was over before anything could be seen"
