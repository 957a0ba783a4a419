"""SIGINT and SIGTERM: who hears of them, and for how long."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any


class Signals:
    """SIGINT and SIGTERM go to `handle` inside, and where they went before after; none outside the main thread."""

    def __init__(self, handle: Callable[[int], None]):
        self.handle = handle
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, lambda got, frame: self.handle(got))

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def leave_to_parent() -> None:
    """Ignore both from now on: a machine that shuts down signals all processes, and the parent says when to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def interrupt(number: int) -> None:
    """End what the main thread is doing, by either signal: without a handler SIGTERM would run no `finally`.

    Raises:
        KeyboardInterrupt: with the signal's number.
    """
    raise KeyboardInterrupt(number)
