"""Contrasts at equal wall time: what is left of a gain when an objective gets the seconds of its baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdbench.analysis.labels import listed

if TYPE_CHECKING:
    import pandas as pd

ABOUT = (
    "The first arm of each contrast was trained again from the start, with as many steps as fit into the seconds that "
    "its baseline took; where a step of both takes the same time within 5 %, the cells at equal steps stand for it. "
    "Seconds are those of this machine and of whatever ran beside; these contrasts are a family of their own."
)


def arms(plan: Mapping[str, Any]) -> list[str]:
    """Return the arms that were given their baseline's time."""
    return list(dict.fromkeys(one["arm"] for one in plan.get("equal_time", ())))


def apart(scores: pd.DataFrame, plan: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows, of scores or of training curves, of all other arms: those at equal steps."""
    named = arms(plan)
    return scores[~scores["objective"].isin(named)] if named and len(scores) else scores


def contrasts(scores: pd.DataFrame, plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the contrasts at equal time of which both arms have scores."""
    known = {*scores["objective"]}
    found = dict.fromkeys((one["arm"], one["baseline"]) for one in plan.get("equal_time", ()))
    return [pair for pair in found if known.issuperset(pair)]


def sentences(plan: Mapping[str, Any]) -> list[str]:
    """Say of each arm how many steps it had, and why."""
    told = []
    for arm in arms(plan):
        mine = [one for one in plan["equal_time"] if one["arm"] == arm]
        known = [one for one in mine if one["steps"] is not None]
        if not known:
            told.append(f"{arm}: its steps are not known yet; run the suite again.")
            continue
        steps, of = _span([one["steps"] for one in known]), _span([one["of"] for one in known])
        ratios = [one["ratio"] for one in known if one["ratio"] is not None]
        why = f"a step took {_span([round(ratio, 2) for ratio in ratios])} × its baseline's" if ratios else "untimed"
        same = [_place(one) for one in known if one["steps"] == one["of"]]
        kept = "" if not same else " everywhere" if len(same) == len(known) else f" at {listed(same, most=3)}"
        told.append(f"{arm}: {steps} of {of} steps ({why}){f'; the same cells{kept}' if same else ''}.")
    return told


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _place(one: Mapping[str, Any]) -> str:
    return " ← ".join(name for name in (one["student"], one["teacher"]) if name)
