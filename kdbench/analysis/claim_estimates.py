"""What a claim is about, estimated: a claim becomes one contrast, and `kdbench.compare` estimates it.

Rows are picked, renamed or subtracted to that end; no statistics are made here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import pandas as pd

from kdbench.analysis.verdict import OVERALL, Comparison, compare
from kdbench.analysis.words import detail, place_text
from kdbench.suite.claims import Claim

KEY = ["student", "teacher", "seed", "task", "item"]


class Untested(Exception):
    """The results do not hold what a claim speaks of; says why."""


@dataclass(frozen=True)
class Estimate:
    """What a claim is about, as measured, in units of score; positive is what the claim says.

    Attributes:
        low, high: 1 − alpha interval; simultaneous over the family for `up_to`.
        p: two-sided p of 0; adjusted for the family for `up_to`. NaN with one seed.
        mde: true size that this suite would have told from 0 with 80 % power; for `up_to` the family's median.
        what: the measured quantity, in words.
        family: how many differences stood for choice.
        rises: of a drop, the steps to a larger teacher at which the arm gains (Holm over steps).
        notes: what had to be left out.
    """

    value: float
    low: float
    high: float
    p: float
    mde: float
    n_seeds: int
    n_items: int
    what: str
    family: int = 1
    rises: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def decidable(self) -> bool:
        """Whether there is a test at all: two seeds or more."""
        return self.n_seeds > 1 and not math.isnan(self.p)

    def significant(self, alpha: float) -> bool:
        """Return whether both the test and the interval exclude 0."""
        return self.decidable and self.p < alpha and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Setting:
    """What all claims of a suite share: see `kdbench.analysis.claims.judge`."""

    alpha: float
    margin: float
    sizes: Mapping[str, float]
    weights: Mapping[str, float] | None
    tasks: Sequence[str] | None


def estimate(claim: Claim, rows: pd.DataFrame, setting: Setting) -> Estimate:
    """Return what a claim is about, from the rows that it speaks of (`rows_of`).

    Raises:
        Untested, ConfigError: the rows do not hold it.
    """
    return ESTIMATES[claim.kind](claim, rows, _options(claim, rows, setting), setting)


def rows_of(claim: Claim, table: pd.DataFrame | None) -> pd.DataFrame:
    """Return the scores that a claim speaks of.

    Raises:
        Untested: there are none of some arm.
    """
    if table is None:
        raise Untested(f"no scores of {claim.metric} are at hand")
    names = table["objective"]
    if absent := [arm for arm in claim.arms if not (names == arm).any()]:
        raise Untested(f"there are no results of {', '.join(absent)}")
    keep = names.isin(claim.arms)
    for column in ("student", "teacher"):
        if wanted := getattr(claim.scope, column):
            keep &= table[column].isin(wanted) | table[column].isna()
    rows = table[keep]
    if absent := [arm for arm in claim.arms if not (rows["objective"] == arm).any()]:
        raise Untested(f"there are no results of {', '.join(absent)} in the claim's scope")
    return rows


def _options(claim: Claim, rows: pd.DataFrame, setting: Setting) -> dict[str, Any]:
    """Return the options of `compare`."""
    tasks = claim.tasks or (setting.tasks if claim.metric == "acc" else None) or list(dict.fromkeys(rows["task"]))
    known = setting.weights is not None and all(task in setting.weights for task in tasks)
    weights = {task: setting.weights[task] for task in tasks} if known and setting.weights else None
    return {"tasks": list(tasks), "weights": weights, "alpha": setting.alpha, "margin": setting.margin}


def _overall(found: Comparison) -> dict[str, Any]:
    """Return the one row over all places."""
    rows = found.pooled if len(found.pooled) else found.table
    rows = rows[rows["task"] == OVERALL]
    if len(rows) > 1:
        raise Untested("the pairs share no seed or no item, so they cannot be averaged")
    return rows.iloc[0].to_dict()


def _estimate(found: Comparison, row: Mapping[str, Any], what: str, **more: Any) -> Estimate:
    numbers = (float(row[name]) for name in ("delta", "ci_low", "ci_high", "p_value"))
    mde, notes = float(detail(found, row)["mde"]), tuple(found.notes)
    return Estimate(*numbers, mde, int(row["n_seeds"]), int(row["n_items"]), what, notes=notes, **more)


def _mean(claim: Claim, rows: pd.DataFrame, options: dict[str, Any], setting: Setting) -> Estimate:
    if len(claim.pairs) == 1:
        found = compare(rows, contrasts=claim.pairs, **options)
    else:  # contrasts become places, over which `compare` averages seed by seed and item by item
        stacked = [_at(rows[rows["objective"] == arm], (a, b), role) for a, b in claim.pairs
                   for arm, role in ((a, "objective"), (b, "baseline"))]  # fmt: skip
        found = compare(pd.concat(stacked), contrasts=[("objective", "baseline")], **options)
    row = _overall(found)
    what = " and ".join(f"{a} − {b}" for a, b in claim.pairs)
    where = "all pairs" if len(found.pooled) else place_text(row)
    return _estimate(found, row, f"the mean of {what} over {where}" if len(found.pooled) else f"{what} at {where}")


def _at(rows: pd.DataFrame, contrast: tuple[str, str], role: str) -> pd.DataFrame:
    """Return rows of one contrast as rows of `role` at students of their own."""
    student = rows["student"].astype(object).map(lambda name: f"{name} ({contrast[0]} − {contrast[1]})")
    return rows.assign(objective=role, student=student)


def simultaneous(
    rows: pd.DataFrame, contrasts: Sequence[tuple[str, str]], options: dict[str, Any], *, pooled: bool = False
) -> list[Estimate]:
    """Return every difference of a family that has two seeds, with intervals that hold together and the max-T p.

    The family is all contrasts at all places, or, `pooled`, their means over places.

    `mde` is widened as the interval is: the family's critical value in place of a single difference's.
    """
    found = compare(rows, contrasts=contrasts, **options)
    table = found.pooled if pooled and len(found.pooled) else found.table
    tested = table[(table["task"] == OVERALL) & (table["n_seeds"] > 1)].to_dict("records")
    estimates = []
    for row in tested:
        more = detail(found, row)
        low, high = float(more["simultaneous_low"]), float(more["simultaneous_high"])
        one = _estimate(found, row, f"{row['objective']} − {row['baseline']} at {place_text(row)}", family=len(tested))
        wider = max(0.0, (high - low) - (one.high - one.low)) / 2
        estimates.append(replace(one, low=low, high=high, p=float(more["p_max_t"]), mde=one.mde + wider))
    return estimates


def _up_to(claim: Claim, rows: pd.DataFrame, options: dict[str, Any], setting: Setting) -> Estimate:
    """The largest of a family. The interval of a maximum is from the largest lower to the largest upper bound."""
    family = simultaneous(rows, claim.pairs, options, pooled=claim.each == "contrast")
    if not family:
        raise Untested("one seed cannot decide about an objective")
    best = max(family, key=lambda one: one.value)
    p = min((one.p for one in family if one.value > 0), default=1.0)
    what = f"the largest of {len(family)} differences, {best.what}," if len(family) > 1 else best.what
    low, high = (max(getattr(one, name) for one in family) for name in ("low", "high"))
    mde = median(one.mde for one in family)  # nobody knows beforehand which difference the claim is true of
    return Estimate(best.value, low, high, p, mde, best.n_seeds, best.n_items, what, len(family), (), best.notes)


def _by_size(rows: pd.DataFrame, arms: Sequence[str], sizes: Mapping[str, float]) -> list[str]:
    """Return the teachers at which all arms stand, the smallest first."""
    standing = [set(rows.loc[rows["objective"] == arm, "teacher"].dropna()) for arm in arms]
    teachers = [name for name in dict.fromkeys(rows["teacher"].dropna()) if all(name in some for some in standing)]
    if unknown := [name for name in teachers if name not in sizes]:
        raise Untested(f"the size of {', '.join(unknown)} is not known")
    teachers.sort(key=lambda name: sizes[name])
    if len(teachers) < 2:
        raise Untested(f"{' and '.join(arms)} have results with {len(teachers)} teacher(s), and a drop needs two")
    for one, other in (teachers[:2], teachers[-2:]):
        if sizes[one] == sizes[other]:
            raise Untested(
                f"{one} and {other} are of one size; name the teachers that are meant in the claim's `scope`"
            )
    return teachers


def _monotone_drop(claim: Claim, rows: pd.DataFrame, options: dict[str, Any], setting: Setting) -> Estimate:
    teachers = _by_size(rows, claim.arms, setting.sizes)
    rows = rows[rows["teacher"].isin(teachers)]
    named = rows.assign(objective=rows["teacher"].astype(object), teacher=None)
    found = compare(named, contrasts=[(teachers[0], teachers[-1])], **options)
    what = f"the drop of {claim.arm} from teacher {teachers[0]} to {teachers[-1]}"
    steps = [
        pair for pair in zip(teachers[1:], teachers, strict=False) if setting.sizes[pair[0]] > setting.sizes[pair[1]]
    ]
    return _estimate(found, _overall(found), what, rises=_rises(named, steps, options) if len(teachers) > 2 else ())


def _rises(rows: pd.DataFrame, steps: Sequence[tuple[str, str]], options: dict[str, Any]) -> tuple[str, ...]:
    """Return the steps (larger, smaller teacher) that raise the score, by Holm over all steps."""
    found = compare(rows, contrasts=steps, **options)
    table = found.pooled if len(found.pooled) else found.table
    table = table[(table["task"] == OVERALL) & (table["verdict"] == "better")]
    return tuple(f"{row['baseline']} to {row['objective']}" for row in table.to_dict("records"))


def _repaired_drop(claim: Claim, rows: pd.DataFrame, options: dict[str, Any], setting: Setting) -> Estimate:
    """(objective − baseline at the largest teacher) − (the same at the smallest) = drop of baseline − of objective."""
    teachers = _by_size(rows, claim.arms, setting.sizes)
    small, large = f"the gain with {teachers[0]}", f"the gain with {teachers[-1]}"
    parts = []
    for a, b in claim.pairs:
        for teacher, name in ((teachers[0], small), (teachers[-1], large)):
            at = rows[rows["teacher"] == teacher]
            both = at[at["objective"] == a].merge(at[at["objective"] == b], on=KEY, suffixes=("", "_b"))
            gain = both.assign(score=both["score"] - both["score_b"], teacher=None)
            parts.append(_at(gain[list(rows.columns)], (a, b), name))
    found = compare(pd.concat(parts), contrasts=[(large, small)], **options)
    what = " and ".join(f"what {a} loses less than {b}" for a, b in claim.pairs)
    return _estimate(found, _overall(found), f"{what} from teacher {teachers[0]} to {teachers[-1]}")


ESTIMATES: dict[str, Callable[[Claim, pd.DataFrame, dict[str, Any], Setting], Estimate]] = {
    "mean": _mean,
    "up_to": _up_to,
    "monotone_drop": _monotone_drop,
    "repaired_drop": _repaired_drop,
}
