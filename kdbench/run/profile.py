"""Where the time of one cell goes: its own maker, run for some steps on its own inputs, with the parts timed.

Reads the store and never changes it: what the measured cell would write goes to a temporary folder.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from kdbench.distill.loss import chunk_size
from kdbench.distill.models import head, load
from kdbench.distill.timing import collect
from kdbench.errors import ConfigError
from kdbench.registry import objective
from kdbench.run import orchestrate
from kdbench.run.clock import Clock
from kdbench.run.jobs import Job
from kdbench.run.store import Entry, Store
from kdbench.run.work import Hooks, Work

WARM_STEPS = 3  # allocators, kernels and file caches settle; these steps are not counted


@dataclass(frozen=True)
class Profile:
    """What a cell's step costs, in the mean.

    Attributes:
        parts_ms: milliseconds of a step by part, the longest first; they add up to `step_ms`.
        teacher_head_ms: how long the teacher's head alone takes for a step's tokens, measured apart; it is a part of
            the loss. None for objectives that read no teacher.
        load_s, examine_s: seconds of loading the student and of the whole examination, once a cell.
    """

    title: str
    key: str
    device: str
    steps: int
    step_ms: float
    parts_ms: dict[str, float]
    teacher_head_ms: float | None
    load_s: float
    examine_s: float

    def as_json(self) -> dict[str, Any]:
        """Return plain data, with each part's share of the step."""
        return vars(self) | {"shares": {name: round(ms / self.step_ms, 4) for name, ms in self.parts_ms.items()}}


def profile(plan: orchestrate.Plan, store: Store, asked: str, steps: int) -> Profile:
    """Take `steps` steps of a cell, after a few that are not counted, and examine what comes out.

    Args:
        asked: the beginning of a cell's key, or a choice such as `objective=kl,seed=0`.

    Raises:
        ConfigError: no cell or several fit, the cell trains nothing, or an input is not in the store.
    """
    job = find(plan, asked)
    if job.cell is None or job.cell.spec is None:
        raise ConfigError(f"--cell {asked}: {job.title} is examined as it is and takes no steps; choose another cell")
    _check_inputs(job, store)
    torch.set_num_threads(job.inputs["threads"])
    _import_what_a_worker_has()
    count = WARM_STEPS + steps
    inputs = job.inputs | {"train": job.inputs["train"] | {"steps": count, "checkpoint_steps": count}}
    with TemporaryDirectory(prefix="kdbench-profile-") as folder, collect() as seconds:
        ticks = _Ticks(seconds, count)
        work = Work(store, Entry(Path(folder) / job.key), inputs, job.context, Hooks(ticks.event), Clock())
        from kdbench.run.makers import make_cell

        make_cell(work)
        return _summary(job, steps, ticks, work, _teacher_head_ms(work))


@dataclass
class _Ticks:
    """Listens to a training: notes when the counted steps began and ended, and each part's seconds between."""

    seconds: dict[str, float]
    count: int
    taken: int = 0
    begin: float = 0.0
    total: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)

    def event(self, event: dict[str, Any]) -> None:
        if event["event"] != "step":
            return
        self.taken += 1
        if self.taken == WARM_STEPS:
            self.seconds.clear()
            self.begin = time.perf_counter()
        elif self.taken == self.count:
            self.total, self.parts = time.perf_counter() - self.begin, dict(self.seconds)


def _summary(job: Job, steps: int, ticks: _Ticks, work: Work, head_ms: float | None) -> Profile:
    step_ms = 1000 * ticks.total / steps
    parts = {name: 1000 * value / steps for name, value in ticks.parts.items()}
    parts["the rest"] = max(0.0, step_ms - sum(parts.values()))
    ordered = {name: round(ms, 3) for name, ms in sorted(parts.items(), key=lambda pair: -pair[1])}
    clock = work.clock.parts
    return Profile(
        job.title, job.key, work.runtime.device, steps, round(step_ms, 3), ordered, head_ms,
        clock["load_s"], clock["examine_s"],
    )  # fmt: skip


def _import_what_a_worker_has() -> None:
    """Pay for imports now: a worker pays once, and no step should."""
    import lm_eval.evaluator
    import lm_eval.models.huggingface  # noqa: F401
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def find(plan: orchestrate.Plan, asked: str) -> Job:
    """Return the job of the one cell that is asked for.

    Raises:
        ConfigError: none or several fit; it names some that would.
    """
    if "=" in asked:
        only = orchestrate.parse_only(_selectors(asked), plan.suite)
        found = [one.job for one in plan.cells if orchestrate.is_chosen(one.cell, only)]
        if "objective" not in only:
            found = [job for job in found if job.cell is not None and job.cell.spec is not None]
    else:
        found = [one.job for one in plan.cells if one.job.key.startswith(asked)]
    if len(found) == 1:
        return found[0]
    some = "; ".join(f"{job.key[:8]} {job.title}" for job in (found or [one.job for one in plan.cells])[:8])
    raise ConfigError(
        f"--cell {asked}: expected one cell of the suite, found {len(found) or 'none'}. There are: {some}"
    )


def _selectors(asked: str) -> list[str]:
    """Split `objective=kl,seed=0` into what `--only` is given one by one."""
    choices: list[str] = []
    for piece in asked.split(","):
        if "=" in piece or not choices:
            choices.append(piece)
        else:
            choices[-1] += f",{piece}"
    return choices


def _check_inputs(job: Job, store: Store) -> None:
    missing = [need for need in job.needs if (store.entry(*need.split("/")).done() or {}).get("status") != "ok"]
    if missing:
        arm = job.cell.arm if job.cell else ""
        raise ConfigError(
            f"{job.title}: expected its inputs in {store.root}, found no {', '.join(missing)}. Make them first: "
            f"kdbench run SUITE --only objective={arm}"
        )


def _teacher_head_ms(work: Work) -> float | None:
    """Time the teacher's logits of one step's tokens, in chunks of the loss."""
    from kdbench.run.makers import model_folder

    if "teacher" not in work.inputs or not objective(work.inputs["objective"]).reads_teacher:
        return None
    model = load(model_folder(work.store, work.inputs["teacher"]), work.runtime)
    weight = head(model, model.config.vocab_size).detach()
    plan, length = work.inputs["train"], work.store.entry("texts", work.inputs["text"]).done() or {}
    tokens = plan["batch_rows"] * (length["length"] - 1)
    hidden = torch.ones(tokens, weight.shape[1], device=weight.device)
    size = chunk_size(weight)
    room = weight.new_empty(size, weight.shape[0])
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        for some in hidden.split(size):
            torch.mm(some, weight.t(), out=room[: len(some)])[0, 0].item()
        times.append(time.perf_counter() - begin)
    return round(1000 * sorted(times)[2], 3)
