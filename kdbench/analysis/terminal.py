"""A comparison on a terminal of 100 columns: the verdict in one table, then the scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from kdbench.analysis import rows as choice
from kdbench.analysis.labels import count, cut, fold
from kdbench.analysis.means import gap_over_pairs
from kdbench.analysis.words import COLOURS, OVERALL, gap_text, number, p_text, place_text
from kdbench.console import WIDTH

if TYPE_CHECKING:
    from rich.table import Table

    from kdbench.analysis.verdict import Comparison

MOST = 12  # rows of a table; above, the decided and the largest are shown and the others counted
FIXED = ("floor", "ceiling")
ELSEWHERE = "all rows: --markdown, --csv, or the report"


def tables(comparison: Comparison, width: int = WIDTH) -> list[Table]:
    """Return the tables that answer the question; those per task stand in the report, in Markdown and in JSON."""
    timed = comparison.at_equal_time
    more = [_verdicts(timed, width, "At equal wall time")] if timed else []
    return [_verdicts(comparison, width), *more, _scores(comparison, width)]


def _table(
    title: str, left: Sequence[str], right: Sequence[str], rows: Sequence[Sequence[str]], width: int, caption: str
) -> Table:
    """Lay out a table: numbers keep their width, names share what is left and break at commas."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.caption, table.caption_justify = caption, "left"
    columns = list(zip(*rows, strict=True)) if rows else [()] * (len(left) + len(right))
    widths = [max(len(text) for text in (head, *column)) for head, column in zip([*left, *right], columns, strict=True)]
    room = width - sum(widths[len(left) :]) - 2 * (len(widths) - 1)
    narrow = _share(widths[: len(left)], room)
    for head in left:
        table.add_column(head, no_wrap=True)
    for head in right:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        names = ["\n".join(fold(text, room)) for text, room in zip(row, narrow, strict=False)]
        table.add_row(*(Text(text, style=COLOURS.get(text, "")) for text in [*names, *row[len(left) :]]))
    return table


