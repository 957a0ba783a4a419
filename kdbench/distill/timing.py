"""Where the time of a step goes: named parts of the code, timed only while someone asks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

_NOTHING = nullcontext()
_ASKED: ContextVar[dict[str, float] | None] = ContextVar("kdbench_timing", default=None)


def part(name: str) -> AbstractContextManager[None]:
    """Time what is inside under `name` if `collect` is on; otherwise cost nothing."""
    seconds = _ASKED.get()
    return _NOTHING if seconds is None else _timed(seconds, name)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    _synchronise()
    begin = time.perf_counter()
    try:
        yield
    finally:
        _synchronise()
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begin


def _synchronise() -> None:
    """Wait for the GPU, whose work is otherwise charged to whoever reads a number first."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


@contextmanager
def collect() -> Iterator[dict[str, float]]:
    """Switch timing on, for this thread; yield the seconds of each part, added up."""
    token = _ASKED.set({})
    try:
        yield _ASKED.get()  # type: ignore[misc]
    finally:
        _ASKED.reset(token)
