"""The far end of a Ray task: one job, made on whatever node was chosen. Light until the environment is set."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPORT_S = 0.5
VISIBLE_S = 5.0  # a network file system may show a new file late
PACKAGES = ("kdbench", "torch", "transformers", "tokenizers", "lm_eval")


class Board:
    """An actor beside the parent: events in, a stop code out (0: go on)."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.code = 0

    def report(self, job: str, events: list[dict[str, Any]]) -> int:
        """Take a job's events; return the stop code."""
        self.events += [(job, event) for event in events]
        return self.code

    def drain(self) -> list[tuple[str, dict[str, Any]]]:
        """Return what has come since the last time, as job id and event."""
        found, self.events = self.events, []
        return found

    def stop(self, code: int) -> None:
        """Ask every job to save and end."""
        self.code = code


class Line:
    """A job's line to the board: events go out in batches, and every batch brings the stop code back.

    Args:
        report: sends events, returns the stop code.
    """

    def __init__(self, report: Callable[[list[dict[str, Any]]], int]):
        self.report = report
        self.events: list[dict[str, Any]] = []
        self.code, self.last = 0, 0.0

    def tell(self, event: dict[str, Any]) -> None:
        """Send one event, soon."""
        self.events.append(event)
        self.should_stop()

    def should_stop(self) -> int:
        """Return the stop code, at most REPORT_S old."""
        return self.flush() if time.monotonic() - self.last >= REPORT_S else self.code

    def flush(self) -> int:
        """Send what is waiting."""
        events, self.events = self.events, []
        self.code, self.last = self.report(events), time.monotonic()
        return self.code


def installed() -> dict[str, str]:
    """Return the versions that must be the same on every node, since keys name them once."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {"python": python} | {name: version(name) for name in PACKAGES}


def make(settings: dict[str, Any], job: dict[str, Any], board: Any) -> dict[str, Any]:
    """Make one job; return how it ended, as an event: finished, failed, busy or interrupted.

    Args:
        settings: store, threads, objective folders, environment, versions, and a file that must be seen from here.
        board: the handle of the Board.
    """
    import ray

    line = Line(lambda events: ray.get(board.report.remote(f"{job['kind']}/{job['key']}", events)))
    if line.flush():
        return {"event": "interrupted", "message": "stopped before it began"}
    if problem := _unfit(settings):
        return {"event": "failed", "message": problem, "exit_code": 2}
    os.environ |= settings["environment"]  # before torch is imported
    line.tell({"event": "started", "worker": f"{platform.node()}:{os.getpid()}"})
    from kdbench.run.worker import serve

    ended = serve(_prepared(settings["store"], settings["threads"], tuple(settings["folders"])), job, line.tell,
                  line.should_stop)  # fmt: skip
    line.flush()
    return ended


def _unfit(settings: dict[str, Any]) -> str:
    """Say why this node cannot make jobs; '' if it can."""
    here, ours = platform.node(), installed()
    differ = [f"{name} {ours[name]}, not {wanted}" for name, wanted in settings["versions"].items()
              if ours.get(name) != wanted]  # fmt: skip
    if differ:
        return f"node {here} has {'; '.join(differ)}: expected the same installation on every node"
    until = time.monotonic() + VISIBLE_S
    while not Path(settings["probe"]).exists():
        if time.monotonic() > until:
            return f"node {here} does not see {settings['store']}: expected one results folder that every node shares"
        time.sleep(0.2)
    return ""


@cache
def _prepared(store: str, threads: int, folders: tuple[str, ...]) -> Any:
    from kdbench.run.worker import prepare

    return prepare({"store": store, "threads": threads, "folders": folders})
