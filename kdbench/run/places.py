"""Walk through a results folder: entries by kind, and the bytes under a path. Symlinks are never followed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdbench.run.store import KINDS, Store

NAME = re.compile(r"[0-9A-Za-z]+(\.corrupt-\d+)?")  # of an entry's folder; with an ending: set aside as damaged


def entries(store: Store, kinds: Sequence[str] = KINDS) -> Iterator[tuple[str, Path]]:
    """Yield the kind and folder of every entry, those set aside among them, by kind and name."""
    for kind in kinds:
        home = store.root / kind
        if home.is_dir() and not home.is_symlink():
            for path in sorted(home.iterdir()):
                if NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                    yield kind, path


def size(path: Path) -> int:
    """Return the bytes under a path; a file that vanishes meanwhile counts nothing, a symlink is not followed."""
    total = 0
    for one in (path, *path.rglob("*")):
        try:
            total += 0 if one.is_dir() else one.lstat().st_size
        except OSError:
            continue
    return total
