"""SQLite's method: fail at the N-th moment, for every N, until none is left; then go on, and end with the same bytes.

python -m pytest tests/faults/test_every_crash.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest

from kdbench import failpoints
from kdbench.errors import StoreError
from kdbench.run.store import KINDS, Store
from tests.faults.house import files_of, link_tree, make, plan

JOBS = ("tokenizers", "texts", "tasks", "model big", "model small · seed 0", "teacher_cache", "floor")
CELLS = ("kl", "replay", "written", "taid")
STRIDE = 15  # at every commit one moment in so many of a cell; at night all


def states(store: Store) -> dict[str, str]:
    """Return the state of every entry of a store."""
    found = {}
    for kind in KINDS:
        for path in (store.root / kind).glob("[!.]*"):
            found[f"{kind}/{path.name}"] = store.entry(kind, path.name).state()
    return found


def crash_at_every_moment(store, job, expected, first=1, stride=1, name="any", action="crash") -> int:
    """Fail at moment `first`, then `first + stride`, …; make the job after each; return how often it was hurt."""
    entry, number, times = store.entry(job.kind, job.key), first, 0
    while True:
        with failpoints.armed(f"{name}:{number}:{action}") as point:
            with suppress(failpoints.Crash, StoreError):
                make(store, job)
            if point.seen < number:
                return times
        times += 1
        assert not [one for one, state in states(store).items() if state not in ("ok", "unfinished", "new")], number
        make(store, job)
        assert files_of(entry) == expected[job.id], f"other bytes after {name}:{number}"
        assert not list(entry.path.rglob(".tmp-*"))
        remove(entry)
        number += stride


def remove(entry) -> None:
    shutil.rmtree(entry.path)


@pytest.mark.fault("A2", "an end at every moment of making inputs, models and caches")
@pytest.mark.parametrize("title", JOBS)
def test_inputs_that_end_at_any_moment_are_made_with_the_same_bytes(title, house, without, expected, record_property):
    job = house.job(title)
    times = crash_at_every_moment(without(job), job, expected)
    record_property("tried", times)
    assert times >= 9


@pytest.mark.fault("A2", "an end at every moment of a 12-step cell: fixed text, replay buffer, own text, TAID")
@pytest.mark.parametrize("arm", CELLS)
@pytest.mark.parametrize("first", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, STRIDE + 1))])
def test_a_cell_that_ends_at_any_moment_ends_with_the_same_bytes(arm, first, house, without, expected, record_property):
    job = house.job(arm)
    times = crash_at_every_moment(without(job), job, expected, first, stride=STRIDE)
    record_property("tried", times)
    assert times >= 3


@pytest.fixture(scope="module")
def tutored(suite, tmp_path_factory):
    """Jobs of a suite in which adapters learn from what the teacher wrote, and the store of an undisturbed run."""
    changes = ["objectives=[seqkd]", "compare={baseline: seqkd, tasks: [swap]}"]
    changes += ["train={steps: 12, batch_tokens: 128, lr: 1e-2, checkpoint_steps: 4, lora: {r: 2, alpha: 4}}"]
    jobs, store = plan(suite, changes), Store(tmp_path_factory.mktemp("tutored") / "results")
    for job in jobs.jobs:
        make(store, job)
    return jobs, store


@pytest.mark.slow
@pytest.mark.fault("A2", "an end at every moment of writing a teacher's text, and of adapters that learn from it")
@pytest.mark.parametrize("title", ["teacher_texts", "seqkd"])
def test_what_learns_from_a_teacher_s_text_ends_with_the_same_bytes(title, tutored, tmp_path, record_property):
    jobs, undisturbed = tutored
    job = jobs.job(title)
    expected = {job.id: files_of(undisturbed.entry(job.kind, job.key))}
    link_tree(undisturbed.root, tmp_path / "results")
    store = Store(tmp_path / "results")
    remove(store.entry(job.kind, job.key))
    times = crash_at_every_moment(store, job, expected)
    record_property("tried", times)
    assert times >= 9


@pytest.mark.fault("C1", "a full disk at every write of a cell")
@pytest.mark.parametrize("name", ["write", pytest.param("synced", marks=pytest.mark.slow)])
def test_a_disk_that_is_full_at_any_write_leaves_what_was_saved(name, house, without, expected, record_property):
    job = house.job("kl")
    times = crash_at_every_moment(without(job), job, expected, name=name, action="raise:ENOSPC")
    record_property("tried", times)
    assert times >= 10


@pytest.mark.fault("A2", "a real SIGKILL at such moments")
@pytest.mark.slow  # at every commit tests/run/test_run_killed.py kills for real
@pytest.mark.parametrize(
    "moment", ["step:2", "synced:30", "shard:2", "rollout:3", "weights:3", "examine:2", "commit:7"]
)
def test_a_process_killed_for_real_leaves_a_store_that_goes_on(moment, suite, house, tmp_path, expected):
    command = [sys.executable, "-m", "tests.faults.house", str(suite), str(tmp_path / "results")]
    killed = subprocess.run(command, env=os.environ | {failpoints.VARIABLE: moment}, capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    store = Store(tmp_path / "results")
    assert set(states(store).values()) <= {"ok", "unfinished", "new"}
    for job in house.jobs:
        make(store, job)
        assert files_of(store.entry(job.kind, job.key)) == expected[job.id]
