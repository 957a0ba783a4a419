"""Ask a question of stored results: which contrasts, on which tasks, with which margin, as the suite fixed them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdbench.analysis import report
from kdbench.analysis.results import METRICS, SuiteResults, history, item_scores, open_suite
from kdbench.analysis.verdict import Comparison, compare
from kdbench.analysis.words import summary
from kdbench.errors import ConfigError, did_you_mean
from kdbench.run.store import Store
from kdbench.suite.matrix import title

UNDECIDABLE = "two seeds cannot decide anything about an objective; use three or more"


def ask(
    results_dir: Path, suite: str | None, objectives: Sequence[str] | None, baseline: str | None, metric: str
) -> Comparison:
    """Compare arms of a suite.

    Args:
        objectives: arms to compare; None: the contrasts that the suite named.
        baseline: default: the first of `objectives`, or the suite's own.
        metric: a metric name, or one task (`swap`, `swap/acc`).

    Raises:
        ConfigError: no results, or an unknown suite, arm or metric.
    """
    return answer(open_suite(results_dir, suite), objectives, baseline, metric)


def answer(results: SuiteResults, objectives: Sequence[str] | None, baseline: str | None, metric: str) -> Comparison:
    """Compare arms of a suite that is open; arguments and errors as for `ask`."""
    question = results.plan["suite"]["compare"]
    name, tasks = _metric(metric, question["tasks"], results.plan["suite"]["examine"]["tasks"])
    scores = item_scores(results, name)
    options: dict[str, Any] = {"tasks": tasks, "alpha": question["alpha"], "margin": question["margin"]}
    if objectives or baseline:
        first = baseline or (objectives or [question["baseline"]])[0]
        found = compare(scores, first, objectives=list(objectives) if objectives else None, **options)
    elif question["contrasts"]:
        found = compare(scores, contrasts=_available(question["contrasts"], scores), **options)
    else:
        found = compare(scores, question["baseline"], **options)
    found.notes[:0] = missing(results)
    return found


def _available(contrasts: Sequence[Sequence[str]], scores: Any) -> list[tuple[str, str]]:
    """The suite's contrasts of which both arms have results; the others are named among the missing cells."""
    arms = set(scores["objective"])
    found = [(a, b) for a, b in contrasts if a in arms and b in arms]
    if not found:
        raise ConfigError(
            f"none of the suite's contrasts has results on both sides; results exist of: {', '.join(sorted(arms))}"
        )
    return found


def _metric(asked: str, overall: Sequence[str], tasks: Sequence[str]) -> tuple[str, list[str]]:
    """Return the stored metric and the tasks that an option names."""
    if asked == "word_log_likelihood":
        return asked, ["perplexity"]
    if asked in METRICS:
        return asked, list(overall)
    task = asked.partition("/")[0]
    graded = [name for name in tasks if name != "perplexity"]
    if task not in graded:
        raise ConfigError(f"unknown metric {asked!r}.{did_you_mean(asked, [*METRICS, *graded])}")
    return "acc", [task]


def missing(results: SuiteResults) -> list[str]:
    """Say which cells are not shown, and why; never silently drop one."""
    notes = []
    for status in ("missing", "damaged", "failed", "diverged"):
        found = [cell for cell in results.cells if cell["status"] == status]
        names = [title(cell["arm"], cell["student"], cell["teacher"], cell["seed"]) for cell in found]
        if names:
            shown = "; ".join(names[:6]) + (f"; and {len(names) - 6} more" if len(names) > 6 else "")
            notes.append(f"{len(names)} of {len(results.cells)} cells {status}, left out: {shown}")
    if results.plan["overrides"]:
        notes.append("run with " + ", ".join(f"--set {one}" for one in results.plan["overrides"]))
    if len(results.plan["suite"]["seeds"]) == 2:
        notes.append(UNDECIDABLE)
    return notes


def show(found: Comparison) -> None:
    """Print tables and sentences for a person."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 100)
    for table in found.rich_tables():
        console.print(table)
        console.print()
    for sentence in summary(found):
        console.print(sentence, highlight=False, markup=False)
    console.print(f"test: {found.method}", highlight=False, markup=False)
    for note in found.notes:
        console.print(f"note: {note}", highlight=False, markup=False)


def report_files(results_dir: Path, suite: str) -> dict[str, Path]:
    """Return where a suite's report goes, by file name."""
    return {name: Store(results_dir).suite_folder(suite) / name for name in report.FILES}


def write_report(results_dir: Path, suite: str) -> tuple[Comparison, dict[str, Path]]:
    """Compare as the suite asks and write its report; return both."""
    results = open_suite(results_dir, suite)
    found = answer(results, None, None, "acc")
    plan = results.plan
    environment = plan["environment"]
    facts = {
        "seeds": ", ".join(map(str, plan["suite"]["seeds"])),
        "protocol": environment["protocol"],
        "versions": ", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
        "device": f"{environment['device']}, {environment['precision']}, {environment['threads']} thread(s) a worker",
        "overrides": " ".join(plan["overrides"]) or "none",
    }
    cells = [_row(cell) for cell in results.cells]
    head = {"name": plan["suite"]["name"], "question": plan["suite"]["question"], "description": ""}
    written = report.write(results.folder, found, suite=head, facts=facts, cells=cells, history=history(results))
    return found, written


def _row(cell: dict[str, Any]) -> dict[str, Any]:
    row = {
        "key": cell["key"],
        "objective": cell["arm"],
        "student": cell["student"],
        "teacher": cell["teacher"],
        "seed": cell["seed"],
        "status": cell["status"],
        "loss": cell.get("done", {}).get("final_loss"),
        "seconds": cell.get("timing", {}).get("wall_s"),
        "model": str(cell.get("model", "")),
    }
    return row | {"metrics": cell.get("metrics", {})}