def _share(wanted: Sequence[int], room: int) -> list[int]:
    """Return widths that sum to `room` at most: short columns get what they want, the others share the rest."""
    widths = dict.fromkeys(range(len(wanted)), 0)
    left = room
    for done, index in enumerate(sorted(widths, key=lambda i: wanted[i])):
        widths[index] = max(6, min(wanted[index], left // (len(wanted) - done)))
        left -= widths[index]
    return list(widths.values())


def _verdicts(comparison: Comparison, width: int, heading: str = "Verdict") -> Table:
    rows = choice.overall(comparison, pooled_first=False)
    shown, left = choice.telling(rows, MOST)
    students = [name for name in dict.fromkeys(row["student"] for row in rows) if name != "all"]
    place, baseline = choice.one_place(rows), choice.one_baseline(comparison)
    where = "teacher" if len(students) == 1 else "student ← teacher"
    level = f"{100 * (1 - comparison.alpha):g} % interval"
    texts, before = [], None
    for row in shown:
        named = choice.name(comparison, row)
        names = [named if named != before else ""]
        before = named
        if not place:
            names += [place_text(row).removeprefix(f"{students[0]} ← ") if len(students) == 1 else place_text(row)]
        numbers = [_mean(comparison, row), number(comparison, row["delta"], sign=True)]
        numbers += [f"{number(comparison, row['ci_low'])} to {number(comparison, row['ci_high'])}"]
        texts.append([*names, *numbers, p_text(row["p_adjusted"]), row["verdict"]])
    unit = "points" if comparison.points else "units of score"
    against = f" against {cut(baseline, 30)}" if baseline else ""
    title = f"{heading}{against}: mean over {_tasks(comparison)}, in {unit}; p by {_adjustments(comparison)}"
    caption = _caption(comparison, rows, left, place, students)
    heads = ["objective" if baseline else "against", *([] if place else [where])]
    return _table(title, heads, ["mean", "difference", level, "p", "verdict"], texts, width, caption)


def _caption(
    comparison: Comparison, rows: Sequence[Any], left: Sequence[Any], place: str | None, students: Sequence[str]
) -> str:
    """Say what holds for every row, and what is not shown."""
    whose = place or (f"student {students[0]}" if len(students) == 1 else "")
    text = "; ".join(part for part in (whose, _sizes(rows), "the mean is that of the first named") if part)
    return f"{choice.left_out(comparison, left)}; {ELSEWHERE}\n{text}" if left else text


def _adjustments(comparison: Comparison) -> str:
    """Rows over all pairs are a family of their own."""
    single, whole = comparison.adjustment, comparison.pooled_adjustment
    return single if single == whole or not len(comparison.pooled) else f"{single} (all pairs: {whole})"


def _tasks(comparison: Comparison) -> str:
    names = [name for name in comparison.means.task.unique() if name != OVERALL]
    return ", ".join(names) if len(names) <= 4 and len(", ".join(names)) < 40 else f"{len(names)} tasks"


def _sizes(rows: Sequence[Any]) -> str:
    sizes = sorted({(int(row["n_seeds"]), int(row["n_items"])) for row in rows})
    if len(sizes) > 3:
        (low, high), (few, many) = ((min(part), max(part)) for part in zip(*sizes, strict=True))
        return f"{low} to {high} seeds × {few:,} to {many:,} items"
    return "; ".join(f"{seeds} seed{'' if seeds == 1 else 's'} × {items:,} items" for seeds, items in sizes)


def _mean(comparison: Comparison, row: dict[str, Any]) -> str:
    """The objective's mean score at this place; an arm without a teacher has one for all teachers."""
    means = comparison.means[(comparison.means.task == OVERALL) & (comparison.means.objective == row["objective"])]
    if row["student"] != "all":
        means = means[means.student == row["student"]]
        exact = means[means.teacher == row["teacher"]]
        means = exact if len(exact) else means
    return number(comparison, float(means["mean"].mean()))


def _scores(comparison: Comparison, width: int) -> Table:
    """A row an arm and pair; where these are many, a row an arm, best first."""
    means = comparison.means[comparison.means.task == OVERALL]
    if len(means) > MOST + 4:
        return _ranked(comparison, means, width)
    rows = []
    for row in means.to_dict("records"):
        names = ["–" if pd.isna(row[name]) else str(row[name]) for name in ("student", "teacher")]
        numbers = [number(comparison, row["mean"]), number(comparison, row["sd_seeds"]), str(row["n_seeds"])]
        rows.append([row["objective"], *names, *numbers, gap_text(row["gap_recovered"])])
    right = ["mean", "sd over seeds", "seeds", "gap recovered"]
    return _table("Scores, overall", ["objective", "student", "teacher"], right, rows, width, "")


def _ranked(comparison: Comparison, means: pd.DataFrame, width: int) -> Table:
    groups = means.groupby("objective", sort=False, dropna=False)
    found = groups.agg(mean=("mean", "mean"), low=("mean", "min"), high=("mean", "max"), pairs=("mean", "size"))
    found["gap"] = [gap_over_pairs(means, str(name)) for name in found.index]
    trained = found.drop(index=[name for name in FIXED if name in found.index]).sort_values(
        "mean", ascending=False, kind="stable"
    )
    kept = pd.concat([found.loc[[name for name in FIXED if name in found.index]], trained.head(MOST)])
    several = bool((found.pairs > 1).any())
    rows = []
    for name, row in kept.iterrows():
        spread = f"{number(comparison, row.low)} to {number(comparison, row.high)}" if row.pairs > 1 else "–"
        numbers = [number(comparison, row["mean"]), *([spread] if several else []), gap_text(row.gap)]
        rows.append([str(name), *numbers])
    left = trained.iloc[MOST:]
    caption = ""
    if len(left):
        low, high = number(comparison, left["mean"].min()), number(comparison, left["mean"].max())
        caption = f"{count(len(left), 'more arm')} from {low} to {high}; {ELSEWHERE}"
    right = ["mean", *(["lowest to highest pair"] if several else []), "gap recovered"]
    title = "Scores, overall, mean over pairs, best first" if several else "Scores, overall, best first"
    return _table(title, ["objective"], right, rows, width, caption)
