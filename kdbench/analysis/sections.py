"""The sections of a report: a builder takes what is known and returns a section, or None if it has nothing to say.

A new section is a function `(Context) -> Section | None` in BUILDERS.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdbench.analysis import cell_table, methods, plots, plots_arms, plots_scaling, plots_tasks, words
from kdbench.analysis import rows as choice
from kdbench.analysis import sections_claims as against
from kdbench.analysis.agreement import LIMIT, agreement, shown_arms
from kdbench.analysis.labels import listed
from kdbench.analysis.section import Context, Section


def verdict(known: Context) -> Section:
    """The forest plot and the tables of the confirmatory family."""
    found = known.comparison
    shown, _ = plots.forest_rows(found)
    left = len(choice.overall(found, pooled_first=True)) - len(shown)
    text = [f"The picture leaves out {left} rows; the tables have all."] if left else []
    tables = [table for table in words.sections(found) if not table[0].startswith(("Per task", "Scores"))]
    says = "Differences with intervals"
    return Section("forest", "The verdict", text, lambda path: plots.forest(found, path), says, tables)


def best(known: Context) -> Section | None:
    """Who may be the best."""
    if known.trained.objective.nunique() < 2:
        return None
    found = known.comparison
    tested = getattr(found, "best", None) is not None
    title = "Which objectives may be the best" if tested else "Arms in order of their means"
    text = [
        "Filled: the data do not say that another objective is better; any of these may be the best. Hollow: another "
        "one is better for sure. The set is about all trained arms, the verdict above about the contrasts that the "
        "suite named."
    ]
    says = "Mean score of every arm, best first"
    return Section("best", title, text if tested else [], lambda path: plots_arms.best_set(found, path), says)


def scaling(known: Context) -> Section | None:
    """Score against the teacher's size."""
    if known.trained.teacher.nunique() < 2:
        return None
    found = known.comparison
    text = ["Bands: one standard deviation over seeds. Read nothing beyond the sizes that were run."]
    if known.trained.objective.nunique() > plots_scaling.MANY and len(found.contrasts) > plots_scaling.PANELS:
        text += [f"A panel a contrast, the first {plots_scaling.PANELS} of {len(found.contrasts)}."]

    def draw(path: Path) -> None:
        options: dict[str, Any] = {"points": found.points, "sizes": known.sizes, "contrasts": found.contrasts}
        plots_scaling.scaling(found.means, path, **options)

    return Section("scaling", "Score against the teacher's size", text, draw, "Score against teacher, a line an arm")


def heat(known: Context) -> Section | None:
    """Objective × pair."""
    frame = known.comparison.table
    if len(frame[["student", "teacher"]].drop_duplicates()) < 2:
        return None
    text = [
        "Violet: the first named is higher; orange: it is lower. Bold: better or worse after correction for the family."
    ]
    says = "Difference of every contrast at every pair"
    return Section("heat", "Where it helps", text, lambda path: plots_scaling.heat(known.comparison, path), says)


def tasks(known: Context) -> Section | None:
    """Task by task, exploratory."""
    tables = [table for table in words.sections(known.comparison) if table[0].startswith("Per task")]
    if not tables:
        return None
    text = ["Exploratory: p is by Benjamini-Hochberg, and a single task decides nothing about an objective."]
    if len(known.comparison.contrasts) > plots_tasks.LIMIT:
        text += [f"The picture shows the {plots_tasks.LIMIT} contrasts with the largest differences."]
    says = "Difference of every contrast at every task"
    return Section("tasks", "Task by task", text, lambda path: plots_tasks.tasks(known.comparison, path), says, tables)


def items(known: Context) -> Section | None:
    """On which items do arms differ."""
    if known.scores is None or known.trained.objective.nunique() < 2:
        return None
    means = known.trained.groupby("objective", sort=False)["mean"].mean()
    keep = list(dict.fromkeys(name for contrast in known.comparison.contrasts for name in contrast[::-1]))
    baselines = [b for _, b in known.comparison.contrasts]
    arms = shown_arms(means, keep if len(keep) <= LIMIT else baselines)
    wanted = [task for task in dict.fromkeys(known.comparison.table.task) if task != words.OVERALL]
    frame = agreement(known.scores[known.scores.objective.isin(arms)], wanted)
    text = [
        "Number: per cent of items that two arms answer differently, at the same seed and pair. Colour: who wins more "
        "of these; violet the row, orange the column. Arms that differ on many items but win equally many have learnt "
        "other things, not more."
    ]
    if len(means) > len(arms):
        text += [f"Shown are {len(arms)} of {len(means)} arms, the baselines and those with the highest means."]
    says = "Share of items on which two arms differ, and who wins"
    return Section("agreement", "Items won and lost", text, lambda path: plots_arms.differing(frame, arms, path), says)


def curves(known: Context) -> Section | None:
    """Training loss, term by term."""
    history = known.history
    if history is None or not len(history):
        return None
    text = ["Losses of different objectives are different functions: see whether each settles, not which is lower."]
    if history.objective.nunique() > plots_tasks.PANELS:
        text += [f"The first {plots_tasks.PANELS} of {history.objective.nunique()} objectives are drawn."]
    says = "Training loss and its terms against step: each settles or not"
    return Section("curves", "Learning curves", text, lambda path: plots_tasks.curves(history, path), says)


def scores(known: Context) -> Section:
    """Means of every arm."""
    tables = [table for table in words.sections(known.comparison) if table[0].startswith("Scores")]
    return Section("scores", "Scores", tables=tables)


def paste(known: Context) -> Section | None:
    """A paragraph for a paper."""
    if known.plan is None:
        return None
    text = methods.for_a_paper(known.comparison, known.plan, known.facts, known.sizes)
    return Section("methods_paragraph", "Methods, to paste into a paper", verbatim=text)


def cite(known: Context) -> Section | None:
    """BibTeX."""
    if known.plan is None:
        return None
    from kdbench.analysis.cite import of_suite

    names = listed([one["label"] for one in known.plan["suite"]["objectives"]], most=8)
    text = [f"The publications of {names}, and kdbench. `kdbench cite` prints the same."]
    return Section("cite", "Citations", text, verbatim="\n\n".join(of_suite(known.plan["suite"])))


BUILDERS: list[Callable[[Context], Section | None]] = [
    verdict, best, against.claimed, scaling, against.sizes, against.sure, heat, tasks, against.tokens, against.cost,
    against.time, against.tuning, items, curves, scores, cell_table.cells, paste, cite,
]  # fmt: skip


def build(known: Context) -> list[Section]:
    """Return the sections that have something to say, in the order of the page."""
    return [section for builder in BUILDERS if (section := builder(known)) is not None]
