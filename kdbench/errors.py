"""The one tree of errors. Each class knows the exit code with which the command line ends.

A message says what was expected, what was found, where, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class KdbenchError(Exception):
    """Base of every error that a user can cause or mend; shown without a traceback."""

    exit_code = 1


class ConfigError(KdbenchError):
    """A suite, an option, a plugin or an input model is wrong. Nothing has been written."""

    exit_code = 2


class PartialError(KdbenchError):
    """The run ended, but some cells diverged or failed; their results say so."""

    exit_code = 3


class StoreError(KdbenchError):
    """The results folder cannot be written, is locked by a live process, or holds damaged files."""

    exit_code = 4


class Interrupted(KdbenchError):
    """Stopped by a signal after saving; the next run goes on from there."""

    def __init__(self, message: str, exit_code: int = 130):
        super().__init__(message)
        self.exit_code = exit_code


class Diverged(KdbenchError):
    """Training met a number that is not finite. A result, not a gap: it is stored as such.

    Args:
        step: the first is 1, as in records.
        history: the records of the steps before it.
    """

    exit_code = 3

    def __init__(self, step: int, reason: str, last_loss: float | None, history: Sequence[dict[str, Any]] = ()):
        super().__init__(f"diverged at step {step}: {reason} (last finite loss: {last_loss})")
        self.step, self.reason, self.last_loss, self.history = step, reason, last_loss, history


class OutOfMemory(KdbenchError):
    """Not even one row of a batch fits into memory; stored as a failure, with sizes and advice, and tried again."""

    exit_code = 3


def one_line(error: Exception) -> str:
    """Return what an error of a library says, on one line, and its kind where the words alone say little."""
    text = " ".join(str(error).split())
    return text if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {text}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean "x"?' for the nearest known name, and else ' Known: a, b, c.'."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(known)}." if known else ""
