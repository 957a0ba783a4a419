"""Notice a job that hangs: no sign of life for longer than its own pace allows.

A sign of life is an event of the job (a step, a shard, a stage, a forward pass of an examination), or, while its pace
is not known yet, work of its process: a first step, a download or a large text may take long, and yet go on. Not for
ever: what works WORKS times as long as it may be silent, without one event, turns round and round.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kdbench.errors import Interrupted

if TYPE_CHECKING:
    from torch import nn

    from kdbench.run.work import Hooks

FLOOR_S = 900.0  # nobody is called hung before
PACES = 50  # median steps or shards
WORKS = 24
MEASURED = 3  # steps or shards by which a pace is known
BUSY = 0.005  # share of one core by which a process counts as working; a slow download takes as little
TICKS_S = 0.05  # that much says nothing: the system counts in hundredths
AWAY_S = 30.0  # without a look: the watcher itself was stopped or busy, so its clock says nothing
BEAT_S = 1.0
ALIVE = "alive"  # the event that says nothing else


class Watch:
    """Watches one job in one process.

    Args:
        patience_s: seconds without a sign of life that end it; None: FLOOR_S, or PACES of its steps if that is longer.
        cpu_s: returns the CPU seconds that the process has used so far.
        clock: monotonic, in seconds.
    """

    def __init__(
        self, patience_s: float | None, cpu_s: Callable[[], float], clock: Callable[[], float] = time.monotonic
    ):
        self.patience_s, self.cpu_s, self.clock = patience_s, cpu_s, clock
        self.stage, self.step = "", 0
        self.gaps: deque[float] = deque(maxlen=200)
        self.stepped: float | None = None
        self.looked = self.last = self.heard = clock()
        self.used_s: float | None = None  # at the last sign of life; None until it is looked up

    def see(self, event: dict[str, Any]) -> None:
        """Take an event of the job."""
        now, kind = self.clock(), event["event"]
        if kind == "stage":
            self.stage, self.stepped = event["stage"], None
            self.gaps.clear()
        elif kind in ("step", "progress"):
            if self.stepped is not None:
                self.gaps.append(now - self.stepped)
            self.stepped, self.step = now, event.get("step", event.get("done", 0))
        self.last = self.heard = now
        self.used_s = None

    @property
    def limit_s(self) -> float:
        """Return the seconds of silence that are allowed."""
        if self.patience_s is not None:
            return self.patience_s
        return max(FLOOR_S, PACES * statistics.median(self.gaps) if self.gaps else 0.0)

    def silence(self) -> str:
        """Look once; return in words for how long and where nothing has been heard, '' while all is well."""
        now = self.clock()
        silent_s, away_s, self.looked = now - self.last, now - self.looked, now
        if self.used_s is None:
            self.used_s = self.cpu_s()
        if silent_s <= self.limit_s:
            return ""
        if away_s > AWAY_S:
            self.heard = now
        unheard_s = now - self.heard
        at_work = len(self.gaps) < MEASURED and unheard_s <= WORKS * self.limit_s and self._worked(silent_s)
        if away_s > AWAY_S or at_work:
            self.last, self.used_s = now, None
            return ""
        return f"no sign of life for {unheard_s:,.0f} s, {self.where()}"

    def _worked(self, silent_s: float) -> bool:
        return self.cpu_s() - (self.used_s or 0.0) > max(TICKS_S, BUSY * silent_s)

    def where(self) -> str:
        """Return in words how far the job had come."""
        stage = f"in stage {self.stage!r}" if self.stage else "in no named stage"
        return f"{stage} after step {self.step}" if self.step else f"{stage}, before any step"


def cpu_of(pid: int) -> Callable[[], float]:
    """Return what asks the system for the CPU seconds of a process; one that is gone has used none."""
    import psutil

    def seconds() -> float:
        try:
            used = psutil.Process(pid).cpu_times()
        except psutil.Error:
            return 0.0
        return used.user + used.system

    return seconds


@contextmanager
def beating(model: nn.Module, hooks: Hooks) -> Iterator[None]:
    """While inside, let forward passes of `model` be signs of life, and moments at which a stop is obeyed.

    For work between whose beginning and end a foreign library is in charge.

    Raises:
        Interrupted: from a forward pass, when asked to stop.
    """
    told = time.monotonic()

    def beat(*_: object) -> None:
        nonlocal told
        if code := hooks.should_stop():
            raise Interrupted("stopped; what was being examined or read is begun again by the next run", code)
        if time.monotonic() - told >= BEAT_S:
            told = time.monotonic()
            hooks.emit({"event": ALIVE})

    watched = {id(module): module for module in (model, getattr(model, "base_model", model))}
    handles = [module.register_forward_pre_hook(beat) for module in watched.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
