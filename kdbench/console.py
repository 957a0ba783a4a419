"""What a person reads on stdout: tables of one width where nobody sees them, and no complaint where a reader leaves."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console

WIDTH = 100  # columns, where stdout is no terminal


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Pass the error on: rich itself would end the program with exit code 1, though `| head` is no failure."""
        raise


def stdout_console(width: int = WIDTH, **settings: Any) -> Console:
    """Return a console for stdout: as wide as the terminal, or `width` columns where it is none."""
    return _Console(width=None if sys.stdout.isatty() else width, **settings)
