"""A run that is stopped, terminated, killed, or has company: the same bytes in the end.

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

import psutil
import pytest

from kdbench.files import read_json
from tests.conftest import call, kdbench
from tests.run.conftest import products


class Program:
    """A run in a process of its own, which a test may hurt once it has finished some jobs."""

    def __init__(self, suite: Path, target: Path, workers: int = 1, changes: Sequence[str] = ()):
        command = [sys.executable, "-m", "kdbench.cli", "run", str(suite), "--results-dir", str(target)]
        command += ["--no-mlflow", f"--workers={workers}", *changes]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.text, self.target = "", target

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

    def worker(self) -> psutil.Process:
        """Return one of its workers."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if "kdbench.run.worker" in child.cmdline())

    def end(self) -> int:
        """Wait for the end, and for the workers to leave; return the exit code."""
        self.text += self.process.stderr.read()
        self.process.stderr.close()
        code = self.process.wait(60)
        for _ in range(100):
            alive = (
                p for p in psutil.process_iter(["cmdline"]) if str(self.target) in " ".join(p.info["cmdline"] or [])
            )
            if not any(alive):
                return code
            time.sleep(0.1)
        raise AssertionError("workers outlive their parent")


@pytest.mark.fault("A4", "SIGKILL of the parent: no worker outlives it, the next run ends with the same bytes")
@pytest.mark.fault("A5", "SIGKILL of a worker: its job is tried again")
@pytest.mark.fault("B1", "SIGTERM in a run: saved, exit 143, the same bytes in the end")
@pytest.mark.fault("B2", "SIGINT in a run: saved, exit 130, the same bytes in the end")
@pytest.mark.fault("F4", "a worker killed without a word of ours: said, and tried again")
@pytest.mark.fault("G2", "one worker against two")
@pytest.mark.fault("G4", "with MLflow against without")
@pytest.mark.fault("G7", "another PYTHONHASHSEED")
@pytest.mark.fault("C10", "a results folder with a space and an accent")
def test_a_run_that_is_stopped_terminated_and_killed_ends_with_the_same_bytes(world, tmp_path):
    """SIGINT, then SIGTERM, then a dead worker, then SIGKILL of the parent, each in the middle; then to the end."""
    _, suite, results, _ = world
    target = tmp_path / "r é"
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        program = Program(suite, target).until(4)
        program.process.send_signal(number)
        assert program.end() == code
        assert "run the same command to go on" in program.text and "Traceback" not in program.text
    program = Program(suite, target).until(1)
    program.worker().kill()
    program.until(3)
    assert "died (killed, perhaps out of memory" in program.text
    program.process.kill()
    program.end()
    kdbench("run", suite, "--results-dir", target, "--no-mlflow", "--workers", 1, PYTHONHASHSEED="7")
    assert products(target) == products(results)


@pytest.mark.slow
@pytest.mark.fault("B2", "SIGINT twice, a tenth of a second apart: ended at once, the same bytes in the end")
def test_a_run_that_is_interrupted_twice_ends_at_once_and_goes_on(world, tmp_path):
    _, suite, results, _ = world
    program = Program(suite, tmp_path / "r", workers=2).until(6)
    program.process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    program.process.send_signal(signal.SIGINT)
    assert program.end() == 130 and "Traceback" not in program.text
    kdbench("run", suite, "--results-dir", tmp_path / "r", "--no-mlflow")
    assert products(tmp_path / "r") == products(results)


@pytest.mark.slow
@pytest.mark.fault("A8", "SIGKILL of the parent as it writes its third cell to MLflow: the next run ends both")
def test_a_run_killed_in_an_export_is_whole_after_the_next_with_its_mirror(world, tmp_path):
    _, suite, results, _ = world
    run = ("run", suite, "--results-dir", tmp_path / "r", "--workers", 1)
    kdbench(*run, check=-9, KDBENCH_FAILPOINT="export:3:kill")
    kdbench(*run)
    assert products(tmp_path / "r") == products(results)
    added = [call("mlflow", "sync", "--results-dir", tmp_path / "r").stderr for _ in range(2)]
    assert re.search(r"tiny: [1-9]\d* cells", added[0]) and "tiny: 0 cells" in added[1], added


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "delay"), [(1, 0.5), (4, 0.2), (7, 0.0), (10, 0.5), (13, 0.2), (16, 0.0), (19, 0.2)])
@pytest.mark.fault("A1", "SIGKILL after the n-th job and a moment")
def test_a_run_killed_anywhere_ends_with_the_same_bytes(world, tmp_path, jobs, delay):
    _, suite, results, _ = world
    program = Program(suite, tmp_path / "r", workers=2).until(jobs)
    time.sleep(delay)
    program.process.kill()
    program.end()
    kdbench("run", suite, "--results-dir", tmp_path / "r", "--no-mlflow")
    assert products(tmp_path / "r") == products(results)


WRITTEN = (
    "objectives=[taid, seqkd, gkd, {name: minillm, reuse: 3}, "
    "{name: distillm, phi: 0.9, capacity: 12, fresh: 0.5, label: replay}]"
)


@pytest.mark.fault("A1", "SIGKILL twice at random moments while cells write text, reuse it and keep a buffer")
def test_cells_that_write_text_end_with_the_same_bytes_when_killed_at_random_moments(world, tmp_path):
    """SIGKILL of the parent, twice, while cells with rollouts, a reused batch, a replay buffer and a state train."""
    _, suite, _, _ = world
    changes = ("--set", WRITTEN, "--set", "compare={baseline: seqkd, tasks: [swap]}", "--set", "seeds=[0]")
    plain, target = tmp_path / "a", tmp_path / "b"
    kdbench("run", suite, "--results-dir", plain, "--no-mlflow", *changes)
    rng = random.Random()
    for wait in (Program.until_a_cell_is_made, lambda program: program.until(1)):
        delay = rng.uniform(0.0, 1.5)
        program = wait(Program(suite, target, changes=changes))
        time.sleep(delay)
        program.process.kill()
        program.end()
    kdbench("run", suite, "--results-dir", target, "--no-mlflow", "--workers", 1, *changes)
    assert products(target) == products(plain) and len(products(plain)) > 20


@pytest.mark.fault("D1", "two runs of one suite")
@pytest.mark.fault("D6", "two runs that need one teacher cache")
def test_two_runs_at_once_make_each_cell_once(world, tmp_path):
    _, suite, results, _ = world
    target = tmp_path / "r"
    command = [sys.executable, "-m", "kdbench.cli", "run", str(suite), "--results-dir", str(target)]
    command += ["--no-mlflow", "--workers", "1"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    texts = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert products(target) == products(results)
    assert not list(target.rglob("*.corrupt*"))
    attempts = {path.parent.name: read_json(path)["timing"]["attempts"] for path in target.glob("*/*/DONE.json")}
    assert set(attempts.values()) == {1}, attempts
