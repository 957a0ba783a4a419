"""The results folder: entries by content key, locked while written, complete only with DONE.json.

    results/<kind>/<key>/  inputs.json → ckpt/ → files → DONE.json last (sha256 and size of every file, status)

An entry without a valid DONE.json is incomplete. Nothing is edited after DONE.json. What does not verify is set aside
as `<key>.corrupt-<n>`, said, and made again: never silently used, never silently deleted.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench import failpoints
from kdbench.errors import StoreError
from kdbench.files import (
    TEMPORARY,
    atomic_write,
    is_broken,
    read_json,
    read_text,
    sealed,
    sha256_file,
    sync_file,
    sync_folder,
    write_json,
)
from kdbench.run import locks

KINDS = ("tokenizers", "texts", "models", "teacher_texts", "teacher_cache", "tasks", "cells", "choices")
DONE, INPUTS, CHECKPOINTS = "DONE.json", "inputs.json", "ckpt"
FORMAT, LATER = 1, "later"
PEAK_GPU = "peak_gpu_mib"  # in a cell's timing, where a GPU was used
ATTEMPTS = "attempts"  # how often work on an entry was begun; beside the checkpoints, since it is no part of a result
LEAVINGS = ".tmp*"  # of a process that was killed while it wrote: ours, and those of safetensors
MOST = 1e15  # of what is timed or counted; NaN is not below it either
STATUSES = ("ok", "diverged", "failed")


@dataclass(frozen=True)
class Store:
    """A results folder."""

    root: Path

    def prepare(self) -> None:
        """Make the folder and prove that it can be written.

        Raises:
            StoreError: when it cannot.
        """
        probe = self.root / f"{TEMPORARY}probe-{os.getpid()}-{secrets.token_hex(4)}"
        atomic_write(probe, b"")
        probe.unlink()

    def entry(self, kind: str, key: str) -> Entry:
        """Return the entry of a key; it need not exist."""
        assert kind in KINDS and key.isalnum()
        return Entry(self.root / kind / key)

    def suite_folder(self, name: str) -> Path:
        """Return where a suite's plan and report live.

        Raises:
            StoreError: it leads out of the store.
        """
        folder = self.root / "suites" / name
        for path in (folder, *(folder / one for one in ("report", "lm_eval_tasks"))):
            if path.is_symlink():
                raise StoreError(f"{path} is a symlink, and nothing is written through one; remove it")
        return folder


@dataclass(frozen=True)
class Entry:
    """One content-addressed folder."""

    path: Path

    @property
    def key(self) -> str:
        """The content key, which is the folder's name."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """Where a training keeps its checkpoints until the entry is complete."""
        return self.path / CHECKPOINTS

    def done(self) -> dict[str, Any] | None:
        """Return DONE.json if the entry is complete (every listed file is there with its size), else None."""
        path = self.path / DONE
        try:
            done = read_json(path)
            whole = done["format"] == FORMAT and done["key"] == self.key and done["status"] in STATUSES
            whole = whole and not is_broken(done) and _are_numbers(done["timing"])
            whole = whole and all(self._is_there(name, listed) for name, listed in done["files"].items())
        except (StoreError, OSError, KeyError, TypeError, ValueError, AttributeError):
            return None
        return done if whole else None

    def _is_there(self, name: str, listed: dict[str, Any]) -> bool:
        """Whether a file that DONE.json lists lies inside the entry, with its size."""
        inside = not os.path.isabs(name) and ".." not in name.split("/")
        found = (self.path / name).stat()
        ordinary = stat.S_ISREG(found.st_mode)  # a pipe would be waited for
        return inside and ordinary and isinstance(listed["sha256"], str) and found.st_size == listed["bytes"]

    def verified(self, *names: str) -> dict[str, Any]:
        """Return DONE.json after checking the sha256 of every file, or of `names` alone.

        Raises:
            StoreError: naming the file that is missing or damaged.
        """
        done = self.done()
        if done is None:
            self.refuse_later()
            raise StoreError(f"{self.path} is not complete; run its suite again")
        for name in names or done["files"]:
            if name not in done["files"] or not self._verifies(name, done["files"][name]):
                raise StoreError(
                    f"{self.path / name} is damaged (its sha256 differs from DONE.json); run its suite again"
                )
        return done

    def _verifies(self, name: str, listed: dict[str, Any]) -> bool:
        """Whether a file has the sha256 in DONE.json; one that cannot be read, or has just gone, has not."""
        try:
            return sha256_file(self.path / name) == listed["sha256"]
        except OSError:
            return False

    def is_whole(self, except_in: str | None = None) -> bool:
        """Whether the entry is complete and every file's sha256 is right; the folder `except_in` is not read."""
        done = self.done()
        listed = {} if done is None else done["files"]
        read = (name for name in listed if name.split("/")[0] != except_in)
        return done is not None and all(self._verifies(name, listed[name]) for name in read)

    def state(self) -> str:
        """Return `new`, `unfinished`, `damaged`, or the status in DONE.json: `ok`, `diverged`, `failed`.

        What a later kdbench has completed is `later`: whole, perhaps, but not to be read, nor made again, by this one.
        """
        for _ in range(2):  # twice: DONE.json may come while it is looked at
            done = self.done()
            if done is not None:
                return done["status"]
            if not (self.path / DONE).exists():
                return "unfinished" if (self.path / INPUTS).exists() else "new"
        return LATER if self._format() > FORMAT else "damaged"

    def _format(self) -> int:
        """Return the format in which DONE.json says that it is written; 0 where it says none."""
        try:
            found = read_json(self.path / DONE)["format"]
        except (StoreError, KeyError, TypeError, IndexError):
            return 0
        return found if isinstance(found, int) else 0

    def refuse_later(self) -> None:
        """Do nothing, unless a later kdbench has completed the entry.

        Raises:
            StoreError: it has.
        """
        if self.state() == LATER:
            raise StoreError(
                f"{self.path} was written in format {self._format()}, and this kdbench reads up to format {FORMAT}: "
                "use the kdbench that wrote it, or another results folder"
            )

    def locked(self, wait_s: float = 0.0) -> AbstractContextManager[None]:
        """Hold the entry's lock, as `locks.locked` does."""
        return locks.locked(self.path, wait_s)

    def begin(self, inputs: dict[str, Any]) -> None:
        """Prepare for writing, under the lock: set damaged or failed leavings aside, write down what is made."""
        state, before = self.state(), self._attempts()
        failpoints.hit("begin")
        self.refuse_later()
        if state == "damaged" or self._leads_elsewhere():
            self.set_aside()
        elif state == "failed":
            (self.path / DONE).unlink()
        self.path.mkdir(parents=True, exist_ok=True)
        for stale in self.path.rglob(LEAVINGS):
            is_folder = stale.is_dir() and not stale.is_symlink()
            shutil.rmtree(stale) if is_folder else stale.unlink(missing_ok=True)
        write_json(self.path / INPUTS, inputs)
        atomic_write(self.checkpoints / ATTEMPTS, f"{before + 1}\n")

    def _leads_elsewhere(self) -> bool:
        """Whether what is written here may land outside the store: nothing of ours is a symlink."""
        return self.path.is_symlink() or any(path.is_symlink() for path in self.path.rglob("*"))

    def _attempts(self) -> int:
        """Return how often work on the entry was begun; what was set aside or finished well does not count."""
        try:
            return int(read_text(self.checkpoints / ATTEMPTS))
        except (OSError, ValueError):
            done = self.done() or {}
            timing = done.get("timing") if done.get("status") == "failed" else None
            return int(timing.get(ATTEMPTS, 0)) if isinstance(timing, dict) else 0

    def set_aside(self) -> Path:
        """Rename a damaged entry out of the way and return its new path."""
        number = 1
        while (target := self.path.with_name(f"{self.key}.corrupt-{number}")).exists():
            number += 1
        failpoints.hit("set_aside")
        os.replace(self.path, target)
        return target

    def commit(self, status: str, timing: dict[str, Any], **facts: Any) -> None:
        """Sum up the files, write DONE.json, by which the entry is complete, and drop the checkpoints.

        Args:
            status: `ok`, `diverged` or `failed`.
            timing: wall-clock facts; they are kept apart from what is compared. How often work was begun joins them.
            facts: anything else that is known, such as the reason of a failure.
        """
        timing = timing | {ATTEMPTS: self._attempts()}
        failpoints.hit("commit")
        found = (path for path in self.path.rglob("*") if path.is_file() and path.name != DONE)
        files = sorted(path for path in found if self.checkpoints not in path.parents)
        self._sync(files)
        listed = {
            path.relative_to(self.path).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
            for path in files
        }
        done = {"format": FORMAT, "key": self.key, "status": status, **facts, "files": listed, "timing": timing}
        done = sealed(json.loads(json.dumps(done)))  # the sum of what a reader will find: keys are words there
        failpoints.hit("done")
        write_json(self.path / DONE, done)
        self.drop_checkpoints()

    def drop_checkpoints(self) -> None:
        """Remove what a complete entry needs no more; what a crash just after DONE.json has left goes the next time."""
        if self.checkpoints.exists():
            failpoints.hit("drop")
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _sync(self, files: list[Path]) -> None:
        """Make durable what libraries wrote: after a power loss DONE.json must not stand beside files that do not."""
        for path in files:
            sync_file(path)
        for folder in {path.parent for path in files}:
            sync_folder(folder)


