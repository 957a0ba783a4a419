"""How many workers keep this machine busy: a process for every `threads` cores, and no more than fit on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

from kdbench.run.clock import PEAK_GPU
from kdbench.run.jobs import Job
from kdbench.run.orchestrate import Plan
from kdbench.run.predict import peak_bytes

GPU_SHARE = 0.9  # of the memory that is free before the run: an estimate is one
CONTEXT_BYTES = 700 * 2**20  # of a process on a GPU before any tensor: its context and libraries


def size(plan: Plan, jobs: Sequence[Job]) -> int:
    """Return the number of workers for these jobs."""
    runtime = plan.planner.runtime
    most = max(1, _cores() // runtime.threads)
    if runtime.device == "cpu":
        return most
    if runtime.device != "cuda" or any(job.processes for job in jobs):  # those take all GPUs for one cell
        return 1
    import torch

    free, _ = torch.cuda.mem_get_info()
    return fitting(free, largest(plan, jobs), most)


def fitting(free: float, each: float, most: int) -> int:
    """Return how many workers of `each` bytes fit into `free` bytes of a GPU, one at least."""
    return max(1, min(most, int(GPU_SHARE * free // (each + CONTEXT_BYTES))))


def largest(plan: Plan, jobs: Sequence[Job]) -> int:
    """Return the most bytes that one of the jobs takes: as measured in a cell of its models, else as predicted."""
    measured: dict[tuple[str | None, str | None], int] = {}
    for one in plan.cells:
        found = plan.done.get(one.job.id, {}).get("timing", {}).get(PEAK_GPU)
        if found and one.cell.spec is not None:
            place = one.cell.student, one.cell.teacher
            measured[place] = max(measured.get(place, 0), found * 2**20)
    counted = plan.planner.count_parameters()

    def bytes_of(job: Job) -> int:
        cell = job.cell if job.cell is not None and job.cell.spec is not None else None
        seen = measured.get((cell.student, cell.teacher)) if cell else None
        return seen or peak_bytes(plan, job, counted)

    return max(map(bytes_of, jobs), default=0)


def _cores() -> int:
    import psutil

    process = psutil.Process()
    return len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1
