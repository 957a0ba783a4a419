"""Where a crash can be planned: the named moments just before, or after, kdbench changes something that lasts.

`KDBENCH_FAILPOINT=name:N[:action]` does `action` when the process comes to that moment for the N-th time; `any` counts
all moments together. Unset, a moment costs one comparison with None. This is how the fault matrix is run, and how a
person tries what a full disk or a preempted machine would do to a run of theirs.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from kdbench.errors import ConfigError, did_you_mean

VARIABLE = "KDBENCH_FAILPOINT"
ANY = "any"
NAMES = {
    "write": "before a file is written to its temporary name",
    "synced": "its bytes are on the disk, its name is not",
    "replaced": "the file stands under its name",
    "begin": "before an entry's damaged or failed leavings are dealt with",
    "step": "an optimiser step was taken",
    "checkpoint": "before a checkpoint is written",
    "prune": "before a checkpoint that is no longer needed is dropped",
    "shard": "before a shard of a teacher's cache or text is made",
    "rollout": "before text is generated",
    "weights": "before a trained model is saved",
    "examine": "before a student is examined",
    "commit": "before an entry's files are summed up",
    "done": "before DONE.json is written",
    "drop": "an entry is complete, its checkpoints are still there",
    "set_aside": "before what is damaged is renamed out of the way",
    "removed": "an entry that is to go has lost its name, its files are still there",
    "database": "MLflow's new database is built, and not under its name yet",
    "export": "before a finished cell is written to MLflow",
}
ACTIONS = "kill, term, exit, crash, raise:ENOSPC (or another errno), sleep:SECONDS"


class Crash(BaseException):
    """What the action `crash` raises: an end of the process that no handler of ours may survive, for tests."""


@dataclass
class _Armed:
    """A failpoint that waits for its moment."""

    name: str
    number: int
    action: str
    argument: str
    seen: int = 0


_armed: _Armed | None = None


def hit(name: str) -> None:
    """Say that the process has come to a moment of `NAMES`."""
    if _armed is not None and _armed.name in (name, ANY):
        _armed.seen += 1
        if _armed.seen == _armed.number:
            _act(_armed)


def arm_from_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Arm what `KDBENCH_FAILPOINT` asks for, if it is set.

    Raises:
        ConfigError: unknown moment, number or action.
    """
    global _armed
    if text := environment.get(VARIABLE):
        _armed = parse(text)


@contextmanager
def armed(text: str) -> Iterator[_Armed]:
    """Arm a failpoint inside a `with`; it yields what is armed, whose `seen` counts the moments."""
    global _armed
    before, _armed = _armed, parse(text)
    try:
        yield _armed
    finally:
        _armed = before


def parse(text: str) -> _Armed:
    """Read `name:N[:action[:argument]]`; the action is `kill` where none is given.

    Raises:
        ConfigError: unknown moment, number or action.
    """
    name, number, action, argument = (*text.split(":", 3), "", "", "")[:4]
    where = f"{VARIABLE}={text[:80]}"
    if name not in (*NAMES, ANY):
        raise ConfigError(f"{where}: expected NAME:N[:ACTION], found the name {name!r}.{did_you_mean(name, NAMES)}")
    if not (number.isascii() and number.isdigit() and int(number)):
        raise ConfigError(f"{where}: expected a count from 1 on after the name, found {number!r}")
    action = action or "kill"
    known = action in ("kill", "term", "exit", "crash") and not argument
    known |= action == "raise" and argument in errno.errorcode.values()
    known |= action == "sleep" and argument.replace(".", "", 1).isdecimal()
    if not known:
        found = f"{action}:{argument}" if argument else action
        raise ConfigError(f"{where}: expected an action of {ACTIONS}; found {found!r}")
    return _Armed(name, int(number), action, argument)


def _act(point: _Armed) -> None:
    if point.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif point.action == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    elif point.action == "exit":
        os._exit(70)
    elif point.action == "sleep":
        time.sleep(float(point.argument))
    elif point.action == "raise":
        number = getattr(errno, point.argument)
        raise OSError(number, os.strerror(number))
    else:
        raise Crash(f"{point.name}, time {point.number}")
