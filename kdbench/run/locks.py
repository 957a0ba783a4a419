"""Locks on folders of the store: one process makes a folder, and the others see that it is being made."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kdbench.errors import StoreError


class Busy(StoreError):
    """Another live process holds the lock."""


def lock_path(folder: Path) -> Path:
    """Return a folder's lock file, which lies beside it, so that the folder itself may be moved away."""
    return folder.parent / f".{folder.name}.lock"


@contextmanager
def locked(folder: Path, wait_s: float = 0.0, holder: Callable[[], str] = lambda: "another process") -> Iterator[None]:
    """Hold a folder's lock; it is freed at once when its holder dies.

    Args:
        holder: says who seems to hold it, if it cannot be had.

    Raises:
        Busy: when another process holds it for longer than `wait_s`.
        StoreError: it cannot be locked.
    """
    lock = FileLock(lock_path(folder))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise Busy(f"{folder} is being made by {holder()}") from None
    except OSError as error:
        raise StoreError(f"cannot lock {lock_path(folder)}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def held(folder: Path) -> bool:
    """Whether another process holds a folder's lock. Looking writes nothing, so that a read-only store may be asked."""
    try:
        descriptor = os.open(lock_path(folder), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:  # there is none, or none that may be read
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a network's file system that locks nothing which it may not write
        return False
    finally:
        os.close(descriptor)
    return False
