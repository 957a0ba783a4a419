"""Room for the teacher caches, asked for before anything is written: what the suite allows, and what the disk has."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdbench.errors import ConfigError, StoreError
from kdbench.run.store import Store

GB = 1e9


@dataclass(frozen=True)
class Planned:
    """A teacher cache of a plan: its title, key, expected bytes, and whether it is still to be made."""

    title: str
    key: str
    bytes_: int
    to_make: bool


def check(max_gb: float | None, caches: Sequence[Planned], store: Store) -> None:
    """Refuse a plan whose caches would take more room than there is; a plan that makes none passes.

    Raises:
        ConfigError: all caches of the suite together would take more than `max_gb`.
        StoreError: the disk has less free than what is still to be written.
    """
    left = sum(max(0, cache.bytes_ - _written(store, cache.key)) for cache in caches if cache.to_make)
    if not left:
        return
    listed = "; ".join(f"{cache.title}: {_gb(cache.bytes_)}" for cache in caches)
    total = sum(cache.bytes_ for cache in caches)
    ways = "fewer data.tokens, a smaller teacher.dtype, teacher.layout: topk, or teacher.signal: live"
    if max_gb is not None and total > max_gb * GB:
        raise ConfigError(
            f"teacher.max_gb: expected at most {max_gb:g} GB of teacher caches, the suite's would take {_gb(total)} "
            f"({listed}); nothing was written. Raise it, or: {ways}"
        )
    free = free_bytes(store.root)
    if left > free:
        raise StoreError(
            f"{store.root}: the teacher caches still to be written take {_gb(left)} ({listed}), the disk has "
            f"{_gb(free)} free; nothing was written. Make room (`kdbench cache rm --unused`), or: {ways}"
        )


def _written(store: Store, key: str) -> int:
    """Return the bytes that an unfinished cache holds already."""
    folder = store.entry("teacher_cache", key).path
    return sum(path.stat().st_size for path in folder.glob("shard-*.safetensors"))


def free_bytes(path: Path) -> int:
    """Return the bytes that are free where `path` is, or will be made."""
    there = path.resolve()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def _gb(count: float) -> str:
    return f"{count / GB:,.3g} GB" if count >= GB / 1000 else f"{count / GB:.2g} GB"