def _are_numbers(timing: dict[str, Any]) -> bool:
    """Whether all values are numbers that a clock or a counter may show, or dicts of such."""
    return all(
        _are_numbers(value) if isinstance(value, dict) else isinstance(value, int | float) and abs(value) < MOST
        for value in timing.values()
    )


def train_seconds(done: dict[str, Any]) -> float | None:
    """Return the seconds of a whole training, from DONE.json.

    One that was resumed timed its last part alone: from that the whole is worked out. None where no step was timed.
    """
    timing = done["timing"]
    took, timed, steps = timing.get("train_s"), timing.get("train_steps"), done.get("steps")
    if not took or timed == 0:
        return None
    return round(took * steps / timed, 3) if timed and steps else took


class Clock:
    """Wall-clock facts of one job: a start as Unix time, durations from the monotonic clock."""

    def __init__(self) -> None:
        self.started_at = round(time.time(), 3)
        self._start = time.monotonic()
        self.parts: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside to `name`."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.parts[name] = round(self.parts.get(name, 0.0) + time.monotonic() - begin, 3)

    def count(self, name: str) -> None:
        """Add one to `name`: of what was timed, since a job that goes on from a checkpoint times only the rest."""
        self.counts[name] = self.counts.get(name, 0) + 1

    def facts(self) -> dict[str, Any]:
        """Return everything, with the process's peak memory in MiB as the OS sees it."""
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        total = round(time.monotonic() - self._start, 3)
        facts = {"started_at": self.started_at, "wall_s": total, **self.parts, **self.counts}
        return facts | {"peak_rss_mib": round(peak)} | _gpu_peak()


def _gpu_peak() -> dict[str, int]:
    """Return the most MiB of a GPU that torch has held in this process since the last question; {} where none was."""
    torch = sys.modules.get("torch")  # nothing is imported for this
    if torch is None or not torch.cuda.is_initialized():
        return {}
    peak = torch.cuda.max_memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    return {PEAK_GPU: round(peak / 2**20)}
