"""Wall-clock facts: they lie in DONE.json under `timing`, and in nothing that is compared."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PEAK_GPU = "peak_gpu_mib"  # in a cell's timing, where a GPU was used
MOST = 1e15  # of what is timed or counted; NaN is not below it either


def train_seconds(done: dict[str, Any]) -> float | None:
    """Return the seconds of a whole training, from DONE.json.

    One that was resumed timed its last part alone: from that the whole is worked out. None where no step was timed.
    """
    timing = done["timing"]
    took, timed, steps = timing.get("train_s"), timing.get("train_steps"), done.get("steps")
    if not took or timed == 0:
        return None
    return round(took * steps / timed, 3) if timed and steps else took


class Clock:
    """Wall-clock facts of one job: a start as Unix time, durations from the monotonic clock."""

    def __init__(self) -> None:
        self.started_at = round(time.time(), 3)
        self._start = time.monotonic()
        self.parts: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside to `name`."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.parts[name] = round(self.parts.get(name, 0.0) + time.monotonic() - begin, 3)

    def count(self, name: str) -> None:
        """Add one to `name`: of what was timed, since a job that goes on from a checkpoint times only the rest."""
        self.counts[name] = self.counts.get(name, 0) + 1

    def facts(self) -> dict[str, Any]:
        """Return everything, with the process's peak memory in MiB as the OS sees it."""
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        total = round(time.monotonic() - self._start, 3)
        facts = {"started_at": self.started_at, "wall_s": total, **self.parts, **self.counts}
        return facts | {"peak_rss_mib": round(peak)} | _gpu_peak()


def _gpu_peak() -> dict[str, int]:
    """Return the most MiB of a GPU that torch has held in this process since the last question; {} where none was."""
    torch = sys.modules.get("torch")  # nothing is imported for this
    if torch is None or not torch.cuda.is_initialized():
        return {}
    peak = torch.cuda.max_memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    return {PEAK_GPU: round(peak / 2**20)}


def are_numbers(timing: dict[str, Any]) -> bool:
    """Whether all values are numbers that a clock or a counter may show, or dicts of such."""
    return all(
        are_numbers(value) if isinstance(value, dict) else isinstance(value, int | float) and abs(value) < MOST
        for value in timing.values()
    )
