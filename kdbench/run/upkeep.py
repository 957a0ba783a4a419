"""A whole store looked after: every entry verified; what is ours, unlocked and superseded found, and removed.

Superseded is what no suite's last plan leads to: not named in a plan.json, nor in the inputs of an entry that is. Where
a plan cannot be read, or there is none, nothing counts as superseded. Symlinks are never followed; what kdbench did not
write stays.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from kdbench.errors import StoreError
from kdbench.files import is_broken, read_json, sha256_file
from kdbench.run import plans, reports
from kdbench.run.locks import Busy, held
from kdbench.run.places import GONE_NAME, NAME, drop, entries, files, size
from kdbench.run.store import CHECKPOINTS, DONE, INPUTS, KINDS, STATUSES, Entry, Store

IN_USE = "in use"
TEMPORARY_NAME = re.compile(r"\.tmp-(?:probe-|mlflow-)?(\d+)(?:-[0-9a-f]{8})?(?:\.db(?:-journal|-wal|-shm)?)?")
STALE_S = 600.0  # a temporary file lives for seconds; a younger one may be another host's


@dataclass(frozen=True)
class Checked:
    """One entry that was verified, or a suite's plan and report: of kind `suites`, its key the suite's name.

    Attributes:
        state: `ok`, `diverged`, `failed`; `unfinished`, `damaged`; or `in use` while a process makes it.
        damaged: names of the files that are missing or differ from DONE.json.
    """

    kind: str
    key: str
    state: str
    bytes_: int
    damaged: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        found = asdict(self)
        return {"bytes": found.pop("bytes_"), **found, "damaged": list(self.damaged)}


@dataclass(frozen=True)
class Waste:
    """What may go: a path inside the store, its bytes, and why."""

    path: Path
    bytes_: int
    why: str


def verify(store: Store) -> list[Checked]:
    """Check every file of every complete entry, every plan and report, by sha256. Writes and sets aside nothing."""
    found = [_check(kind, Entry(folder)) for kind, folder in entries(store) if "." not in folder.name]
    return [*found, *map(_check_suite, sorted(store.root.glob(f"suites/*/{plans.FILE}")))]


def _check(kind: str, entry: Entry) -> Checked:
    state = IN_USE if held(entry.path) else entry.state()
    state = "unfinished" if state == "new" else state  # its folder is there, its inputs are not yet
    damaged: tuple[str, ...] = ()
    if state == "damaged" or state in STATUSES:
        damaged = tuple(entry.damaged())
        state = "damaged" if damaged else state
    return Checked(kind, entry.key, state, size(entry.path), damaged)


def _check_suite(plan: Path) -> Checked:
    state = plans.state(plan)
    damaged = ([plans.FILE] if state == "damaged" else []) + reports.damaged(plan.parent)
    return Checked("suites", plan.parent.name, "damaged" if damaged else state, size(plan), tuple(damaged))


def waste(store: Store) -> list[Waste]:
    """Return what `gc` would remove, largest first: entries set aside or superseded, leavings of killed processes."""
    found = [Waste(path, size(path), why) for path, why in (*_entries(store), *_leavings(store))]
    return sorted(found, key=lambda one: (-one.bytes_, one.path))


def remove(store: Store, one: Waste) -> bool:
    """Remove what `waste` has found, if it is still waste; return whether it was.

    An entry goes under its lock.
    """
    try:
        return _remove(store, one.path)
    except (Busy, FileNotFoundError):  # it has come into use, or another clean-up was faster
        return False


def _remove(store: Store, folder: Path) -> bool:
    if folder.is_symlink():
        return False
    if folder.name == CHECKPOINTS:
        entry = Entry(folder.parent)
        with entry.locked():
            if not _is_over(entry):
                return False
            entry.drop_checkpoints()
            return True
    if folder.parent.parent != store.root or not NAME.fullmatch(folder.name):
        if not folder.exists():
            return False
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink(missing_ok=True)
        return True
    if "." in folder.name:  # set aside: nobody makes it, nobody reads it
        shutil.rmtree(folder)
        return True
    with Entry(folder).locked():
        if folder not in {path for path, _ in _entries(store, held_by_us=folder)}:
            return False
        drop(folder)
    return True


def _entries(store: Store, held_by_us: Path | None = None) -> Iterator[tuple[Path, str]]:
    """Yield the entries that may go, and why."""
    needed = _needed(store)
    for _, folder in entries(store):
        if "." in folder.name:
            yield folder, "damaged, and set aside"
            continue
        free = folder == held_by_us or not held(folder)
        if needed is not None and folder.name not in needed and free and not _foreign(folder):
            yield folder, "no suite's last plan needs it"


def _needed(store: Store) -> set[str] | None:
    """Return every word of every plan, and of the inputs of each entry so named; None where that cannot be known.

    Keys are sought as words, not at known places, so that a plan of another version keeps what it names.
    """
    needed: set[str] = set()
    paths = sorted((store.root / "suites").glob("*/plan.json"))
    try:
        for path in paths:
            plan = read_json(path)
            if is_broken(plan):
                return None
            _words(plan, needed)
        return _followed(store, needed) if paths else None
    except (StoreError, OSError, RecursionError):
        return None


def _followed(store: Store, needed: set[str]) -> set[str]:
    """Add the words in the inputs of needed entries, until there are no new ones."""
    inputs = {folder: folder / INPUTS for _, folder in entries(store) if "." not in folder.name}
    while reached := [folder for folder in inputs if folder.name in needed]:
        for folder in reached:
            path, done = inputs.pop(folder), Entry(folder).done()
            if done and INPUTS in done["files"] and sha256_file(path) != done["files"][INPUTS]["sha256"]:
                raise StoreError(f"{path} is damaged")
            if path.exists():
                _words(read_json(path), needed)
    return needed


def _words(value: Any, found: set[str]) -> None:
    if isinstance(value, str):
        found.add(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            found.add(key)
            _words(inner, found)
    elif isinstance(value, list):
        for inner in value:
            _words(inner, found)


def _foreign(folder: Path) -> bool:
    """Whether a folder is none of ours, or a complete entry that holds something which its DONE.json does not list."""
    done = Entry(folder).done()
    if done is None:
        ours = (folder / INPUTS).is_file() or (folder / DONE).is_file()
        return not ours and any(name != CHECKPOINTS and not TEMPORARY_NAME.fullmatch(name) for name in _names(folder))
    within = (path.relative_to(folder) for path in files(folder))
    present = {path.as_posix() for path in within if path.parts[0] != CHECKPOINTS}
    return not present <= {*done["files"], DONE}


def _leavings(store: Store) -> Iterator[tuple[Path, str]]:
    """Yield temporary files of dead processes, and folders whose removal was cut off."""
    places = [store.root, *(store.root / kind for kind in KINDS), *(store.root / "suites").glob("*")]
    places += [folder for _, folder in entries(store) if "." not in folder.name and not held(folder)]
    for place in places:
        if place.is_symlink() or not place.is_dir():
            continue
        deep = place.parent.name in KINDS and place.parent.parent == store.root
        if deep and Entry(place).checkpoints.is_dir() and _is_over(Entry(place)):
            yield Entry(place).checkpoints, "checkpoints of what is complete"
        for path in files(place) if deep or place.parent == store.root / "suites" else place.iterdir():
            if path.is_symlink():
                continue
            if path.is_file() and _is_stale(path):
                yield path, "left by a process that was killed"
            elif path.is_dir() and path.parent.name in KINDS and GONE_NAME.fullmatch(path.name):
                yield path, "its removal was cut off"


def _is_over(entry: Entry) -> bool:
    """Whether nobody will go on from an entry's checkpoints."""
    done = entry.done()
    return done is not None and done["status"] != "failed"


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # it has just gone
        return []


def _is_stale(path: Path) -> bool:
    found = TEMPORARY_NAME.fullmatch(path.name)
    if found is None or psutil.pid_exists(int(found[1])):
        return False
    try:
        return time.time() - path.stat().st_mtime > STALE_S
    except OSError:  # it has got its name, or is gone
        return False
