"""What the commands do, between the command line and the parts that it joins: plan, run, and what is shown of them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.run import orchestrate, predict, quota
from kdbench.run.jobs import Job
from kdbench.run.store import Store
from kdbench.suite import cost
from kdbench.suite.schema import Suite


def plan(suite: Suite, base: Path, results_dir: Path, only: Sequence[str]) -> dict[str, Any]:
    """Return the matrix as plain data: models, cells with state and reason, cost of what is left. Writes nothing."""
    chosen = orchestrate.parse_only(only, suite)
    planned = orchestrate.plan(suite, base, Store(results_dir))
    parameters = planned.planner.count_parameters()
    jobs = planned.to_run(chosen)
    costs = {job.id: predict.price(planned, job, parameters) for job in jobs}
    quota.check(suite.teacher.max_gb, _caches(planned, jobs, parameters), Store(results_dir))
    total = sum(costs.values(), cost.Cost())
    runtime = planned.planner.runtime
    count = default_workers(runtime.device, runtime.threads)
    foreseen = predict.predict(planned, jobs, count, parameters)
    wanted = {job.id for job in jobs}
    return {
        "suite": suite.name,
        "question": suite.question,
        "device": runtime.device,
        "precision": runtime.precision,
        "models": [
            {"name": name, "parameters": count, "role": _role(suite, name)} for name, count in parameters.items()
        ],
        "cells": [_cell_row(entry, wanted, costs) for entry in planned.cells],
        "to_make": [{"kind": job.kind, "title": job.title, "key": job.key} for job in jobs if job.kind != "cells"],
        "tokens": total.tokens,
        "flop": total.flop,
        "cache_bytes": total.cache_bytes,
        "expected_seconds": round(foreseen.seconds, 1),
        "expected_peak_mib": foreseen.mib,
        "workers": count,
        "last_run": predict.costs(Store(results_dir), suite.name),
    }


def _role(suite: Suite, name: str) -> str:
    roles = [role for role, names in (("student", suite.students), ("teacher", suite.teachers)) if name in names]
    return " and ".join(roles)


def _cell_row(entry: orchestrate.PlannedCell, wanted: set[str], costs: dict[str, cost.Cost]) -> dict[str, Any]:
    cell, price = entry.cell, costs.get(entry.job.id, cost.Cost())
    names = {"objective": cell.arm, "student": cell.student, "teacher": cell.teacher, "seed": cell.seed}
    state = "done" if entry.state == "ok" else entry.state
    why = entry.why if entry.job.id in wanted or not entry.why else f"{entry.why}; not chosen by --only"
    return names | {"key": entry.job.key, "state": state, "why": why, "tokens": price.tokens, "flop": price.flop}


def _caches(
    planned: orchestrate.Plan, jobs: list[Job], parameters: dict[str, int] | None = None
) -> list[quota.Planned]:
    """Return the teacher caches of a plan with their bytes, those to be made among them."""
    chosen = {job.id for job in jobs}
    caches = [job for job in planned.jobs if job.kind == "teacher_cache"]
    if not any(job.id in chosen for job in caches):
        return []
    counted = parameters or planned.planner.count_parameters()
    return [
        quota.Planned(job.title, job.key, predict.price(planned, job, counted).cache_bytes, job.id in chosen)
        for job in caches
    ]


def default_workers(device: str, threads: int) -> int:
    """Return how many workers keep this machine busy: on CPU a process for every `threads` cores, else one."""
    import psutil

    if device != "cpu":
        return 1
    usable = (
        len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count() or 1
    )
    return max(1, usable // threads)


def print_plan(planned: dict[str, Any]) -> None:
    """Print a plan for a person."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(f"suite {planned['suite']}: {planned['question']}", highlight=False)
    models = Table("model", "role", "parameters", box=None, pad_edge=False)
    for model in planned["models"]:
        models.add_row(model["name"], model["role"], f"{model['parameters']:,}")
    console.print(models)
    table = Table("objective", "student", "teacher", "seed", "state", "why", box=None, pad_edge=False)
    for row in planned["cells"]:
        texts = [row["objective"], row["student"], row["teacher"], row["seed"], row["state"], row["why"]]
        table.add_row(*("" if text is None else str(text) for text in texts))
    console.print(table)
    for entry in planned["to_make"]:
        console.print(f"to make first: {entry['title']}", highlight=False)
    left = sum(1 for row in planned["cells"] if row["why"] and "not chosen" not in row["why"])
    console.print(
        f"{len(planned['cells'])} cells, {left} to run · {planned['tokens']:,} tokens · {planned['flop']:.2e} FLOP · "
        f"teacher cache {planned['cache_bytes'] / 1e6:,.1f} MB · about {predict.duration(planned['expected_seconds'])} "
        f"and {planned['expected_peak_mib']:,} MiB on {planned['device']} ({planned['precision']}), "
        f"{planned['workers']} workers",
        highlight=False,
    )


