"""What a plan will cost, job by job, before it starts; and beside it, afterwards, what it did cost."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

from kdbench.api import Trajectories
from kdbench.distill.calibrate import Rates, calibrate
from kdbench.distill.layouts import LOGIT_ROWS
from kdbench.distill.memory import is_out_of_memory
from kdbench.errors import ConfigError, StoreError, one_line
from kdbench.files import SUM, read_json, sealed, write_json
from kdbench.registry import objective
from kdbench.run.agenda import ORDER
from kdbench.run.jobs import Job
from kdbench.run.orchestrate import Plan
from kdbench.run.store import Store
from kdbench.suite import cost, exam_items
from kdbench.suite.matrix import CEILING
from kdbench.suite.schema import Suite

# Seconds seen on one core of 2024; they matter for suites of minutes, not for those of hours.
WORKER_S = 16.0  # a worker's start: torch, transformers, lm-eval
JOB_S = 0.1  # locks, loading, hashing
CHECKPOINT_S = 0.02
ITEM_S = 6e-4  # lm-eval's own work on an item
MEGABYTE_S = 0.5  # tokenising
ELSEWHERE_ITEMS = 1000  # of an lm-eval task whose number is known only when its data is loaded


@dataclass(frozen=True)
class Predicted:
    """A job's seconds on one worker, and the peak memory of the process that makes it, in MiB."""

    seconds: float
    mib: int


@dataclass(frozen=True)
class Prediction:
    """Seconds of wall time on `workers` workers, and every job's share: job id → predicted."""

    seconds: float
    workers: int
    jobs: Mapping[str, Predicted]

    @staticmethod
    def together(parts: Sequence[Prediction]) -> Prediction:
        """Return what stages cost that run one after another."""
        jobs = {name: one for part in parts for name, one in part.jobs.items()}
        return Prediction(sum(part.seconds for part in parts), max(part.workers for part in parts), jobs)

    @property
    def mib(self) -> int:
        """Peak memory of all workers at once, at most."""
        return sum(sorted((one.mib for one in self.jobs.values()), reverse=True)[: self.workers])

    def left_s(self, ended: Set[str], elapsed_s: float) -> float:
        """Return the seconds left when these jobs have ended, `elapsed_s` after the start."""
        waiting = sum(one.seconds for name, one in self.jobs.items() if name not in ended)
        return max(0.0, WORKER_S - elapsed_s) + waiting / max(1, min(self.workers, len(self.jobs) - len(ended)))


def predict(plan: Plan, jobs: Sequence[Job], workers: int, parameters: Mapping[str, int]) -> Prediction:
    """Calibrate for a second or two, then predict. Writes nothing."""
    if not jobs:
        return Prediction(0.0, workers, {})
    suite, planner = plan.suite, plan.planner
    width = max((planner.hidden_size(name) for name in suite.teachers), default=0)
    smallest = min(suite.students, key=lambda name: parameters[name])
    specs = {str(entry["spec"]): entry["spec"] for entry in suite.objectives}
    length, objectives = suite.data.length, list(specs.values())
    try:
        rates = calibrate(planner.configs[smallest], width, planner.vocabulary, length, objectives, planner.runtime)
    except Exception as error:  # an architecture refuses a step in ways of its own, and would in every cell
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"models.{smallest}: expected a model that trains on rows of data.length = {length:,}, but a trial step "
            f"ended with {one_line(error)}; change its config, or data.length"
        ) from None
    model = _Model(plan, rates, parameters)
    found = {job.id: Predicted(model.seconds(job), round(peak_bytes(plan, job, parameters) / 2**20)) for job in jobs}
    return Prediction(
        WORKER_S + makespan(jobs, {name: one.seconds for name, one in found.items()}, workers), workers, found
    )


def makespan(jobs: Sequence[Job], seconds: Mapping[str, float], workers: int) -> float:
    """Return when the last job ends if the pool gives each free worker the first job whose needs are there."""
    waiting = sorted(jobs, key=lambda job: (ORDER.index(job.kind), -job.cost))
    ends: dict[str, float] = {}
    free = [0.0] * workers
    heapq.heapify(free)
    for job in waiting:  # inputs stand before what needs them, so that their ends are known
        begin = max([heapq.heappop(free), *(ends.get(need, 0.0) for need in job.needs)])
        ends[job.id] = begin + seconds[job.id]
        heapq.heappush(free, ends[job.id])
    return max(ends.values(), default=0.0)


