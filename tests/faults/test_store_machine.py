"""Any sequence of starts, crashes, damage, clean-ups and rival processes: the store keeps its six promises.

(1) a committed entry never changes; (2) a scan never raises; (3) every file that is returned verifies; (4) an entry has
one holder at most; (5) gc never removes what is needed or held; (6) after anything, a run completes every entry.

python -m pytest tests/faults/test_store_machine.py
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from kdbench import failpoints
from kdbench.distill import checkpoint
from kdbench.errors import StoreError
from kdbench.files import atomic_write, sha256_file, write_json
from kdbench.run import cell, upkeep
from kdbench.run.locks import Busy, lock_path
from kdbench.run.makers import MAKERS
from kdbench.run.store import Store
from kdbench.run.work import Hooks, Work

KIND, STEPS = "choices", 3  # a kind that no maker of ours makes
KEYS = ("a1", "b2", "c3")


def learn(work: Work) -> None:
    """A small training: its state is in checkpoints, its result a function of its key alone."""
    state = checkpoint.load(work.entry.checkpoints)
    for step in range(state.step, STEPS):
        state.step, state.tensors = step + 1, {"w": torch.full((4,), float(step))}
        state.history.append({"step": step})
        failpoints.hit("step")
        checkpoint.save(work.entry.checkpoints, state)
    atomic_write(work.entry.path / "metrics.jsonl", f"{work.inputs['name']} {state.history}\n" * 3)
    atomic_write(work.entry.path / "model" / "weights", state.tensors["w"].numpy().tobytes())


class StoreMachine(RuleBasedStateMachine):
    """Three entries of one store; `damaged` and `planned` are what has been done to them from outside."""

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.store = Store(self.root / "results")
        self.committed: dict[str, dict[str, str]] = {}
        self.first: dict[str, dict[str, str]] = {}
        self.damaged: set[str] = set()
        self.held: dict[str, FileLock] = {}
        self.planned: tuple[str, ...] = ()

    def entry(self, key):
        return self.store.entry(KIND, key)

    def execute(self, key):
        job = {"kind": KIND, "key": key, "title": key, "inputs": {"name": key}, "needs": [], "context": {}}
        return cell.execute(self.store, job, Hooks())

    def remember(self, key):
        if self.entry(key).done() and (key not in self.committed or key in self.damaged):
            if not self.entry(key).is_whole():
                return  # it is damaged still: whoever made anything died before that
            self.damaged.discard(key)
            self.committed[key] = {n: sha256_file(self.entry(key).path / n) for n in self.entry(key).done()["files"]}
            assert self.committed[key] == self.first.setdefault(key, self.committed[key]), "made anew, with other bytes"

    @rule(key=st.sampled_from(KEYS), number=st.integers(1, 45))
    def start_and_crash(self, key, number):
        """Start, or resume, and die at some moment; on the way, hold what was committed to its word."""
        with failpoints.armed(f"any:{number}:crash"), suppress(failpoints.Crash, Busy):
            self.execute(key)
        self.remember(key)

    @rule(key=st.sampled_from(KEYS), number=st.integers(1, 30))
    def start_on_a_full_disk(self, key, number):
        with failpoints.armed(f"synced:{number}:raise:ENOSPC"), suppress(StoreError):
            self.execute(key)
        self.remember(key)

    @rule(key=st.sampled_from(KEYS))
    def run(self, key):
        if key in self.held:
            with pytest.raises(Busy):
                self.execute(key)
        else:
            assert self.execute(key)["status"] == "ok"
            self.remember(key)
            assert key not in self.damaged and self.entry(key).is_whole()

    @rule(key=st.sampled_from(KEYS))
    def another_process_starts(self, key):
        lock = FileLock(lock_path(self.entry(key).path))
        self.entry(key).path.parent.mkdir(parents=True, exist_ok=True)
        if key not in self.held:
            lock.acquire(timeout=0)
            self.held[key] = lock
        else:
            with pytest.raises(Busy), self.entry(key).locked():
                pass

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def the_other_process_dies(self, data):
        self.held.pop(data.draw(st.sampled_from(sorted(self.held)))).release()

    @rule(key=st.sampled_from(KEYS), how=st.sampled_from(["flip", "cut", "empty", "delete"]), data=st.data())
    def corrupt(self, key, how, data):
        files = sorted(path for path in self.entry(key).path.rglob("*") if path.is_file())
        if not files or key in self.held:
            return
        path = data.draw(st.sampled_from(files), label=f"{how} one of {[one.name for one in files]}")
        content = path.read_bytes()
        if path.name == "DONE.json" and how == "flip":
            content = content.replace(b'"sha256"', b'"sha255"', 1)  # a flip in its `timing` would change no promise
        elif how == "flip" and content:
            at = data.draw(st.integers(0, len(content) - 1), label="the byte")
            content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        if how == "delete":
            path.unlink()
        else:
            path.write_bytes({"flip": content, "cut": content[:-1], "empty": b""}[how])
        self.damaged.discard(key)  # the same bit may be flipped twice
        if key in self.committed and not self.entry(key).is_whole():
            self.damaged.add(key)
            if path.name == "DONE.json" and how == "delete":  # it is as if it had never been completed
                self.damaged.discard(key)
                del self.committed[key]

    @rule(keys=st.sets(st.sampled_from(KEYS)))
    def plan(self, keys):
        self.planned = tuple(sorted(keys))
        write_json(self.store.suite_folder("s") / "plan.json", {"cells": [{"key": key} for key in self.planned]})

    @rule(number=st.integers(1, 4))
    def clean_up(self, number):
        kept = {key for key in KEYS if (key in self.planned or key in self.held) and self.entry(key).path.exists()}
        with failpoints.armed(f"any:{number}:crash"), suppress(failpoints.Crash):
            for one in upkeep.waste(self.store):
                upkeep.remove(self.store, one)
        for key in KEYS:
            assert key not in kept or self.entry(key).path.exists(), "gc removed what is needed or held"
            if not self.entry(key).path.exists():
                self.committed.pop(key, None)
                self.damaged.discard(key)

    @invariant()
    def what_was_committed_stays_as_it_was(self):
        for key, files in self.committed.items():
            if key not in self.damaged:
                assert {name: sha256_file(self.entry(key).path / name) for name in files} == files

    @invariant()
    def a_scan_never_raises_and_knows_what_is_damaged(self):
        found = {one.key: one for one in upkeep.verify(self.store)}
        upkeep.waste(self.store)
        for key in KEYS:
            if key in found and key not in self.held and key not in self.damaged:
                assert found[key].state in ("ok", "unfinished", "damaged")
                assert found[key].state == "ok" or key not in self.committed

    @invariant()
    def what_is_returned_verifies(self):
        for key in KEYS:
            if key in self.damaged:
                with pytest.raises(StoreError):
                    self.entry(key).verified()
            elif key in self.committed:
                assert self.entry(key).verified()

    def teardown(self):
        for lock in self.held.values():
            lock.release()
        self.held = {}
        for key in KEYS:
            assert self.execute(key)["status"] == "ok" and self.entry(key).verified()
            self.remember(key)
        shutil.rmtree(self.root)


@pytest.mark.fault("A2", "any sequence of starts, crashes, damage, clean-ups and rivals (Hypothesis)")
@pytest.mark.fault("C4", "files of the store cut, emptied or deleted in any order (Hypothesis)")
@pytest.mark.fault("D4", "a lock that another process holds, in any order of events (Hypothesis)")
@pytest.mark.parametrize("examples", [12, pytest.param(400, marks=pytest.mark.slow)])
def test_the_store_keeps_its_promises(examples, monkeypatch, record_property):
    monkeypatch.setitem(MAKERS, KIND, learn)
    record_property("tried", examples)
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        StoreMachine, settings=settings(max_examples=examples, stateful_step_count=25, deadline=None, database=None,
                                        derandomize=examples == 12, suppress_health_check=quiet)
    )  # fmt: skip
