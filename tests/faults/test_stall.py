"""A job that hangs is noticed by its own pace, stopped, said, and goes on from its checkpoint.

python -m pytest tests/faults/test_stall.py
"""

from __future__ import annotations

import pytest

from kdbench import failpoints
from kdbench.errors import Interrupted, KdbenchError
from kdbench.run import agenda, orchestrate
from kdbench.run.watchdog import ALIVE, AWAY_S, FLOOR_S, PACES, WORKS, Watch, beating, cpu_of
from kdbench.run.work import Hooks
from kdbench.run.workers import Pool
from tests.conftest import call
from tests.faults.house import files_of, make


class World:
    """A clock and a process whose work the test decides."""

    def __init__(self, patience_s=None):
        self.now, self.used = 0.0, 0.0
        self.watch = Watch(patience_s, lambda: self.used, lambda: self.now)

    def wait(self, seconds, busy=0.0):
        """Let time pass, looking every second; return what is said at the end."""
        for _ in range(int(seconds)):
            self.now += 1.0
            self.used += busy
            if found := self.watch.silence():
                return found
        return ""

    def steps(self, count, seconds):
        for step in range(1, count + 1):
            self.wait(seconds)
            self.watch.see({"event": "step", "step": step})
        return self


def test_a_job_is_given_a_quarter_of_an_hour_or_fifty_of_its_steps():
    quick = World().steps(10, 2)
    assert quick.wait(FLOOR_S - 1) == ""
    assert quick.wait(5) == f"no sign of life for {FLOOR_S + 1:,.0f} s, in no named stage after step 10"
    slow = World().steps(10, 60)
    assert slow.wait(PACES * 60 - 1) == "" and "for 3,001 s" in slow.wait(5)


def test_before_its_pace_is_known_a_process_that_works_is_alive_and_one_that_does_not_is_not():
    assert World(10).wait(200, busy=0.2) == "" and World().wait(5000, busy=0.01) == ""
    assert "for 11 s, in no named stage, before any step" in World(10).wait(1000)
    loading = World(10)
    loading.watch.see({"event": "stage", "stage": "training"})
    assert "in stage 'training', before any step" in loading.wait(20)


@pytest.mark.fault("B5", "work without end before a pace is known: in a first step, in an examination")
@pytest.mark.parametrize("steps", [0, 5])
def test_a_process_that_works_without_end_and_says_nothing_is_stopped_too(steps):
    world = World(10).steps(steps, 2)
    world.watch.see({"event": "stage", "stage": "examining"})
    assert world.wait(WORKS * 10 - 1, busy=1.0) == ""
    assert "in stage 'examining'" in world.wait(20, busy=1.0)


def test_once_its_pace_is_known_work_without_steps_is_no_sign_of_life():
    spinning = World(10).steps(5, 2)
    assert "after step 5" in spinning.wait(20, busy=1.0)


def test_a_new_stage_has_a_pace_of_its_own_and_every_event_is_a_sign_of_life():
    world = World(10).steps(5, 2)
    world.watch.see({"event": "stage", "stage": "examining"})
    assert world.wait(200, busy=1.0) == ""
    for _ in range(20):
        assert world.wait(9) == ""
        world.watch.see({"event": ALIVE})


def test_a_watcher_that_was_away_itself_accuses_nobody():
    world = World(10).steps(5, 2)
    world.now += AWAY_S + 1000
    assert world.watch.silence() == "" and world.wait(10) == "" and world.wait(5)


def test_a_process_that_is_gone_has_worked_nothing():
    assert cpu_of(2**22 + 1)() == 0.0


def test_forward_passes_are_signs_of_life_and_obey_a_stop(monkeypatch):
    import torch

    model, told, code = torch.nn.Linear(2, 2), [], [0]
    monkeypatch.setattr("kdbench.run.watchdog.BEAT_S", 0.0)
    with beating(model, Hooks(told.append, lambda: code[0])):
        model(torch.zeros(1, 2))
        code[0] = 143
        with pytest.raises(Interrupted) as stopped:
            model(torch.zeros(1, 2))
    assert stopped.value.exit_code == 143 and told == [{"event": ALIVE}]
    model(torch.zeros(1, 2))


class Heard(list):
    """A listener that keeps every event."""

    def event(self, job, event):
        self.append(event)


def run(store, job, listener, patience_s=1.5):
    done = {need: store.entry(*need.split("/")).done() for need in job.needs}
    return Pool(store, 1, 1, (), [listener], patience_s).run([job], done)


@pytest.mark.slow
@pytest.mark.fault("B5", "a cell that hangs in its third step, always: stopped, and failed as stalled")
def test_a_cell_that_hangs_ends_as_failed_with_stage_step_and_stack(house, without, expected, monkeypatch):
    job, heard = house.job("kl"), Heard()
    store = without(job)
    monkeypatch.setenv(failpoints.VARIABLE, "step:3:sleep:3600")
    monkeypatch.setattr(agenda, "ATTEMPTS", 1)  # each costs a start of torch
    outcome = run(store, job, heard)
    reason = outcome.failed[job.id]
    assert reason.startswith("its worker stalled 1 times (no sign of life for ")
    assert "s, in stage 'training' after step 3; log: " in reason
    assert ALIVE not in [event["event"] for event in heard]
    log = (store.root / "logs" / "worker-0.log").read_text()
    assert "failpoints.py" in log and "in train" in log, "the log says where it hung"
    done = store.entry("cells", job.key).done()
    assert (done["status"], done["reason"]) == ("failed", reason)
    make(store, job)
    assert files_of(store.entry("cells", job.key)) == expected[job.id]


@pytest.mark.slow
@pytest.mark.fault("B5", "a cell that hangs twice: it goes on from its checkpoint, and ends with the same bytes")
def test_a_cell_that_hangs_now_and_then_goes_on_from_its_checkpoint(house, without, expected, monkeypatch):
    job, heard = house.job("kl"), Heard()
    store = without(job)
    monkeypatch.setenv(failpoints.VARIABLE, "step:6:sleep:3600")  # at steps 6 and 10: 4 was saved, then 8
    outcome = run(store, job, heard)
    assert outcome.failed == {} and [event["event"] for event in heard].count("died") == 2
    entry = store.entry("cells", job.key)
    assert files_of(entry) == expected[job.id] and entry.done()["timing"]["attempts"] == 3


def test_the_patience_of_the_command_line_reaches_the_workers(suite, tmp_path, monkeypatch):
    told = []

    def pool(*given):
        told.append(given[-1])
        raise KdbenchError("enough")

    monkeypatch.setattr(orchestrate, "Pool", pool)
    asked = ("run", suite, "--results-dir", tmp_path / "r", "--no-mlflow")
    assert [call(*asked, *more).exit_code for more in (["--stall", 7], [])] == [1, 1] and told == [7.0, None]
