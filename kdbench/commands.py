"""What the commands do, between the command line and the parts that it joins: plan, run, and what is shown of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.errors import StoreError
from kdbench.run import cluster, crew, orchestrate, predict, quota, stages, tuning
from kdbench.run.jobs import Job
from kdbench.run.store import Store
from kdbench.suite import cost
from kdbench.suite.external import CONTROL
from kdbench.suite.matrix import point_title
from kdbench.suite.schema import Suite


def plan(suite: Suite, base: Path, results_dir: Path, only: Sequence[str]) -> dict[str, Any]:
    """Return the matrix as plain data: models, cells with state and reason, cost of what is left. Writes nothing."""
    chosen = orchestrate.parse_only(only, suite)
    planned = orchestrate.plan(suite, base, Store(results_dir))
    parameters = planned.planner.count_parameters()
    jobs = planned.to_run(chosen)
    in_the_way = ""
    try:
        quota.check(suite.teacher.max_gb, stages.caches(planned, jobs, parameters), Store(results_dir))
    except StoreError as error:  # it stops a run here, and is worth knowing in a plan for somewhere else
        in_the_way = str(error)
    jobs += planned.to_run_later(chosen)
    costs = {job.id: predict.price(planned, job, parameters) for job in jobs}
    total = sum(costs.values(), cost.Cost())
    runtime = planned.planner.runtime
    count = crew.size(planned, jobs)
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
        "tuning": _tuning(planned, jobs, costs, foreseen),
        "to_make": [{"kind": job.kind, "title": job.title, "key": job.key} for job in jobs if job.kind != "cells"],
        "tokens": total.tokens,
        "flop": total.flop,
        "cache_bytes": total.cache_bytes,
        "expected_seconds": round(foreseen.seconds, 1),
        "expected_peak_mib": foreseen.mib,
        "workers": count,
        "in_the_way": in_the_way,
        "last_run": predict.costs(Store(results_dir), suite.name),
    }


def _tuning(
    planned: orchestrate.Plan, jobs: list[Job], costs: dict[str, cost.Cost], foreseen: predict.Prediction
) -> dict[str, Any] | None:
    """Return the budget of `tune:`, what of it is still to run, and what has been chosen; None without one."""
    if planned.suite.tune is None:
        return None
    told = tuning.facts(planned.tuned)
    trials = [job for job in jobs if job.cell is not None and job.cell.trial]
    price = sum((costs[job.id] for job in trials), cost.Cost())
    work = sum(foreseen.jobs[job.id].seconds for job in trials)
    named = {name: told[name] for name in ("per", "names", "points", "seeds", "items", "tasks")}
    choices = [{name: value for name, value in one.items() if name != "points"} for one in told["choices"]]
    spent = {"tokens": price.tokens, "flop": price.flop, "expected_seconds": round(work / foreseen.workers, 1)}
    return named | {"trials": len(told["trials"]), "to_run": len(trials)} | spent | {"choices": choices}


def _role(suite: Suite, name: str) -> str:
    roles = [role for role, names in (("student", suite.students), ("teacher", suite.teachers)) if name in names]
    return " and ".join(roles)


def _cell_row(entry: orchestrate.PlannedCell, wanted: set[str], costs: dict[str, cost.Cost]) -> dict[str, Any]:
    cell, price = entry.cell, costs.get(entry.job.id, cost.Cost())
    names = {"objective": cell.arm, "student": cell.student, "teacher": cell.teacher, "seed": cell.seed}
    state = "done" if entry.state == "ok" else entry.state
    why = entry.why if entry.job.id in wanted or not entry.why else f"{entry.why}; not chosen by --only"
    return names | {
        "key": entry.job.key,
        "elsewhere": cell.folder is not None,
        "state": state,
        "why": why,
        "tokens": price.tokens,
        "flop": price.flop,
    }


def print_plan(planned: dict[str, Any]) -> None:
    """Print a plan for a person."""
    from rich.table import Table

    from kdbench.console import stdout_console

    console = stdout_console()
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
    for label in dict.fromkeys(row["objective"] for row in planned["cells"] if row["elsewhere"]):
        console.print(f"{label}: {CONTROL}; its folders are examined as they are", highlight=False)
    if told := planned["tuning"]:
        _print_tuning(console, told)
    left = sum(1 for row in planned["cells"] if row["why"] and "not chosen" not in row["why"])
    console.print(
        f"{len(planned['cells'])} cells, {left} to run · {planned['tokens']:,} tokens · {planned['flop']:.2e} FLOP · "
        f"teacher cache {planned['cache_bytes'] / 1e6:,.1f} MB · about {cost.duration(planned['expected_seconds'])} "
        f"and {planned['expected_peak_mib']:,} MiB on {planned['device']} ({planned['precision']}), "
        f"{planned['workers']} workers",
        highlight=False,
    )
    if planned["in_the_way"]:
        console.print(f"in the way of a run: {planned['in_the_way']}", highlight=False, markup=False)


def _print_tuning(console: Any, told: dict[str, Any]) -> None:
    """Say what the trials will cost, or what they chose."""
    line = f"tuning: {told['trials']} trials ({len(told['points'])} points, {len(told['seeds'])} seeds)"
    if told["to_run"]:
        line += f", {told['to_run']} to run first · {told['tokens']:,} tokens · {told['flop']:.2e} FLOP · about "
        line += f"{cost.duration(told['expected_seconds'])}; the cells that wait for them follow in the same run"
    console.print(line, highlight=False)
    for one in told["choices"]:
        if one["chosen"]:
            pair = " ← ".join(one[role] for role in ("student", "teacher") if one[role])
            edge = " (at the edge of what was tried)" if one["edge"] else ""
            named = " · ".join(part for part in (one["objective"], pair) if part)
            console.print(f"  chosen for {named}: {point_title(one['chosen'])}{edge}", highlight=False, markup=False)


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
    store_failed: bool = False

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
    where: cluster.Where | None = None,
    stall: float | None = None,
) -> RunResult:
    """Run what is not done, here or over a Ray cluster, then compare and report.

    Args:
        stall: seconds without a sign of life after which a job on this machine is stopped and tried again.
    """
    chosen = orchestrate.parse_only(only, suite)
    store = Store(results_dir)
    order = stages.Order(
        lambda: orchestrate.plan(suite, base, store),
        store,
        chosen,
        overrides,
        workers,
        mlflow,
        meanwhile=_preload,
        cluster=where,
        patience_s=stall,
    )
    ran = stages.run(order)
    result = RunResult(suite.name, results_dir, ran.jobs, ran.failed, ran.diverged, costs=ran.costs)
    result.store_failed = ran.store_failed
    try:
        _conclude(result)
    except BaseException as error:
        ran.give_up(error)
        raise
    ran.close(result.report.values())
    return result


def _preload() -> None:
    """Import what the verdict needs while the workers are busy, not after them."""
    import kdbench.analysis.conclusion  # noqa: F401


def _conclude(result: RunResult) -> None:
    """Compare and report, if there is anything to compare yet."""
    from kdbench.analysis import conclusion
    from kdbench.errors import ConfigError

    try:
        result.comparison, result.report = conclusion.conclude(result.results_dir, result.suite)
    except ConfigError as error:
        result.why_no_verdict = str(error)
