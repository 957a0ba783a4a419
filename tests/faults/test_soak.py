"""Three hundred cells under a SIGKILL every few seconds; and that the soak would notice a leak or a lost byte.

python -m pytest tests/faults/test_soak.py -m slow
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys

import pytest

from kdbench.files import read_json, sha256_file, write_json
from kdbench.run.store import FORMAT, Store
from kdbench.run.workers import Worker
from tests.faults.soak import (
    ARMS,
    PARENT_SHARE,
    Life,
    Soaked,
    compare,
    kill_something,
    soak,
    workers_of,
    write_suite,
)
from tests.fixtures import unpack


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


def test_a_leak_of_a_worker_is_seen():
    (problem,) = Soaked(1, workers=[life(240), life(240, mib_a_minute=20)]).problems()
    assert "a worker's memory grew" in problem


def test_a_lost_byte_and_a_process_left_over_are_said():
    found = Soaked(2, files=10, entries=4, different=["cells/ab/x"], left_over=["python -m kdbench.run.worker"])
    assert len(found.problems()) == 2 and "9 of 10 files" in str(found)


def test_the_suite_of_a_soak_has_the_cells_that_were_asked_for(tmp_path):
    from kdbench.suite import loader, matrix
    from kdbench.suite.schema import Suite

    suite = loader.validate(Suite, loader.parse(write_suite(tmp_path, 300)))
    assert len(list(matrix.cells(suite))) == 300 + 1 and ARMS * len(suite.seeds) == 300


@pytest.fixture
def twice(tmp_path):
    """Two stores with the same entries."""
    return unpack(FORMAT, tmp_path / "a"), unpack(FORMAT, tmp_path / "b")


def test_equal_stores_are_equal_down_to_each_file(twice):
    found = Soaked(0)
    compare(found, *twice)
    assert found.different == [] and found.cells == 7 and found.files > found.entries > found.cells


def test_another_byte_and_a_missing_entry_are_named(twice):
    one, other = twice
    path = next(one.glob("cells/*/samples.parquet"))
    path.write_bytes(path.read_bytes() + b"x")
    done = read_json(path.parent / "DONE.json")
    done["files"]["samples.parquet"] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    write_json(path.parent / "DONE.json", done)
    gone = next(one.glob("tasks/[!.]*"))
    shutil.rmtree(gone)
    found = Soaked(0)
    compare(found, one, other)
    assert f"cells/{path.parent.name}/samples.parquet" in found.different
    assert {name.split("/")[0] for name in found.different} == {"cells", "tasks"}


def test_a_kill_hits_a_worker_of_this_store_and_no_other(tmp_path):
    workers = [Worker(0, Store(tmp_path / name), 1, ()) for name in ("mine", "other")]
    try:
        (victim,) = workers_of(tmp_path / "mine")
        assert victim.pid == workers[0].process.pid
        found = Soaked(1)
        kill_something(None, tmp_path / "mine", random.Random(1), found)  # its first number is above PARENT_SHARE
        assert workers[0].process.wait(10) == -signal.SIGKILL and found.workers_killed == 1
        assert workers[1].process.poll() is None and workers_of(tmp_path / "mine") == []
    finally:
        for worker in workers:
            worker.end(kill=True)


def test_a_run_that_is_killed_is_waited_for_and_its_workers_must_go(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom kdbench.run.store import Store\n"
        "from kdbench.run.workers import Worker\nWorker(0, Store(Path(sys.argv[1])), 1, ())\n"
        "print('started', flush=True)\ntime.sleep(100)"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "started\n" and len(workers_of(tmp_path)) == 1
    found, rng = Soaked(1), random.Random(0)
    while rng.random() >= PARENT_SHARE / 2:
        state = rng.getstate()
    rng.setstate(state)
    kill_something(run, tmp_path, rng, found)
    assert run.returncode == -signal.SIGKILL and found.parents_killed == 1
    assert found.left_over == [] and workers_of(tmp_path) == []
    run.stdout.close()


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.fault("A1", "SIGKILLs at random, of workers and of whole runs, until 300 cells are done")
@pytest.mark.fault("F5", "300 cells in one store: memory and handles of run and workers flat, no process left over")
def test_three_hundred_cells_under_random_kills_end_as_if_nothing_had_happened(tmp_path, record_property):
    found = soak(tmp_path, cells=300, kill_every_s=5.0, limit_s=2600)
    print(found)
    record_property("tried", found.workers_killed + found.parents_killed)
    assert found.problems() == [] and found.cells == 301
    assert found.workers_killed >= 30 and found.parents_killed, "it was over before anything could be seen"
    assert found.slopes and found.worker_slopes, "no process lived long enough"
