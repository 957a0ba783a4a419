"""Which rows of a comparison are shown where room is short, and what they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdbench.analysis.words import OVERALL, number, place_text

if TYPE_CHECKING:
    from kdbench.analysis.verdict import Comparison

RANK = {"better": 0, "worse": 0, "equivalent": 1, "undecided": 2}
Row = dict[str, Any]


def overall(comparison: Comparison, *, pooled_first: bool) -> list[Row]:
    """Return the overall and the pooled rows, contrast by contrast."""
    single, pooled = (
        frame[frame.task == OVERALL].to_dict("records") for frame in (comparison.table, comparison.pooled)
    )
    order = [pooled, single] if pooled_first else [single, pooled]
    found = []
    for a, b in comparison.contrasts:
        found += [row for rows in order for row in rows if (row["objective"], row["baseline"]) == (a, b)]
    return found


def is_pooled(row: Row) -> bool:
    """Return whether a row speaks of all pairs."""
    return row["student"] == "all" and row["teacher"] == "all"


def chief(comparison: Comparison) -> list[Row]:
    """Return one row a contrast: the pooled one where there is one, else all of its overall rows."""
    found = []
    for a, b in comparison.contrasts:
        mine = [r for r in overall(comparison, pooled_first=True) if (r["objective"], r["baseline"]) == (a, b)]
        pooled = [row for row in mine if is_pooled(row)]
        found += pooled or mine
    return found


def telling(rows: Sequence[Row], limit: int) -> tuple[list[Row], list[Row]]:
    """Return the rows to show and those left out: all in their order if they fit, else pooled, decided, largest."""
    if len(rows) <= limit:
        return list(rows), []
    ranked = sorted(rows, key=lambda row: (not is_pooled(row), RANK[row["verdict"]], -abs(row["delta"])))
    return ranked[:limit], ranked[limit:]


def left_out(comparison: Comparison, rows: Sequence[Row]) -> str:
    """Return what the rows that are not shown have in common."""
    words = [word for word in RANK if any(row["verdict"] == word for row in rows)]
    verdicts = (
        f"all {words[0]}"
        if len(words) == 1
        else ", ".join(f"{sum(row['verdict'] == word for row in rows)} {word}" for word in words)
    )
    low, high = (number(comparison, f(row["delta"] for row in rows), sign=True) for f in (min, max))
    return f"{len(rows)} more rows ({verdicts}) lie between {low} and {high}"


def one_baseline(comparison: Comparison) -> str | None:
    """Return the baseline that all contrasts share, if there are several."""
    names = {b for _, b in comparison.contrasts}
    return names.pop() if len(names) == 1 and len(comparison.contrasts) > 1 else None


def name(comparison: Comparison, row: Row) -> str:
    """Return what is compared: `atkd − kl`, or `atkd` where every contrast is against one baseline."""
    return row["objective"] if one_baseline(comparison) else f"{row['objective']} − {row['baseline']}"


def one_place(rows: Sequence[Row]) -> str | None:
    """Return the (student, teacher) pair at which all rows stand, if it is one."""
    places = {place_text(row) for row in rows}
    return places.pop() if len(places) == 1 else None
