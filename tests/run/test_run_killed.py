"""A run that is stopped, terminated or killed: the same bytes in the end.

python -m pytest tests/run/test_run_killed.py
"""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from kdbench.run.tracking import KEY_TAG
from tests.conftest import call, kdbench
from tests.run.conftest import products
from tests.run.test_tracking import runs, snapshot


class Program:
    """A run in a process of its own, which a test may hurt once it has finished some jobs."""

    started: ClassVar[list[subprocess.Popen]] = []

    def __init__(self, suite: Path, target: Path, workers: int = 1, changes: Sequence[str] = ()):
        command = [sys.executable, "-m", "kdbench.cli", "run", str(suite), "--results-dir", str(target)]
        command += ["--no-mlflow", f"--workers={workers}", *changes]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.started.append(self.process)
        self.text, self.target = "", target
        self.children: list[psutil.Process] = []

    def until(self, jobs: int) -> Program:
        """Wait until this invocation has finished that many jobs."""
        for line in self.process.stderr:
            self.text += line
            if line.startswith(f"[{jobs}/"):
                return self
        raise AssertionError(f"ended before job {jobs}:\n{self.text}")

    def until_a_cell_is_made(self) -> Program:
        """Wait until a cell has a checkpoint of its training."""
        for _ in range(1200):
            if list(self.target.glob("cells/*/ckpt/step-*")):
                return self
            time.sleep(0.05)
        raise AssertionError(f"no cell was trained:\n{self.text}")

    def until_it_hangs(self) -> Program:
        """Wait until no file of a cell has changed for some seconds."""
        before, since = None, time.monotonic()
        while time.monotonic() - since < 6:
            now = sorted((str(path), path.stat().st_mtime_ns) for path in self.target.glob("cells/*/**/*"))
            before, since = now, since if now == before else time.monotonic()
            time.sleep(0.2)
        return self

    def worker(self) -> psutil.Process:
        """Return one of its workers."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if "kdbench.run.worker" in child.cmdline())

    def end(self) -> int:
        """Wait for the end, and for the workers to leave; return the exit code."""
        self.text += self.process.stderr.read()
        self.process.stderr.close()
        code = self.process.wait(60)
        _, alive = psutil.wait_procs(self.children, timeout=20)
        assert not alive, "workers outlive their parent"
        return code

    def kill(self) -> None:
        """Kill the run itself, whose workers must notice."""
        self.look()
        self.process.kill()
        assert self.end() == -signal.SIGKILL, "it had ended before"

    def look(self) -> None:
        """Note which workers there are."""
        self.children += psutil.Process(self.process.pid).children(recursive=True)

    def signal(self, number: int) -> None:
        """Send the run a signal."""
        self.look()
        self.process.send_signal(number)


@pytest.fixture(autouse=True)
def nothing_runs_on():
    """End what a test that failed has left running."""
    yield
    while Program.started:
        Program.started.pop().kill()


@pytest.mark.fault("A4", "SIGKILL of the parent: no worker outlives it, the next run ends with the same bytes")
@pytest.mark.fault("B1", "SIGTERM in a run: saved, exit 143, the same bytes in the end")
@pytest.mark.fault("G2", "one worker against two, and cells of one seed alone against a suite of three")
@pytest.mark.fault("G4", "with MLflow against without, and --json")
@pytest.mark.fault("G7", "another PYTHONHASHSEED")
@pytest.mark.fault("C10", "a results folder with a space and an accent")
def test_a_run_that_is_terminated_and_killed_ends_with_the_same_bytes(world, tmp_path):
    """SIGTERM, then SIGKILL of the parent, each in the middle; then to the end."""
    _, suite, results, _ = world
    target, seed = tmp_path / "r é", ("--set", "seeds=[0]")
    program = Program(suite, target, changes=seed).until(4)
    program.signal(signal.SIGTERM)
    assert program.end() == 143
    assert "run the same command to go on" in program.text and "Traceback" not in program.text
    program = Program(suite, target, changes=seed).until(3)
    program.kill()
    assert program.children, "there was no worker that could have outlived it"
    kdbench("run", suite, "--results-dir", target, "--no-mlflow", "--workers", 1, "--json", *seed, PYTHONHASHSEED="7")
    assert products(target) == products(results, within=target) and len(list(target.glob("cells/*/DONE.json"))) == 5


@pytest.mark.slow
@pytest.mark.fault("A5", "SIGKILL of a worker: its job is tried again")
@pytest.mark.fault("B2", "SIGINT in a run: saved, exit 130, the same bytes in the end")
@pytest.mark.fault("F4", "a worker killed without a word of ours: said, and tried again")
def test_a_run_whose_worker_is_killed_and_that_is_interrupted_ends_with_the_same_bytes(world, tmp_path):
    _, suite, results, _ = world
    program = Program(suite, tmp_path / "r").until(1)
    program.worker().kill()
    program.until(6)
    assert "died (killed, perhaps out of memory" in program.text
    program.signal(signal.SIGINT)
    assert program.end() == 130
    assert "run the same command to go on" in program.text and "Traceback" not in program.text
    kdbench("run", suite, "--results-dir", tmp_path / "r", "--no-mlflow", "--workers", 1)
    assert products(tmp_path / "r") == products(results)


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.1, 3])
@pytest.mark.fault("B2", "SIGINT twice while a cell hangs: the second ends it at once, the same bytes in the end")
def test_a_run_that_is_interrupted_twice_ends_at_once_and_goes_on(pause, world, tmp_path, monkeypatch):
    _, suite, results, _ = world
    monkeypatch.setenv("KDBENCH_FAILPOINT", "step:40:sleep:3600")  # in a cell: the teacher takes 16 steps
    program = Program(suite, tmp_path / "r").until_a_cell_is_made().until_it_hangs()
    program.signal(signal.SIGINT)
    time.sleep(pause)
    assert program.process.poll() is None, "the first one waits for the step to end"
    began = time.monotonic()
    program.process.send_signal(signal.SIGINT)
    assert program.end() == 130 and time.monotonic() - began < 10
    assert "interrupted at once" in program.text and "Traceback" not in program.text
    monkeypatch.delenv("KDBENCH_FAILPOINT")
    kdbench("run", suite, "--results-dir", tmp_path / "r", "--no-mlflow")
    assert products(tmp_path / "r") == products(results)


@pytest.mark.slow
@pytest.mark.fault(
    "A8", "SIGKILL of the parent as it writes its third cell to MLflow: the next run, then a sync, end both"
)
def test_a_run_killed_in_an_export_is_whole_after_the_next_and_its_mirror_after_a_sync(world, tmp_path):
    _, suite, results, _ = world
    run = ("run", suite, "--results-dir", tmp_path / "r", "--workers", 1)
    kdbench(*run, check=-9, KDBENCH_FAILPOINT="export:3:kill")
    kdbench(*run)
    assert products(tmp_path / "r") == products(results)
    added = [call("mlflow", "sync", "--results-dir", tmp_path / "r").stderr for _ in range(2)]
    assert re.search(r"tiny: [1-9]\d* cells", added[0]) and "tiny: 0 cells" in added[1], added
    found = [run for run in runs(tmp_path / "r")[1] if KEY_TAG in run.data.tags]
    assert len(found) == len({run.data.tags[KEY_TAG] for run in found}) == 13
    assert {run.info.status for run in found} == {"FINISHED"}
    names = {run.info.run_name for run in found}
    counts = [snapshot(root)[1] for root in (tmp_path / "r", results)]
    points = [{key: n for key, n in one.items() if key[0] in names and "cost/" not in key[1]} for one in counts]
    assert points[0] == points[1], "a curve has points twice, or lacks some"  # what a killed process took is not known


@pytest.mark.slow  # at every commit a run that was terminated is killed too
@pytest.mark.parametrize(("jobs", "delay"), [(1, 0.5), (4, 0.2), (7, 0.0), (10, 0.5), (13, 0.2), (16, 0.0), (19, 0.2)])
@pytest.mark.fault("A1", "SIGKILL after the n-th job and a moment")
def test_a_run_killed_anywhere_ends_with_the_same_bytes(world, tmp_path, jobs, delay):
    _, suite, results, _ = world
    program = Program(suite, tmp_path / "r", workers=2).until(jobs)
    time.sleep(delay)
    program.kill()
    kdbench("run", suite, "--results-dir", tmp_path / "r", "--no-mlflow")
    assert products(tmp_path / "r") == products(results)


@pytest.mark.slow
@pytest.mark.fault("A4", "SIGKILL of the parent while two processes train one model: none outlives it, the same bytes")
def test_a_run_killed_while_two_processes_train_one_model_ends_with_the_same_bytes(world, tmp_path, monkeypatch):
    _, suite, _, _ = world
    changes = ("--set", "train.fsdp=2", "--set", "train.steps=40", "--set", "objectives=[atkd]")
    changes += ("--set", "seeds=[0]", "--set", "compare={baseline: floor, tasks: [swap]}")
    plain, target = tmp_path / "a", tmp_path / "b"
    kdbench("run", suite, "--results-dir", plain, "--no-mlflow", *changes)
    with monkeypatch.context() as patched:
        patched.setenv("KDBENCH_FAILPOINT", "step:30:sleep:3600")  # in the cell: the teacher takes 16 steps
        program = Program(suite, target, changes=changes).until_a_cell_is_made().until_it_hangs()
        program.look()
        assert sum("spawn_main" in " ".join(child.cmdline()) for child in program.children) == 2
        program.kill()
    kdbench("run", suite, "--results-dir", target, "--no-mlflow", *changes)
    assert products(target) == products(plain) and products(plain)


WRITTEN = (
    "objectives=[taid, seqkd, gkd, {name: minillm, reuse: 3}, "
    "{name: distillm, phi: 0.9, capacity: 12, fresh: 0.5, label: replay}]"
)


@pytest.mark.slow
@pytest.mark.fault("A1", "SIGKILL twice at random moments while cells write text, reuse it and keep a buffer")
def test_cells_that_write_text_end_with_the_same_bytes_when_killed_at_random_moments(world, tmp_path):
    """SIGKILL of the parent, twice, while cells with rollouts, a reused batch, a replay buffer and a state train."""
    _, suite, _, _ = world
    changes = ("--set", WRITTEN, "--set", "compare={baseline: seqkd, tasks: [swap]}", "--set", "seeds=[0]")
    plain, target = tmp_path / "a", tmp_path / "b"
    kdbench("run", suite, "--results-dir", plain, "--no-mlflow", *changes)
    seed = random.SystemRandom().randrange(10**6)
    print(f"moments drawn with seed {seed}")
    rng = random.Random(seed)
    done = []
    for wait in (Program.until_a_cell_is_made, lambda program: program.until(1)):
        delay = rng.uniform(0.0, 0.3)  # on a fast machine a cell takes no longer
        program = wait(Program(suite, target, changes=changes))
        time.sleep(delay)
        program.kill()
        done.append(len(list(target.glob("cells/*/DONE.json"))))
    assert min(done) < 7, "no kill came before the last cell was made"
    kdbench("run", suite, "--results-dir", target, "--no-mlflow", "--workers", 1, *changes)
    assert products(target) == products(plain) and len(products(plain)) > 20