@dataclass(frozen=True)
class _Model:
    """The cost model: measured rates, carried over to other sizes by their parameters and layers."""

    plan: Plan
    rates: Rates
    parameters: Mapping[str, int]

    def seconds(self, job: Job) -> float:
        """Return a job's seconds on one worker."""
        suite, tokens = self.plan.suite, self.plan.planner.distillation_tokens()
        if job.kind in ("tokenizers", "texts"):
            size = sum(len(document.text) for document in self.plan.planner.documents)
            return JOB_S + MEGABYTE_S * size / 1e6
        if job.kind == "models" and (made := _training(job)):
            return JOB_S + self._training(job.context["name"], made, "sft", None)
        if job.kind == "teacher_cache":
            return JOB_S + tokens * self._forward(job.context["teacher"])
        if job.kind == "teacher_texts":
            return JOB_S + self._writing(tokens, job.context["teacher"], 64)
        if job.kind != "cells" or job.cell is None:
            return JOB_S
        cell = job.cell
        subject = str(cell.teacher if cell.arm == CEILING else cell.student)
        items = examined(suite, job)
        read = items * cost.ITEM_TOKENS + suite.examine.intrinsic_tokens
        found = JOB_S + items * ITEM_S + read * self._forward(subject)
        if cell.spec is None:
            return found
        if cell.teacher:
            found += suite.examine.intrinsic_tokens * self._forward(cell.teacher)
        live = cell.teacher if job.inputs.get("signal") == "live" else None
        found += self._training(subject, job.inputs["train"], objective(cell.spec).label, live)
        read = self._read(job.inputs["train"])
        written = written_tokens(objective(cell.spec).trajectories, read)
        return found + (self._writing(written, subject, job.inputs["train"]["batch_rows"]) if written else 0.0)

    def _read(self, settings: Mapping[str, Any]) -> int:
        return settings["steps"] * settings["batch_rows"] * self.plan.suite.data.length

    def _training(self, name: str, settings: Mapping[str, Any], label: str, live: str | None) -> float:
        a_token = self.rates.token_s.get(label, max(self.rates.token_s.values())) * self._scale(name)
        a_token += self._forward(live) if live else 0.0
        saves = settings["steps"] / settings.get("checkpoint_steps", 50) * CHECKPOINT_S
        return settings["steps"] * self._step(name) + self._read(settings) * a_token + saves

    def _writing(self, tokens: int, name: str, rows: int) -> float:
        """Text is written a token of every row at a time: each costs the overhead of a forward pass."""
        return tokens * (self._forward(name) + self._step(name) / 3 / rows)

    def _scale(self, name: str) -> float:
        return self.parameters[name] / self.rates.parameters

    def _step(self, name: str) -> float:
        return self.rates.step_s * self.plan.planner.configs[name].num_hidden_layers / self.rates.layers

    def _forward(self, name: str) -> float:
        return self.rates.token_s["sft"] / 3 * self._scale(name)


def peak_bytes(plan: Plan, job: Job, parameters: Mapping[str, int]) -> int:
    """Return the peak memory that a job takes where its models live: the process's, or its share of a GPU."""
    cell, planner = job.cell, plan.planner
    device = planner.runtime.device
    if job.kind == "models" and (made := _training(job)):
        name, teacher, settings = job.context["name"], None, made
    elif cell is not None and cell.spec is not None:
        name, teacher, settings = str(cell.student), cell.teacher, job.inputs["train"]
    else:
        read = (cell.student or cell.teacher) if cell is not None else job.context.get("teacher")
        logits = 3 * 4 * LOGIT_ROWS * planner.vocabulary if job.kind == "teacher_cache" else 0
        return cost.base_bytes(device) + 4 * parameters.get(str(read), 0) + logits
    config = planner.configs[name]
    rows = settings.get("micro_batch") or settings["batch_rows"]
    return cost.memory(
        device, parameters[name], parameters[teacher] if teacher else 0, rows * plan.suite.data.length,
        config.num_hidden_layers, config.hidden_size, planner.vocabulary,
    )  # fmt: skip


def _training(job: Job) -> Mapping[str, Any] | None:
    """Return how a model is trained before the suite's objectives are, if it is."""
    return job.inputs.get("pretrain") or job.inputs.get("finetune")


