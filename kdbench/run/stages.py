"""Run a plan to its end: trials by which settings are chosen, the cells that use them, those that get others' time.

A suite without `tune:` or `equal_time` has one stage. Each stage is planned anew from what the store holds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from kdbench.errors import Interrupted
from kdbench.run import cluster, crew, equal_time, mend, orchestrate, predict, quota, tuning
from kdbench.run.agenda import Outcome
from kdbench.run.display import Display
from kdbench.run.exporter import Exporter
from kdbench.run.jobs import Job
from kdbench.run.store import Store
from kdbench.suite.external import ABSENT


@dataclass(frozen=True)
class Order:
    """What is to be run, and how.

    Attributes:
        only: chosen cells, as `orchestrate.parse_only` gives them.
        overrides: `--set` options, noted in plan.json.
        workers: processes; None: as many as keep this machine busy.
        meanwhile: done once in a thread of its own while the workers are busy.
        cluster: where Ray is to place the jobs; None: worker processes of this machine make them.
        patience_s: seconds without a sign of life after which a worker is stopped; None: as `watchdog.Watch` says.
    """

    plan: Callable[[], orchestrate.Plan]
    store: Store
    only: dict[str, set[str]]
    overrides: Sequence[str]
    workers: int | None
    mlflow: bool
    meanwhile: Callable[[], None]
    cluster: cluster.Where | None = None
    patience_s: float | None = None


@dataclass
class Ran:
    """How a run ended: number of jobs, reasons and titles of what failed or diverged, prediction and fact.

    Attributes:
        store_failed: whether the results folder is why something failed: full, not to be written, damaged.
    """

    jobs: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    store_failed: bool = False
    diverged: list[str] = field(default_factory=list)
    costs: dict[str, Any] | None = None
    exporter: Exporter | None = None

    def close(self, artifacts: Iterable[Path]) -> None:
        """End the MLflow run, if there is one."""
        if self.exporter:
            self.exporter.close("FAILED" if self.failed else "FINISHED", artifacts)

    def give_up(self, error: BaseException) -> None:
        """End the MLflow run as one that did not come to its end."""
        if self.exporter:
            self.exporter.close("KILLED" if isinstance(error, Interrupted | KeyboardInterrupt) else "FAILED", [])


def run(order: Order) -> Ran:
    """Run all stages.

    Raises:
        Interrupted: on request, after saving.
        ConfigError, StoreError: before anything is written, or where something has changed between the stages.
    """
    return _Run(order).run()


class _Run:
    """One invocation, over its stages."""

    def __init__(self, order: Order):
        self.order = order
        self.console = Console(stderr=True)
        self.ran = Ran()
        self.done: dict[str, Any] = {}
        self.failed: dict[str, str] = {}
        self.foreseen: list[predict.Prediction] = []
        self.took_s = 0.0
        self.placement: cluster.Placement | None = None

    def run(self) -> Ran:
        order = self.order
        plan = self._whole(order.plan())
        jobs = plan.to_run(order.only)
        quota.check(plan.suite.teacher.max_gb, caches(plan, jobs), order.store)
        order.store.prepare()
        try:
            with cluster.connected(order.cluster, plan.planner.runtime, order.store.root, self._say) as self.placement:
                plan = self._stages(plan, jobs)
        except BaseException as error:
            self.ran.give_up(error)
            raise
        self._conclude(plan)
        return self.ran

    def _whole(self, plan: orchestrate.Plan) -> orchestrate.Plan:
        """Set aside what is damaged of the finished cells; return the plan as it then stands."""
        said = mend.set_aside([cell for cell in plan.cells if cell.state in orchestrate.FINAL], self.order.store)
        for line in said:
            self._say(line)
        return self.order.plan() if said else plan

    def _stages(self, plan: orchestrate.Plan, jobs: list[Job]) -> orchestrate.Plan:
        """Run the jobs, then what waits for them; return the plan as it then stands."""
        tried: set[str] = set()
        self._stage(plan, jobs)
        while jobs and plan.waiting(self.order.only):
            tried |= {job.id for job in jobs if job.kind == "cells"}
            plan = self.order.plan()
            jobs = [job for job in plan.to_run(self.order.only) if job.id not in tried and ABSENT not in job.inputs]
            self._stage(plan, jobs)
        return plan

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _stage(self, plan: orchestrate.Plan, jobs: list[Job]) -> None:
        order = self.order
        tuning.keep(plan.tuned, order.store)
        equal_time.keep(plan.timed, order.store)
        content = orchestrate.write_plan(plan, order.store, order.overrides)
        own = self.placement.slots if self.placement else None
        workers = order.workers or own or crew.size(plan, jobs)
        foresight = Foresight(plan, jobs, workers)
        self._announce(plan, jobs, workers)
        began = time.monotonic()
        outcome = self._execute(plan, jobs, workers, foresight, content) if jobs else self._nothing(plan, workers)
        self.done |= outcome.done
        self.failed = {key: why for key, why in (self.failed | outcome.failed).items() if key not in outcome.done}
        self.ran.store_failed |= bool(outcome.of_the_store & self.failed.keys())
        self.ran.jobs += len(jobs)
        if found := foresight.result():
            self.foreseen.append(found)
            self.took_s += time.monotonic() - began

    def _nothing(self, plan: orchestrate.Plan, workers: int) -> Outcome:
        return orchestrate.run(plan, self.order.store, [], workers, [])

    def _execute(
        self, plan: orchestrate.Plan, jobs: list[Job], workers: int, foresight: Foresight, content: dict[str, Any]
    ) -> Outcome:
        order = self.order
        if self.ran.exporter:
            self.ran.exporter.follow(content)
        elif order.mlflow:
            self.ran.exporter = Exporter(order.store, content, self._say)
        if not self.ran.jobs:
            threading.Thread(target=order.meanwhile, daemon=True).start()
        foresight.start()
        with Display(self.console, len(jobs), plan.suite.train.batch_tokens, foresight.left_s) as display:
            listeners = [display, self.ran.exporter] if self.ran.exporter else [display]
            return orchestrate.run(plan, order.store, jobs, workers, listeners, self.placement, order.patience_s)

    def _announce(self, plan: orchestrate.Plan, jobs: list[Job], workers: int) -> None:
        chosen = {job.id for job in jobs}
        for entry in plan.cells:
            if entry.job.id in chosen and entry.why != "new":
                self.console.print(f"{entry.cell.title}: {entry.why}", highlight=False, markup=False)
        done = sum(entry.state in orchestrate.FINAL for entry in plan.cells)
        trials = sum(job.cell is not None and job.cell.trial for job in jobs)
        later = len(plan.waiting(self.order.only))
        first = f"{trials} trials of the tuning, then {later} cells; " if trials and later else ""
        first = first or (f"{later} cells follow when the time of others is known; " if later else "")
        self.console.print(
            f"{plan.suite.name}: {first}{len(plan.cells)} cells, {done} done; "
            f"{len(jobs)} jobs to run on {workers} workers",
            highlight=False,
            soft_wrap=True,
        )

    def _conclude(self, plan: orchestrate.Plan) -> None:
        jobs = plan.planner.jobs
        self.ran.failed = {jobs[key].title: why for key, why in self.failed.items() if key in jobs}
        for entry in plan.waiting(self.order.only):
            self.ran.failed[entry.cell.title] = "not started: cells that its settings follow from have not ended"
        diverged = [jobs[key] for key, done in self.done.items() if key in jobs and done["status"] == "diverged"]
        self.ran.diverged = [job.title for job in diverged if not (job.cell and job.cell.trial)]  # a trial may diverge
        if self.foreseen:
            whole = predict.Prediction.together(self.foreseen)
            self.ran.costs = predict.record(plan, self.order.store, whole, self.took_s, self.done)


class Foresight(threading.Thread):
    """Predicts what a stage will cost while its workers start.

    No daemon: torch aborts a process that ends while it computes in a thread of it.
    """

    def __init__(self, planned: orchestrate.Plan, jobs: list[Job], workers: int):
        super().__init__()
        self.planned, self.jobs, self.workers = planned, jobs, workers
        self.found: predict.Prediction | None = None

    def run(self) -> None:
        """Calibrate and predict."""
        with suppress(Exception):  # a prediction is a courtesy: without one the run goes on as it is
            self.found = predict.predict(self.planned, self.jobs, self.workers, self.planned.planner.count_parameters())

    def left_s(self, ended: Set[str], elapsed_s: float) -> float | None:
        """Return the seconds left, if a prediction is there yet."""
        return self.found.left_s(ended, elapsed_s) if self.found else None

    def result(self) -> predict.Prediction | None:
        """Wait for the prediction, where one was begun."""
        if self.ident is not None:
            self.join()
        return self.found


def caches(
    planned: orchestrate.Plan, jobs: Sequence[Job], parameters: Mapping[str, int] | None = None
) -> list[quota.Planned]:
    """Return the teacher caches of a plan with their bytes, those to be made among them."""
    chosen = {job.id for job in jobs}
    found = [job for job in planned.jobs if job.kind == "teacher_cache"]
    if not any(job.id in chosen for job in found):
        return []
    counted = parameters or planned.planner.count_parameters()
    return [
        quota.Planned(job.title, job.key, predict.price(planned, job, counted).cache_bytes, job.id in chosen)
        for job in found
    ]
