"""What vouches for a suite's report: from what it was made, and the sha256 of its files.

It is written last, like an entry's DONE.json, and no clock is asked: a report stands as long as it would be made from
the same again and none of its files has changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from kdbench.errors import StoreError
from kdbench.files import SUM, is_broken, read_json, sealed, sha256_file, write_json, writing
from kdbench.run import locks

FILE = "report/made_from.json"
WAIT_S = 600.0  # for another process's report, which takes seconds


def alone(folder: Path) -> AbstractContextManager[None]:
    """Hold the lock of a suite's `folder`: two runs at once must not mix their pages and pictures.

    Raises:
        Busy: another process has written its report for ten minutes.
        StoreError: it cannot be locked.
    """
    return locks.locked(folder, WAIT_S)


def withdraw(folder: Path) -> None:
    """Vouch for a report no more: it is about to be written anew, and until then stands for nothing.

    Raises:
        StoreError: the folder cannot be written.
    """
    with writing(folder / FILE):
        (folder / FILE).unlink(missing_ok=True)


def vouch(folder: Path, source: str, files: Iterable[Path]) -> None:
    """Write down that the report's `files` inside a suite's `folder` were made from `source`, a digest.

    Raises:
        StoreError: it cannot be written.
    """
    sums = {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
    write_json(folder / FILE, sealed({"from": source, "files": sums}))


def standing(folder: Path, source: str) -> dict[str, Path]:
    """Return the files of a report that was made from `source` by their names; none if it is to be written anew."""
    made, sums = _read(folder) or ("", {})
    whole = made == source and all(_sum(folder / name) == sum_ for name, sum_ in sums.items())
    return {name: folder / name for name in sums} if whole else {}


def damaged(folder: Path) -> list[str]:
    """Return the names of the report's files that are there and are not what was written."""
    known = _read(folder)
    if known is None:
        return [FILE] if (folder / FILE).exists() else []
    return [name for name, sum_ in known[1].items() if (folder / name).exists() and _sum(folder / name) != sum_]


def _read(folder: Path) -> tuple[str, dict[str, str]] | None:
    """Return from what a report was made, and name → sha256; None where nothing whole says so."""
    try:
        known = read_json(folder / FILE)
        if SUM not in known or is_broken(known):
            return None
        made, sums = str(known["from"]), {name: str(sum_) for name, sum_ in known["files"].items()}
    except (StoreError, KeyError, TypeError, AttributeError, ValueError):
        return None
    inside = all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in sums)
    return (made, sums) if inside else None


def _sum(path: Path) -> str:
    """Return a file's sha256, or nothing where it cannot be read."""
    try:
        return sha256_file(path)
    except OSError:
        return ""