def examined(suite: Suite, job: Job) -> int:
    """Return how many items a cell is examined on, a trial on those of the tuning."""
    trial = job.cell is not None and job.cell.trial
    told = job.inputs["examine"]
    asked = suite.examine.lm_eval if "elsewhere" in told else ()
    elsewhere = sum(exam_items.number(entry) or ELSEWHERE_ITEMS for entry in asked)
    return (suite.tune.items if trial and suite.tune else suite.examine.items) * len(told["tasks"]) + elsewhere


def price(plan: Plan, job: Job, parameters: Mapping[str, int]) -> cost.Cost:
    """Return a job's tokens, FLOP and bytes, from sizes alone."""
    suite, planner = plan.suite, plan.planner
    tokens = planner.distillation_tokens()
    if job.kind == "models":
        return cost.Cost(int(job.context.get("tokens", 0)), job.cost)
    if job.kind == "teacher_cache":
        teacher, told = job.context["teacher"], job.inputs
        layout, k = told.get("layout", "hidden"), told.get("k", 0)
        return cost.caching(parameters[teacher], tokens, planner.hidden_size(teacher), told["dtype"], layout, k)
    if job.kind != "cells" or job.cell is None:
        return cost.Cost()
    cell = job.cell
    subject = cell.teacher if cell.arm == CEILING else cell.student
    found = cost.examining(parameters[str(subject)], examined(suite, job))
    if cell.spec is None:
        return found
    read = job.inputs["train"]["steps"] * job.inputs["train"]["batch_rows"] * suite.data.length
    teacher, hidden = (parameters[cell.teacher], planner.hidden_size(cell.teacher)) if cell.teacher else (0, 0)
    student, live = parameters[str(cell.student)], job.inputs.get("signal") == "live"
    found += cost.distilling(student, teacher, hidden, planner.vocabulary, read, live)
    wanted = objective(cell.spec).trajectories
    judged = wanted.rollout is not None and wanted.rollout.by in ("mixed", "interleaved")
    return found + cost.writing(student, teacher if judged else 0, written_tokens(wanted, read))


def written_tokens(wanted: Trajectories, tokens: int) -> int:
    """Return how much text an objective has written, at most: as if every completion were as long as it may be."""
    if wanted.rollout is None:
        return 0
    return int(tokens * (0.5 if wanted.paired else wanted.chance * wanted.fresh) / wanted.reuse)


# --- the fact beside the prediction ---------------------------------------------------------------------------------


def record(plan: Plan, store: Store, foreseen: Prediction, took_s: float, done: Mapping[str, Any]) -> dict[str, Any]:
    """Write `suites/<name>/costs.json`: what was predicted, and what it was, for this run and for every job so far."""
    rows = {row["job"]: row for row in (costs(store, plan.suite.name) or {}).get("jobs", [])}
    rows = {name: row for name, row in rows.items() if name in plan.planner.jobs}
    for name, one in foreseen.jobs.items():
        if name in done:
            timing = done[name]["timing"]
            fact = {"took_s": timing["wall_s"], "peak_rss_mib": timing["peak_rss_mib"]}
            rows[name] = {"job": name, "title": plan.planner.jobs[name].title, **asdict(one), **fact}
    whole = {"predicted_s": round(foreseen.seconds, 1), "took_s": round(took_s, 1), "workers": foreseen.workers}
    content = {**whole, "cells_median_error": _median_error(rows), "jobs": list(rows.values())}
    write_json(store.suite_folder(plan.suite.name) / "costs.json", sealed(content))
    return content


def _median_error(rows: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Return the median of |predicted / took − 1| over the cells."""
    cells = [row for name, row in rows.items() if name.startswith("cells/") and row["took_s"]]
    return round(statistics.median(abs(row["seconds"] / row["took_s"] - 1) for row in cells), 3) if cells else None


def costs(store: Store, name: str) -> dict[str, Any] | None:
    """Return what `record` wrote, if it did and nobody has changed it since."""
    try:
        found = read_json(store.suite_folder(name) / "costs.json")
    except StoreError:
        return None
    if not isinstance(found, dict) or found != sealed(found):
        return None
    return {name: value for name, value in found.items() if name != SUM}


def in_words(found: Mapping[str, Any]) -> str:
    """Say in a line how good the prediction was."""
    line = f"predicted {cost.duration(found['predicted_s'])}, took {cost.duration(found['took_s'])}"
    error = found["cells_median_error"]
    return line + (f"; cells: median error {error:.0%}" if error is not None else "")
