"""What the commands do, between the command line and the parts that it joins: plan, run, and what is shown of them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.api import Trajectories
from kdbench.registry import objective
from kdbench.run import orchestrate
from kdbench.run.store import Store
from kdbench.suite import cost
from kdbench.suite.matrix import CEILING
from kdbench.suite.schema import Suite


def plan(suite: Suite, base: Path, results_dir: Path, only: Sequence[str]) -> dict[str, Any]:
    """Return the matrix as plain data: models, cells with state and reason, cost of what is left. Writes nothing."""
    chosen = orchestrate.parse_only(only, suite)
    planned = orchestrate.plan(suite, base, Store(results_dir))
    parameters = planned.planner.count_parameters()
    jobs = planned.to_run(chosen)
    costs = {job.id: _cost(planned, job, parameters) for job in jobs}
    total = sum(costs.values(), cost.Cost())
    runtime = planned.planner.runtime
    rate = cost.device_flops(runtime.device, runtime.threads) * default_workers(runtime.device, runtime.threads)
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
        "expected_seconds": round(total.flop / rate + (15 if jobs else 0), 1),
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


def _cost(planned: orchestrate.Plan, job: Any, parameters: dict[str, int]) -> cost.Cost:
    suite, planner = planned.suite, planned.planner
    tokens = planner.distillation_tokens()
    if job.kind == "models":
        return cost.Cost(int(job.context.get("tokens", 0)), job.cost)
    if job.kind == "teacher_cache":
        teacher = job.context["teacher"]
        return cost.caching(parameters[teacher], tokens, planner.hidden_size(teacher), job.inputs["dtype"])
    if job.kind != "cells" or job.cell is None:
        return cost.Cost()
    cell = job.cell
    subject = cell.teacher if cell.arm == CEILING else cell.student
    price = cost.examining(parameters[str(subject)], suite.examine.items * len(suite.examine.tasks))
    if cell.spec is None:
        return price
    read = job.inputs["train"]["steps"] * job.inputs["train"]["batch_rows"] * suite.data.length
    teacher, hidden = (parameters[cell.teacher], planner.hidden_size(cell.teacher)) if cell.teacher else (0, 0)
    student, live = parameters[str(cell.student)], job.inputs.get("signal") == "live"
    return (
        price
        + cost.distilling(student, teacher, hidden, planner.vocabulary, read, live)
        + _writing(objective(cell.spec).trajectories, student, teacher, read)
    )


def _writing(wanted: Trajectories, student: int, teacher: int, tokens: int) -> cost.Cost:
    """Return what an objective's own text costs, at most: as if every completion were as long as it may be."""
    if wanted.rollout is None:
        return cost.Cost()
    share = 0.5 if wanted.paired else wanted.chance * wanted.fresh
    judged = wanted.rollout.by in ("mixed", "interleaved")
    return cost.writing(student, teacher if judged else 0, int(tokens * share / wanted.reuse))


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
        f"teacher cache {planned['cache_bytes'] / 1e6:,.1f} MB · about {planned['expected_seconds']:,.0f} s on "
        f"{planned['device']} ({planned['precision']})",
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
    store.prepare()
    orchestrate.write_plan(planned, store, overrides)
    jobs = planned.to_run(chosen)
    count = workers or default_workers(planned.planner.runtime.device, suite.threads)
    outcome, exporter = _execute(planned, store, jobs, count, mlflow)
    titles = {job.id: job.title for job in planned.jobs}
    result = RunResult(
        suite.name,
        results_dir,
        ran=len(jobs),
        failed={titles[key]: reason for key, reason in outcome.failed.items()},
        diverged=[titles[key] for key, done in outcome.done.items() if done["status"] == "diverged"],
    )
    _conclude(result)
    if exporter:
        exporter.close("FAILED" if result.failed else "FINISHED", result.report.values())
    return result


def _execute(planned: orchestrate.Plan, store: Store, jobs: list[Any], workers: int, mlflow: bool) -> tuple[Any, Any]:
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
    threading.Thread(target=_preload, daemon=True).start()
    try:
        with Display(console, len(jobs), step_tokens) as display:
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
