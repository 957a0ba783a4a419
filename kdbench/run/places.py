"""Walk through a results folder: entries by kind, and the bytes under a path. Symlinks are never followed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from kdbench import failpoints
from kdbench.run.store import KINDS, Store

GONE = ".removed-"
GONE_NAME = re.compile(rf"{re.escape(GONE)}\d+-[0-9A-Za-z]+")  # of an entry whose removal was cut off
NAME = re.compile(r"[0-9A-Za-z]+(\.corrupt-\d+)?")  # of an entry's folder; with an ending: set aside as damaged


def entries(store: Store, kinds: Sequence[str] = KINDS) -> Iterator[tuple[str, Path]]:
    """Yield the kind and folder of every entry, those set aside among them, by kind and name."""
    for kind in kinds:
        home = store.root / kind
        if home.is_dir() and not home.is_symlink():
            for path in sorted(home.iterdir()):
                if NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                    yield kind, path


def files(folder: Path) -> Iterator[Path]:
    """Yield every file and symlink under a folder; what vanishes meanwhile is passed over, no symlink is followed."""
    for home, folders, names in os.walk(folder):
        yield from (Path(home, name) for name in names)
        yield from (path for name in folders if (path := Path(home, name)).is_symlink())


def drop(folder: Path) -> None:
    """Remove an entry's folder, whose lock the caller holds: first its name, so that nobody takes up half of it."""
    gone = folder.with_name(f"{GONE}{os.getpid()}-{folder.name}")
    if gone.exists():  # of a process that was killed here, and had the number that this one has
        shutil.rmtree(gone)
    os.replace(folder, gone)
    failpoints.hit("removed")
    shutil.rmtree(gone)


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files under a folder."""
    total = 0
    for one in files(path) if path.is_dir() and not path.is_symlink() else [path]:
        with suppress(OSError):  # it has vanished meanwhile
            total += one.lstat().st_size
    return total
