"""The results folder: entries by content key, locked while written, complete only with DONE.json.

    results/<kind>/<key>/  inputs.json → ckpt/ → files → DONE.json last (sha256 and size of every file, status)

An entry without a valid DONE.json is incomplete. Nothing is edited after DONE.json. What does not verify is set aside
as `<key>.corrupt-<n>`, said, and made again: never silently used, never silently deleted.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import stat
from contextlib import AbstractContextManager
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
    writing,
)
from kdbench.run import locks
from kdbench.run.clock import are_numbers

KINDS = ("tokenizers", "texts", "models", "teacher_texts", "teacher_cache", "tasks", "cells", "choices")
DONE, INPUTS, CHECKPOINTS = "DONE.json", "inputs.json", "ckpt"
FORMAT, LATER = 1, "later"
ATTEMPTS = "attempts"  # how often work on an entry was begun; beside the checkpoints, since it is no part of a result
LEAVINGS = re.compile(r"\.tmp(-\d+-\w+|\w{6})")  # of a process that was killed while it wrote; safetensors' are short
PARTS = ("teacher_cache",)  # kinds whose makers go on from the files that are whole
STATUSES = ("ok", "diverged", "failed")


@dataclass(frozen=True)
class Store:
    """A results folder."""

    root: Path

    def prepare(self) -> None:
        """Make the folder and prove that it and what is in it can be written, before hours are spent on it.

        Raises:
            StoreError: when it cannot, or a folder of ours is a symlink, which `gc` and `doctor` would not follow.
        """
        for name in ("", *KINDS, "suites"):
            folder = self.root / name
            if name and folder.is_symlink():
                raise StoreError(
                    f"{folder} is a symlink, and nothing is written through one; move what it leads to here, or keep "
                    "the whole results folder there (--results-dir)"
                )
            if not name or os.path.lexists(folder):
                probe = folder / f"{TEMPORARY}probe-{os.getpid()}-{secrets.token_hex(4)}"
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
            whole = whole and not is_broken(done) and are_numbers(done["timing"])
            whole = whole and all(self._is_there(name, listed) for name, listed in done["files"].items())
        except (StoreError, OSError, KeyError, TypeError, ValueError, AttributeError):
            return None
        return done if whole else None

    def _is_there(self, name: str, listed: dict[str, Any]) -> bool:
        """Whether a file that DONE.json lists lies inside the entry, with its size."""
        found = (self.path / name).stat()
        ordinary = stat.S_ISREG(found.st_mode)  # a pipe would be waited for
        fits = isinstance(listed["sha256"], str) and found.st_size == listed["bytes"]
        return _is_inside(name) and ordinary and fits

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
            return _is_inside(name) and sha256_file(self.path / name) == listed["sha256"]
        except (OSError, ValueError, TypeError, KeyError):  # or DONE.json holds nonsense
            return False

    def is_whole(self, except_in: str | None = None) -> bool:
        """Whether the entry is complete and every file's sha256 is right; the folder `except_in` is not read."""
        return not self.damaged(except_in)

    def damaged(self, except_in: str | None = None) -> list[str]:
        """Return the listed files that are missing or whose sha256 is not right; DONE.json where it is not to be used.

        Args:
            except_in: a folder that is not read.
        """
        try:
            done = read_json(self.path / DONE)
            listed = {} if is_broken(done) else dict(done["files"])
        except (StoreError, OSError, KeyError, TypeError, ValueError, AttributeError):
            return [DONE]
        read = (name for name in listed if name.split("/")[0] != except_in)
        return [name for name in read if not self._verifies(name, listed[name])] or ([] if self.done() else [DONE])

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
        return locks.locked(self.path, wait_s, self._maker)

    def begin(self, inputs: dict[str, Any]) -> Path | None:
        """Prepare for writing, under the lock: write down what is made, and by whom.

        Returns:
            Where what was damaged now lies, if anything was.
        """
        state, before = self.state(), self._attempts()
        self.refuse_later()
        with writing(self.path):
            failpoints.hit("begin")
            aside = self.set_aside() if state == "damaged" or self._leads_elsewhere() else None
            self.path.mkdir(parents=True, exist_ok=True)
            for stale in self.path.rglob(".tmp*"):
                if LEAVINGS.fullmatch(stale.name) and not stale.is_dir():
                    stale.unlink(missing_ok=True)
            atomic_write(self.checkpoints / ATTEMPTS, f"{before + 1} {socket.gethostname()} {os.getpid()}\n")
            (self.path / DONE).unlink(missing_ok=True)  # of a failure
            write_json(self.path / INPUTS, inputs)
        return aside

    def _maker(self) -> str:
        """Return who makes the entry, as far as that is known."""
        try:
            _, host, process = read_text(self.checkpoints / ATTEMPTS).split()
        except (OSError, ValueError):
            return "another process"
        return f"process {process} on {host}"

    def _leads_elsewhere(self) -> bool:
        """Whether what is written here may land outside the store: nothing of ours is a symlink."""
        return self.path.is_symlink() or any(path.is_symlink() for path in self.path.rglob("*"))

    def _attempts(self) -> int:
        """Return how often work on the entry was begun; what was set aside or finished well does not count."""
        try:
            return int(read_text(self.checkpoints / ATTEMPTS).split()[0])
        except (OSError, ValueError, IndexError):
            done = self.done() or {}
            timing = done.get("timing") if done.get("status") == "failed" else None
            return int(timing.get(ATTEMPTS, 0)) if isinstance(timing, dict) else 0

    def set_aside(self) -> Path:
        """Rename what is damaged out of the way and return its new path.

        That is the entry; or, where its maker goes on from the files that are whole, DONE.json and the other files.
        """
        number = 1
        while (target := self.path.with_name(f"{self.key}.corrupt-{number}")).exists():
            number += 1
        names = self._hurt()
        with writing(target):
            failpoints.hit("set_aside")
            if not names:
                os.replace(self.path, target)
            for name in names:  # DONE.json first: without it the entry is unfinished, and its maker looks at every file
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.path / name, target / name)
        return target

    def _hurt(self) -> list[str]:
        """Return DONE.json and the damaged files that are there; nothing if the whole entry is to go."""
        if self.path.parent.name not in PARTS or self._leads_elsewhere():
            return []
        there = (name for name in self.damaged() if _is_inside(name) and (self.path / name).is_file())
        return [DONE, *(name for name in there if name != DONE)]

    def commit(self, status: str, timing: dict[str, Any], keep: bool = False, **facts: Any) -> None:
        """Sum up the files, write DONE.json, by which the entry is complete, and drop the checkpoints.

        Files whose names begin with a dot are no part of it: they are an editor's, or the system's.

        Args:
            status: `ok`, `diverged` or `failed`.
            timing: wall-clock facts; they are kept apart from what is compared. How often work was begun joins them.
            keep: leave the checkpoints, from which the next attempt may go on.
            facts: anything else that is known, such as the reason of a failure.
        """
        timing = timing | {ATTEMPTS: self._attempts()}
        failpoints.hit("commit")
        files = sorted(path for path in self.path.rglob("*") if path.is_file() and self._is_part(path))
        self._sync(files)
        listed = {
            path.relative_to(self.path).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
            for path in files
        }
        done = {"format": FORMAT, "key": self.key, "status": status, **facts, "files": listed, "timing": timing}
        done = sealed(json.loads(json.dumps(done)))  # the sum of what a reader will find: keys are words there
        failpoints.hit("done")
        write_json(self.path / DONE, done)
        if not keep:
            self.drop_checkpoints()

    def _is_part(self, path: Path) -> bool:
        """Whether a file that lies here belongs to what is completed."""
        parts = path.relative_to(self.path).parts
        return parts[0] not in (DONE, CHECKPOINTS) and not any(part.startswith(".") for part in parts)

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


def _is_inside(name: str) -> bool:
    """Whether a path in DONE.json stays in its entry."""
    return not os.path.isabs(name) and ".." not in name.split("/")
