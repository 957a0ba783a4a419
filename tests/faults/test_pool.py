"""Real workers that die, or are told to stop, at chosen moments.

python -m pytest tests/faults/test_pool.py
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest

from kdbench import failpoints
from kdbench.distill import checkpoint
from kdbench.errors import Interrupted
from kdbench.run import upkeep
from kdbench.run.workers import ATTEMPTS, Pool
from tests.faults.house import files_of, make, steps_left


def run(store, job, listener=None):
    """Make one job in a worker process, as `kdbench run` does."""
    done = {need: store.entry(*need.split("/")).done() for need in job.needs}
    return Pool(store, 1, 1, (), [listener] if listener else ()).run([job], done)


class Stop:
    """Sends this process a signal at one event of the worker, once."""

    def __init__(self, number=signal.SIGTERM, **event):
        self.number, self.event_, self.sent = number, event, False

    def event(self, job, event):
        if not self.sent and self.event_.items() <= event.items():
            self.sent = True
            os.kill(os.getpid(), self.number)


@pytest.mark.slow
@pytest.mark.fault("A10", "a cell that dies at its first step, always")
def test_a_crash_loop_ends_and_says_so(house, without, expected, monkeypatch, record_property):
    job = house.job("kl")
    store = without(job)
    with failpoints.armed("step:7:crash"), pytest.raises(failpoints.Crash):
        make(store, job)
    monkeypatch.setenv(failpoints.VARIABLE, "step:1:kill")
    outcome = run(store, job)
    reason, entry = outcome.failed[job.id], store.entry("cells", job.key)
    assert f"its worker died {ATTEMPTS} times (killed, perhaps out of memory, in stage 'training'" in reason
    assert (entry.done()["status"], entry.done()["reason"]) == ("failed", reason)
    assert upkeep.waste(store) == [] and steps_left(store, job) == 8, "it goes on from its checkpoint"
    assert files_of(entry) == expected[job.id] and entry.done()["timing"]["attempts"] == 1 + ATTEMPTS + 1
    record_property("tried", ATTEMPTS)


@pytest.mark.slow
@pytest.mark.fault("B3", "SIGTERM while the second checkpoint is written")
def test_a_sigterm_during_a_checkpoint_leaves_it_whole(house, without, expected, monkeypatch):
    job = house.job("kl")
    store = without(job)
    entry = store.entry("cells", job.key)
    monkeypatch.setenv(failpoints.VARIABLE, "checkpoint:2:sleep:1")
    with pytest.raises(Interrupted) as stopped:
        run(store, job, Stop(event="step", step=8))
    assert stopped.value.exit_code == 143
    assert checkpoint.load(entry.checkpoints).step >= 8 and not list(entry.checkpoints.glob("*.corrupt"))
    make(store, job)
    assert files_of(entry) == expected[job.id]


def why_one_alone_failed(house, without, expected):
    """Make the cell that writes text, then another; the first alone may fail. Return why it did."""
    bad, other = house.job("written"), house.job("kl")
    store = without(bad)
    shutil.rmtree(store.entry("cells", other.key).path)
    done = {need: store.entry(*need.split("/")).done() for need in (*bad.needs, *other.needs)}
    outcome = Pool(store, 1, 1, (), ()).run([bad, other], done)
    assert list(outcome.failed) == [bad.id] and files_of(store.entry("cells", other.key)) == expected[other.id]
    return outcome.failed[bad.id]


@pytest.mark.slow
@pytest.mark.fault("A10", "one cell that always dies, beside one that does not: that one is made")
def test_a_cell_that_always_dies_takes_no_other_along(house, without, expected, monkeypatch):
    monkeypatch.setenv(failpoints.VARIABLE, "rollout:1:kill")
    why_one_alone_failed(house, without, expected)


@pytest.mark.slow
@pytest.mark.fault("F2", "one cell that finds no memory, before one that does in the same worker: that one is made")
def test_a_cell_without_memory_takes_no_other_along(house, without, expected, monkeypatch):
    monkeypatch.setenv(failpoints.VARIABLE, "rollout:1:raise:ENOMEM")
    assert why_one_alone_failed(house, without, expected).startswith("out of memory: a training step")


@pytest.mark.slow
@pytest.mark.fault("D4", "a cell's lock held by another process for a while: waited for, said, made once")
def test_a_cell_that_another_process_holds_is_waited_for(house, without, expected):
    job, said = house.job("kl"), []
    store = without(job)
    code = "import sys, time; from pathlib import Path; from kdbench.run.store import Store\n"
    code += "with Store(Path(sys.argv[1])).entry('cells', sys.argv[2]).locked():\n print(1, flush=True); time.sleep(12)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(store.root), job.key], stdout=-1, text=True)
    assert holder.stdout.readline() == "1\n"

    class Ear:
        def event(self, job, event):
            said.append((event["event"], event.get("message", "")))

    run(store, job, Ear())
    holder.communicate()
    entry = store.entry("cells", job.key)
    assert said[-1][0] == "finished"
    assert ("busy", f"{entry.path} is being made by another process") in said
    assert files_of(entry) == expected[job.id] and entry.done()["timing"]["attempts"] == 1


@pytest.mark.slow
@pytest.mark.fault("B1", "SIGTERM and SIGINT in a step between two checkpoints: that step is saved")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_saves_the_step_that_was_being_taken(number, house, without, expected, monkeypatch):
    job = house.job("kl")
    store = without(job)
    monkeypatch.setenv(failpoints.VARIABLE, "step:6:sleep:2")
    with pytest.raises(Interrupted) as stopped:
        run(store, job, Stop(number, event="step", step=6))
    entry = store.entry("cells", job.key)
    assert stopped.value.exit_code == 128 + number and checkpoint.load(entry.checkpoints).step == 6
    assert steps_left(store, job) == 6 and files_of(entry) == expected[job.id]


@pytest.mark.slow
@pytest.mark.fault("B1", "SIGTERM while a cell hangs: ended after the grace, and what was not saved is not called so")
def test_a_worker_that_does_not_stop_is_ended_and_that_is_said(house, without, expected, monkeypatch):
    job = house.job("kl")
    store = without(job)
    monkeypatch.setenv(failpoints.VARIABLE, "step:6:sleep:3600")
    monkeypatch.setattr("kdbench.run.workers.GRACE_S", 2.0)
    with pytest.raises(Interrupted, match=r"jobs that had not stopped .* were ended, and go on from their last"):
        run(store, job, Stop(event="step", step=6))
    entry = store.entry("cells", job.key)
    assert checkpoint.load(entry.checkpoints).step == 4
    make(store, job)
    assert files_of(entry) == expected[job.id]


@pytest.mark.slow
@pytest.mark.fault("B4", "SIGTERM as an examination begins: it stops at a forward pass, and no step is repeated")
def test_a_sigterm_during_an_examination_is_obeyed_within_it(house, without, expected, monkeypatch):
    job = house.job("kl")
    store = without(job)
    monkeypatch.setenv(failpoints.VARIABLE, "examine:1:sleep:1")
    with pytest.raises(Interrupted) as stopped:
        run(store, job, Stop(event="stage", stage="examining"))
    assert stopped.value.exit_code == 143
    entry = store.entry("cells", job.key)
    assert entry.state() == "unfinished" and checkpoint.load(entry.checkpoints).step == 12
    monkeypatch.delenv(failpoints.VARIABLE)
    with failpoints.armed("step:1:crash"):
        make(store, job)
    assert files_of(entry) == expected[job.id]
