"""Ask a question of stored results: which contrasts, on which tasks, with which margin, as the suite fixed them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kdbench
from kdbench.analysis import equal_time, export, looks, words
from kdbench.analysis.advice import advice
from kdbench.analysis.results import APART, METRICS, SuiteResults, external_notes, item_scores, open_suite
from kdbench.analysis.verdict import Comparison, compare
from kdbench.distill import jumps
from kdbench.errors import ConfigError, did_you_mean
from kdbench.run import plans
from kdbench.suite import examination
from kdbench.suite.matrix import title

if TYPE_CHECKING:
    import pandas as pd

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


def _compared(
    scores: pd.DataFrame,
    question: dict[str, Any],
    objectives: Sequence[str] | None,
    baseline: str | None,
    options: dict[str, Any],
) -> Comparison:
    if objectives or baseline:
        first = baseline or (objectives or [question["baseline"]])[0]
        return compare(scores, first, objectives=list(objectives) if objectives else None, **options)
    if question["contrasts"]:
        return compare(scores, contrasts=_available(question["contrasts"], scores), **options)
    return compare(scores, question["baseline"], **options)


def answer(
    results: SuiteResults,
    objectives: Sequence[str] | None,
    baseline: str | None,
    metric: str,
    read: Callable[[SuiteResults, str], pd.DataFrame] = item_scores,
) -> Comparison:
    """Compare arms of a suite that is open; arguments and errors as for `ask`. `read` gives the scores of a metric."""
    question = results.plan["suite"]["compare"]
    name, tasks = _metric(metric, question["tasks"], examination.names(results.plan["suite"]["examine"]))
    everything = read(results, name)
    scores = everything if objectives or baseline else equal_time.apart(everything, results.plan)
    options: dict[str, Any] = {"tasks": tasks, "alpha": question["alpha"], "margin": question["margin"]}
    options |= looks.options(question, tasks)
    try:
        found = _compared(scores, question, objectives, baseline, options)
    except ConfigError as error:  # perhaps because of what is left out
        raise ConfigError("; ".join([str(error), *missing(results)])) from None
    found.notes[:0] = [
        *missing(results),
        *jumped(results),
        *external_notes(results),
        *looks.remember(results.folder, metric, found),
    ]
    timed = [] if objectives or baseline else equal_time.contrasts(everything, results.plan)
    return replace(found, at_equal_time=compare(everything, contrasts=timed, **options)) if timed else found


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
    for status in ("missing", "damaged", "failed", "diverged", APART):
        found = [cell for cell in results.cells if cell["status"] == status]
        names = [title(cell["arm"], cell["student"], cell["teacher"], cell["seed"]) for cell in found]
        if names:
            shown = "; ".join(names[:6]) + (f"; and {len(names) - 6} more" if len(names) > 6 else "")
            notes.append(f"{len(names)} of {len(results.cells)} cells {status}, left out: {shown}")
    made, own = results.plan["environment"]["protocol"], kdbench.PROTOCOL
    if plans.major_minor(made) != plans.major_minor(own):
        notes.append(
            f"these results are of protocol {made}: not comparable with those of {own}, which this kdbench makes"
        )
    if results.plan["overrides"]:
        notes.append("run with " + ", ".join(f"--set {one}" for one in results.plan["overrides"]))
    if len(results.plan["suite"]["seeds"]) == 2:
        notes.append(UNDECIDABLE)
    return notes


def jumped(results: SuiteResults) -> list[str]:
    """Say in which trainings the loss exploded and stayed finite: their scores count like all others."""
    told = [
        f"{title(cell['arm'], cell['student'], cell['teacher'], cell['seed'])}: "
        f"{jumps.in_words(cell['done'][jumps.RECORDED])}"
        for cell in results.cells
        if cell["status"] == "ok" and jumps.RECORDED in cell["done"]
    ]
    more = [f"and {len(told) - 6} more trainings with a loss that jumped"] if len(told) > 6 else []
    return told[:6] + more


def show(found: Comparison) -> None:
    """Print the verdict, the scores and the answer in words for a person."""
    from kdbench.analysis.terminal import tables
    from kdbench.console import WIDTH, stdout_console

    console = stdout_console()
    for table in tables(found, min(console.width, WIDTH)):
        console.print(table)
        console.print()
    console.print(" ".join(advice(found)), style="bold", highlight=False, markup=False)
    console.print(f"test: {found.method}", highlight=False, markup=False)
    for note in found.notes:
        console.print(f"note: {note}", highlight=False, markup=False)


def printed(found: Comparison, form: str) -> str:
    """Return a comparison as `markdown`, `csv` or `latex`."""
    return {"markdown": words.markdown, "csv": export.csv, "latex": export.latex}[form](found)
