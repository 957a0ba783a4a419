"""A pytest plugin: from the tests that carry `@pytest.mark.fault(row, what)`, a table of what was tried and survived.

python -m tests.faults            runs the marked tests of all tiers and prints the table
python -m tests.faults --write    and puts it into tests/faults/README.md, with date and commit
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.faults.matrix import NOT_RUN, ROWS

HERE = Path(__file__).parent
HEAD = "| row | fault | what was done | tried | survived |\n|---|---|---|---:|---:|"
INTRODUCTION = """\
# The matrix of faults

A test that tries a fault says so with `@pytest.mark.fault(row, what)`. `make faults` runs them all, those of
`-m slow` too, and prints the table below; `make faults WRITE=--write` writes it here. *Tried* counts single faults: one
test may crash a cell at sixty moments. *Survived* are those after which every promise held: the same bytes, a store
that scans clean, one clear error.
"""


@dataclass
class Tally:
    """What the tests of a run have tried: (row, what) → times tried, times survived; and rows skipped, with why."""

    tried: dict[tuple[str, str], int] = field(default_factory=dict)
    survived: dict[tuple[str, str], int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, properties: Iterable[tuple[str, Any]], passed: bool) -> None:
        """Count one finished test."""
        known = list(properties)
        times = next((int(value) for name, value in known if name == "tried"), 1)
        for name, value in known:
            if name == "fault":
                key = tuple(value)
                self.tried[key] = self.tried.get(key, 0) + times
                self.survived[key] = self.survived.get(key, 0) + (times if passed else 0)

    def take_back(self, properties: Iterable[tuple[str, Any]]) -> None:
        """Count as lost what a test seemed to have survived."""
        known = list(properties)
        times = next((int(value) for name, value in known if name == "tried"), 1)
        for name, value in known:
            if name == "fault":
                self.survived[tuple(value)] = max(0, self.survived[tuple(value)] - times)

    def skip(self, properties: Iterable[tuple[str, Any]], why: Any) -> None:
        """Remember why a test was skipped; pytest tells path, line and reason."""
        reason = str(why[2] if isinstance(why, tuple) else why).removeprefix("Skipped: ")
        self.skipped |= {value[0]: reason for name, value in properties if name == "fault"}

    def lines(self) -> list[str]:
        """Return the table's rows in the matrix's order; rows that were not tried say why."""
        lines = []
        for row, fault in ROWS.items():
            found = sorted(key for key in self.tried if key[0] == row)
            lines += [
                f"| {row} | {fault} | {what} | {self.tried[row, what]} | {self.survived[row, what]} |"
                for _, what in found
            ]
            if not found:
                why = NOT_RUN.get(row) or self.skipped.get(row, "not chosen this time")
                lines.append(f"| {row} | {fault} | not run: {why} | 0 | |")
        return lines

    def summary(self) -> str:
        """Return the table's last words."""
        rows = {row for row, _ in self.tried}
        tried, survived = sum(self.tried.values()), sum(self.survived.values())
        return f"{len(rows)} of {len(ROWS)} rows tried; {tried:,} faults, {survived:,} survived"


class Plugin:
    """Collects the marks, and prints the table at the end."""

    def __init__(self, write: bool):
        self.tally, self.write = Tally(), write

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test that has run, or failed before it could; `tests/conftest.py` lets it carry its rows."""
        if report.failed:  # half an hour is long to wait for a reason
            print(f"\n{report.nodeid}, {report.when}:\n{report.longreprtext}", file=sys.stderr, flush=True)
        if report.skipped:
            self.tally.skip(report.user_properties, report.longrepr)
        elif report.when == "call" or (report.when == "setup" and report.failed):
            self.tally.add(report.user_properties, report.passed)
        elif report.failed:  # what a fixture found afterwards
            self.tally.take_back(report.user_properties)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the table; write it if asked to."""
        table = "\n".join([HEAD, *self.tally.lines()])
        terminalreporter.write_line(f"\n{table}\n\n{self.tally.summary()}")
        if self.write:
            text = f"{INTRODUCTION}\n{stamp()}: {self.tally.summary()}.\n\n{table}\n"
            (HERE / "README.md").write_text(text, encoding="utf-8")


def stamp() -> str:
    """Return today's date and the commit that was tried."""
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return f"{datetime.now(UTC):%Y-%m-%d}, commit {commit or 'unknown'}"
