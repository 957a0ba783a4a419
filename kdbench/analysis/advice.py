"""The answer for somebody who has not seen the tool: what to use, how sure that is, what would make it surer."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from kdbench.analysis import rows as choice
from kdbench.analysis.labels import count, listed
from kdbench.analysis.words import OVERALL, detail, number, place_text, unit
from kdbench.suite.external import CONTROL

if TYPE_CHECKING:
    from kdbench.analysis.verdict import Comparison

FIXED = ("floor", "ceiling")
MANY_SEEDS = 100  # more than that is no advice
NAMED = 4
UNTUNED = "One learning rate served all objectives; tuning each (tune: in the suite) may change the order."


@dataclass(frozen=True)
class Ranked:
    """Trained arms at one place, best first.

    Attributes:
        equals: those that cannot be told apart from the best, the best among them; None where nobody tested it.
    """

    place: str
    means: list[tuple[str, float]]
    equals: list[str] | None

    @property
    def leader(self) -> str:
        """The arm with the highest mean."""
        return self.means[0][0]


def advice(comparison: Comparison, *, tuned: bool = True, elsewhere: Collection[str] = ()) -> list[str]:
    """Return a few sentences: which objective, how sure, and what it would take to be surer.

    Args:
        elsewhere: arms that were not trained here.
    """
    ranked = ranking(comparison)
    if not ranked:
        return []
    told = [_use(comparison, ranked[0]), *_elsewhere(ranked), *_beaten(comparison, ranked[0])]
    told += [f"{ranked[0].leader} was {CONTROL}."] if ranked[0].leader in elsewhere else []
    told += [_surer(comparison), "" if tuned else UNTUNED]
    return [text for text in told if text]


def ranking(comparison: Comparison) -> list[Ranked]:
    """Return the arms over all pairs, then at each pair; only the latter where there is one pair."""
    best = getattr(comparison, "best", None)
    if best is not None and len(best):
        groups = best.groupby(["student", "teacher"], sort=False, dropna=False)
        found = [_of_best(place, part) for place, part in groups]
        return sorted(found, key=lambda one: one.place != "all pairs")
    means = comparison.means[(comparison.means.task == OVERALL) & ~comparison.means.objective.isin(FIXED)]
    over = means.groupby("objective", sort=False)["mean"].mean().sort_values(ascending=False, kind="stable")
    places = means[["student", "teacher"]].dropna().drop_duplicates()
    name = "all pairs" if len(places) > 1 else "".join(place_text(row) for row in places.to_dict("records"))
    return [Ranked(name, [(str(arm), float(mean)) for arm, mean in over.items()], None)] if len(over) else []


def _of_best(place: tuple[Any, Any], part: pd.DataFrame) -> Ranked:
    part = part.sort_values("mean", ascending=False, kind="stable")
    means = [(str(row.objective), float(row.mean_)) for row in part.rename(columns={"mean": "mean_"}).itertuples()]
    equals = [str(name) for name in part.objective[part.in_best.astype(bool)]]
    return Ranked(place_text({"student": place[0], "teacher": place[1]}), means, equals)


def _use(comparison: Comparison, ranked: Ranked) -> str:
    arms, leader = len(ranked.means), ranked.leader
    score = f"{number(comparison, ranked.means[0][1])}{' points' if comparison.points else ''}"
    where = f" ({ranked.place})" if ranked.place else ""
    if arms == 1:
        return f"{leader} is the only trained arm; its mean is {score}{where}."
    if ranked.equals is None:
        return f"{leader} has the highest mean of {arms} trained arms, {score}{where}."
    if len(ranked.equals) <= 1:
        rest = f"the other {arms - 1} {'is' if arms == 2 else 'are'} ruled out as the best"
        return f"Use {leader}: its mean of {score} is the highest{where}, and {rest}."
    others = [name for name in ranked.equals if name != leader]
    free = _teacher_free(comparison, others)
    cheap = f" {listed(free)}, without a teacher, {'is' if len(free) == 1 else 'are'} among these." if free else ""
    if len(ranked.equals) > max(NAMED, arms // 2) or len(ranked.equals) == arms:
        many = f"{len(ranked.equals)} of {arms} arms may be the best"
        return f"No objective stands out{where}: {leader} has the highest mean, {score}, but {many}.{cheap}"
    named, rest = listed(others, "and", NAMED), arms - len(ranked.equals)
    return (
        f"Use {leader}, which has the highest mean, {score}{where}; {named} cannot be told apart from it, and "
        f"the other {f'{rest} are' if rest > 1 else 'one is'} ruled out as the best.{cheap}"
    )


def _teacher_free(comparison: Comparison, arms: Sequence[str]) -> list[str]:
    means = comparison.means
    return [arm for arm in arms if means[means.objective == arm].teacher.isna().all()]


def _elsewhere(ranked: Sequence[Ranked]) -> list[str]:
    """Say where single pairs would choose another arm for sure."""
    leader = ranked[0].leader
    found = [one for one in ranked[1:] if one.equals is not None and leader not in one.equals]
    if not found:
        return []
    told = [f"{one.leader} at {one.place}" for one in found]
    return [f"It depends on the pair: {leader} falls behind {listed(told, 'and', NAMED)}."]


def _beaten(comparison: Comparison, ranked: Ranked) -> list[str]:
    """Give the clearest contrast in which the leader won or lost."""
    rows = [row for row in choice.chief(comparison) if ranked.leader in (row["objective"], row["baseline"])]
    decided = [row for row in rows if row["verdict"] in ("better", "worse")]
    return [comparison.sentence(max(decided, key=lambda row: abs(row["delta"])))] if decided else []


def _surer(comparison: Comparison) -> str:
    """Say what more seeds would do for the rows that are undecided."""
    rows = choice.chief(comparison)
    left = [(row, detail(comparison, row)) for row in rows if row["verdict"] == "undecided"]
    if not left:
        return f"{'Every contrast' if len(rows) > 1 else 'The contrast'} that the suite names is decided."
    seeds = max(int(row["n_seeds"]) for row in rows)
    if seeds == 1:
        return "To be surer: run three seeds or more; one seed cannot decide about an objective."
    needed = sorted(float(more["seeds_needed"]) for _, more in left if not pd.isna(more["seeds_needed"]))
    seen = [float(more["mde"]) for _, more in left if math.isfinite(more["mde"])]
    what = f"{len(left)} of {len(rows)} contrasts {'is' if len(left) == 1 else 'are'} undecided"
    if seen:
        span = " to ".join(dict.fromkeys(number(comparison, value) for value in (min(seen), max(seen))))
        what += f" (differences under {span} {unit(comparison)} could not be seen with {count(seeds, 'seed')})"
    near = [value for value in needed if value <= MANY_SEEDS]
    if not near:
        return f"{what}; to be surer, more items are needed as well as more than {MANY_SEEDS} seeds."
    some = "all of them" if len(near) == len(left) else f"{len(near)} of them"
    span = " to ".join(dict.fromkeys(f"{int(value):,}" for value in (near[0], near[-1])))
    return f"{what}; to be surer, run {span} seeds: that would decide {'it' if len(left) == 1 else some}."
