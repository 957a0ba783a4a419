"""Real workers that die, or are told to stop, at chosen moments.

python -m pytest tests/faults/test_pool.py
"""

from __future__ import annotations

import os
import signal

import pytest

from kdbench import failpoints
from kdbench.distill import checkpoint
from kdbench.errors import Interrupted
from kdbench.run.workers import ATTEMPTS, Pool
from tests.faults.house import files_of, make


def run(store, job, listener=None):
    """Make one job in a worker process, as `kdbench run` does."""
    done = {need: store.entry(*need.split("/")).done() for need in job.needs}
    return Pool(store, 1, 1, (), [listener] if listener else ()).run([job], done)


class Terminate:
    """Sends this process a SIGTERM at one event of the worker, once."""

    def __init__(self, **event):
        self.event_, self.sent = event, False

    def event(self, job, event):
        if not self.sent and self.event_.items() <= event.items():
            self.sent = True
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.fault("A10", "a cell that dies at its first step, always")
def test_a_crash_loop_ends_and_says_so(house, without, expected, monkeypatch, record_property):
    job = house.job("kl")
    store = without(job)
    monkeypatch.setenv(failpoints.VARIABLE, "step:1:kill")
    outcome = run(store, job)
    assert f"its worker died {ATTEMPTS} times (killed, perhaps out of memory); log: " in outcome.failed[job.id]
    assert store.entry("cells", job.key).state() == "unfinished"
    make(store, job)
    assert files_of(store.entry("cells", job.key)) == expected[job.id]
    record_property("tried", ATTEMPTS)


@pytest.mark.fault("B3", "SIGTERM while the second checkpoint is written")
def test_a_sigterm_during_a_checkpoint_leaves_it_whole(house, without, expected, monkeypatch):
    job = house.job("kl")
    store = without(job)
    entry = store.entry("cells", job.key)
    monkeypatch.setenv(failpoints.VARIABLE, "checkpoint:2:sleep:1")
    with pytest.raises(Interrupted) as stopped:
        run(store, job, Terminate(event="step", step=8))
    assert stopped.value.exit_code == 143
    assert checkpoint.load(entry.checkpoints).step >= 8 and not list(entry.checkpoints.glob("*.corrupt"))
    make(store, job)
    assert files_of(entry) == expected[job.id]


@pytest.mark.slow
@pytest.mark.fault("B4", "SIGTERM as an examination begins: it stops at a forward pass, and no step is repeated")
def test_a_sigterm_during_an_examination_is_obeyed_within_it(house, without, expected, monkeypatch):
    job = house.job("kl")
    store = without(job)
    monkeypatch.setenv(failpoints.VARIABLE, "examine:1:sleep:1")
    with pytest.raises(Interrupted) as stopped:
        run(store, job, Terminate(event="stage", stage="examining"))
    assert stopped.value.exit_code == 143
    entry = store.entry("cells", job.key)
    assert entry.state() == "unfinished" and checkpoint.load(entry.checkpoints).step == 12
    monkeypatch.delenv(failpoints.VARIABLE)
    with failpoints.armed("step:1:crash"):
        make(store, job)
    assert files_of(entry) == expected[job.id]
