"""A comparison on a terminal of 100 columns: the verdict, a block a contrast, then the scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from kdbench.analysis.words import COLOURS, OVERALL, gap_text, number, p_text, place_text

if TYPE_CHECKING:
    from rich.table import Table

    from kdbench.analysis.verdict import Comparison


def tables(comparison: Comparison) -> list[Table]:
    """Return the tables that answer the question; those per task stand in the report, in Markdown and in JSON."""
    return [_verdicts(comparison), _scores(comparison)]


def _table(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    for name in left:
        table.add_column(name, overflow="fold", min_width=6)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _verdicts(comparison: Comparison) -> Table:
    from rich.text import Text

    frames = [comparison.table, comparison.pooled]
    rows = pd.concat([frame[frame.task == OVERALL] for frame in frames if len(frame)])
    students = [name for name in rows.student.unique() if name != "all"]
    unit = "points" if comparison.points else "units of score"
    title = f"Verdict: mean over {_tasks(comparison)}, in {unit}; p by Holm over the family"
    level = f"{100 * (1 - comparison.alpha):g} % interval"
    place = "teacher" if len(students) == 1 else "student ← teacher"
    table = _table(title, ("against", place), ("mean", "difference", level, "p", "verdict"))
    for objective, baseline in comparison.contrasts:
        block = rows[(rows.objective == objective) & (rows.baseline == baseline)].to_dict("records")
        for index, row in enumerate(block):
            name = f"{objective} − {baseline}" if index == 0 else ""
            where = place_text(row).removeprefix(f"{students[0]} ← ") if len(students) == 1 else place_text(row)
            texts = [name, where, _mean(comparison, row), number(comparison, row["delta"], sign=True)]
            texts += [f"{number(comparison, row['ci_low'])} to {number(comparison, row['ci_high'])}"]
            texts += [p_text(row["p_adjusted"]), row["verdict"]]
            table.add_row(*(Text(text, style=COLOURS.get(text, "")) for text in texts))
    whose = f"student {students[0]}; " if len(students) == 1 else ""
    table.caption = f"{whose}{_sizes(rows)}; the mean is that of the first named"
    table.caption_justify = "left"
    return table


def _tasks(comparison: Comparison) -> str:
    names = [name for name in comparison.means.task.unique() if name != OVERALL]
    return ", ".join(names) if len(names) <= 4 else f"{len(names)} tasks"


def _sizes(rows: pd.DataFrame) -> str:
    sizes = sorted({(int(row.n_seeds), int(row.n_items)) for row in rows.itertuples()})
    return "; ".join(f"{seeds} seeds × {items:,} items" for seeds, items in sizes)


def _mean(comparison: Comparison, row: dict[str, Any]) -> str:
    """The objective's mean score at this place; an arm without a teacher has one for all teachers."""
    means = comparison.means[(comparison.means.task == OVERALL) & (comparison.means.objective == row["objective"])]
    if row["student"] != "all":
        means = means[means.student == row["student"]]
        exact = means[means.teacher == row["teacher"]]
        means = exact if len(exact) else means
    return number(comparison, float(means["mean"].mean()))


def _scores(comparison: Comparison) -> Table:
    table = _table(
        "Scores, overall", ("objective", "student", "teacher"), ("mean", "sd over seeds", "seeds", "gap recovered")
    )
    for row in comparison.means[comparison.means.task == OVERALL].to_dict("records"):
        names = ["–" if pd.isna(row[name]) else str(row[name]) for name in ("student", "teacher")]
        gap = gap_text(row["gap_recovered"])
        numbers = [number(comparison, row["mean"]), number(comparison, row["sd_seeds"]), str(row["n_seeds"]), gap]
        table.add_row(row["objective"], *names, *numbers)
    return table