@dataclass
class RunResult:
    """What a run ends with."""

    suite: str
    results_dir: Path
    ran: int
    failed: dict[str, str]
    diverged: list[str]
    comparison: Any = None
    report: dict[str, Path] = field(default_factory=dict)
    why_no_verdict: str = ""
    costs: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "suite": self.suite,
            "results_dir": str(self.results_dir),
            "ran": self.ran,
            "failed": self.failed,
            "diverged": self.diverged,
            "comparison": self.comparison.to_json() if self.comparison else None,
            "report": {name: str(path) for name, path in self.report.items()},
            "costs": self.costs and {name: value for name, value in self.costs.items() if name != "jobs"},
        }

    def show(self) -> None:
        """Print the verdict and where everything is."""
        from kdbench.analysis import answer

        if self.comparison:
            answer.show(self.comparison)
        else:
            print(f"no verdict yet: {self.why_no_verdict}")
        for title, reason in self.failed.items():
            print(f"failed: {title}: {reason}")
        for title in self.diverged:
            print(f"diverged: {title}")
        places = {
            "report": self.report.get("report.html"),
            "results": self.results_dir,
            "students": self.results_dir / "cells" / "<key>" / "model",
            "lm-eval tasks": orchestrate.lm_eval_folder(Store(self.results_dir), self.suite),
        }
        print()
        for name, path in places.items():
            if path:
                print(f"{name:<14}{path}")
        if self.costs:
            print(f"{'cost':<14}{predict.in_words(self.costs)}")


def run(
    suite: Suite,
    base: Path,
    results_dir: Path,
    only: Sequence[str],
    overrides: Sequence[str],
    workers: int | None,
    mlflow: bool,
) -> RunResult:
    """Run what is not done, then compare and report."""
    chosen = orchestrate.parse_only(only, suite)
    store = Store(results_dir)
    planned = orchestrate.plan(suite, base, store)
    jobs = planned.to_run(chosen)
    quota.check(suite.teacher.max_gb, _caches(planned, jobs), store)
    store.prepare()
    orchestrate.write_plan(planned, store, overrides)
    count = workers or default_workers(planned.planner.runtime.device, suite.threads)
    foresight = _Foresight(planned, jobs, count)
    began = time.monotonic()
    outcome, exporter = _execute(planned, store, jobs, count, mlflow, foresight)
    costs = foresight.record(store, time.monotonic() - began, outcome.done)
    titles = {job.id: job.title for job in planned.jobs}
    result = RunResult(
        suite.name,
        results_dir,
        ran=len(jobs),
        failed={titles[key]: reason for key, reason in outcome.failed.items()},
        diverged=[titles[key] for key, done in outcome.done.items() if done["status"] == "diverged"],
        costs=costs,
    )
    _conclude(result)
    if exporter:
        exporter.close("FAILED" if result.failed else "FINISHED", result.report.values())
    return result


class _Foresight(threading.Thread):
    """Predicts what a run will cost while its workers start.

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

    def record(self, store: Store, took_s: float, done: dict[str, Any]) -> dict[str, Any] | None:
        """Write down prediction and fact, where anything ran."""
        if self.ident is not None:
            self.join()
        if not self.jobs or self.found is None:
            return None
        return predict.record(self.planned, store, self.found, took_s, done)


def _execute(
    planned: orchestrate.Plan, store: Store, jobs: list[Job], workers: int, mlflow: bool, foresight: _Foresight
) -> tuple[Any, Any]:
    from rich.console import Console

    from kdbench.errors import Interrupted
    from kdbench.files import read_json
    from kdbench.run.display import Display
    from kdbench.run.tracking import Exporter

    console = Console(stderr=True)
    for entry in planned.cells:
        if entry.job in jobs and entry.why != "new":
            console.print(f"{entry.cell.title}: {entry.why}", highlight=False, markup=False)
    done = sum(entry.state in orchestrate.FINAL for entry in planned.cells)
    console.print(
        f"{planned.suite.name}: {len(planned.cells)} cells, {done} done; {len(jobs)} jobs to run on {workers} workers",
        highlight=False,
    )
    if not jobs:
        return orchestrate.run(planned, store, [], workers, []), None
    content = read_json(store.suite_folder(planned.suite.name) / "plan.json")
    exporter = (
        Exporter(store, content, lambda text: console.print(text, markup=False, soft_wrap=True)) if mlflow else None
    )
    step_tokens = planned.suite.train.batch_tokens
    foresight.start()
    threading.Thread(target=_preload, daemon=True).start()
    try:
        with Display(console, len(jobs), step_tokens, foresight.left_s) as display:
            listeners = [display, exporter] if exporter else [display]
            return orchestrate.run(planned, store, jobs, workers, listeners), exporter
    except Interrupted:
        if exporter:
            exporter.close("KILLED", [])
        raise


def _preload() -> None:
    """Import what the verdict needs while the workers are busy, not after them."""
    import kdbench.analysis.answer
    import kdbench.analysis.plots  # noqa: F401


def _conclude(result: RunResult) -> None:
    """Compare and report, if there is anything to compare yet."""
    from kdbench.analysis import answer
    from kdbench.errors import ConfigError

    try:
        written = answer.report_files(result.results_dir, result.suite)
        if result.ran or not all(path.is_file() for path in written.values()):
            result.comparison, result.report = answer.write_report(result.results_dir, result.suite)
        else:  # nothing is new, so the report stands as it is
            result.comparison, result.report = answer.ask(result.results_dir, result.suite, None, None, "acc"), written
    except ConfigError as error:
        result.why_no_verdict = str(error)
