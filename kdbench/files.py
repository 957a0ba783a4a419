"""Durable files: the one place that writes, and the one that hashes.

A file appears under its name only when whole: temporary file beside it, fsync, rename, fsync of the folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench import failpoints
from kdbench.errors import StoreError

if TYPE_CHECKING:
    import pandas

TEMPORARY = ".tmp-"
SUM = "sha256"  # in a JSON document: of the rest of it


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `data` to `path` so that a reader, or the next run after a crash, sees all of it or nothing.

    Raises:
        StoreError: when the disk is full, the folder is read-only, or the path cannot be made.
    """
    payload = data.encode() if isinstance(data, str) else data
    temporary = path.parent / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        failpoints.hit("write")
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        failpoints.hit("synced")
        os.replace(temporary, path)
        failpoints.hit("replaced")
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # on a disk that is read-only this fails too
            temporary.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path} ({len(payload):,} bytes): {error.strerror or error}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Change something at `path` inside; what the system refuses is one error.

    Raises:
        StoreError: it says what, and where.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}; make room, or allow it") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically. NaN and infinity are refused: they are states, not numbers."""
    atomic_write(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def ordinary(path: Path) -> Path:
    """Return `path` if a file is there that ends: a pipe would be waited for, and a device may have no end.

    Raises:
        FileNotFoundError: nothing is there, or something else.
    """
    if not path.is_file():
        found = "something else" if os.path.lexists(path) else "none"
        raise FileNotFoundError(errno.ENOENT, f"expected an ordinary file, found {found}", str(path))
    return path


def read_text(path: Path) -> str:
    """Read a file of UTF-8 text.

    Raises:
        OSError: it is not there, is no ordinary file, or cannot be read.
        UnicodeDecodeError: it is no UTF-8.
    """
    return ordinary(path).read_text(encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StoreError: when the file is missing, is no ordinary file, or is not JSON.
    """
    try:
        return _parsed(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"cannot read {path}: {error}") from error


def _parsed(text: str) -> Any:
    """Return a JSON value; halves of characters, which JSON can escape, are refused, since no UTF-8 can say them."""
    found = json.loads(text)
    if "\\ud" in text.lower():
        json.dumps(found, ensure_ascii=False).encode()
    return found


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read a file with one JSON object a line.

    Raises:
        StoreError: when it is missing or holds something else.
    """
    try:
        found = [_parsed(line) for line in read_text(path).splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"cannot read {path}: {error}") from error
    if not all(isinstance(one, dict) for one in found):
        raise StoreError(f"cannot read {path}: expected one JSON object a line, found something else")
    return found


def read_table(path: Path, texts: Iterable[str], numbers: Iterable[str]) -> pandas.DataFrame:
    """Read a Parquet file that must have the columns `texts`, of strings, and `numbers`.

    Raises:
        StoreError: when it is missing, is no Parquet, or lacks a column of that kind.
    """
    import pandas
    from pandas.api import types

    try:
        found = pandas.read_parquet(ordinary(path))
    except Exception as error:  # pyarrow's are of many kinds
        raise StoreError(f"cannot read {path}: {error}") from error
    kinds = {"text": (texts, types.is_string_dtype), "numbers": (numbers, types.is_numeric_dtype)}
    for kind, (names, fits) in kinds.items():
        if wrong := [name for name in names if name not in found or not fits(found[name])]:
            raise StoreError(f"cannot read {path}: expected a column {wrong[0]!r} of {kind}, found none")
    return found


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the bytes of a file that a library wrote durable.

    Raises:
        StoreError: when they cannot be.
    """
    with writing(path), open(path, "rb") as file:
        os.fsync(file.fileno())


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file's bytes.

    Raises:
        OSError: it is not there, is no ordinary file, or cannot be read.
    """
    with open(ordinary(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON document with a sha256 of itself, as its last entry."""
    plain = {name: value for name, value in document.items() if name != SUM}
    return plain | {SUM: digest(plain)}


def is_broken(document: Any) -> bool:
    """Whether a JSON document holds a sha256 of itself that is not its own, or NaN, of which none is made."""
    if not isinstance(document, dict):
        return False
    try:
        whole = sealed(document)
    except ValueError:
        return True
    return SUM in document and document != whole


def digest(value: Any) -> str:
    """Return the hex sha256 of a JSON value in canonical form (sorted keys, no NaN)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
