"""The best set: the objectives that are not distinguishable from the best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from kdbench.analysis import maxt, stats
from kdbench.analysis.remarks import BOOTSTRAP_FROM
from kdbench.analysis.scores import Notes, Paired, Place, Scores, pair, pool
from kdbench.analysis.variance import moderated, moderates

COLUMNS = ["student", "teacher", "objective", "mean", "in_best", "p"]
FIXED = ("floor", "ceiling")
ALL: Place = ("all", "all")
DRAWS = 4_000
NAMED = 6  # of a best set in a sentence


@dataclass(frozen=True)
class Known:
    """What is known of one arm against another."""

    seeds: tuple[int | None, ...]
    fit: stats.Crossed
    items: np.ndarray


def best_sets(
    data: Scores, means: pd.DataFrame, weights: Mapping[str, float] | None, alpha: float, seed: int
) -> pd.DataFrame:
    """Return which trained arms may be the best, for each (student, teacher) and over all of them.

    An arm leaves the set when some other arm is better than it, tested one-sided against all others at once, so that
    the truly best arm stays with probability 1 − alpha: subset selection (Gupta 1965, Technometrics 7:225), the same
    as Hsu's multiple comparisons with the best (Hsu 1984, Ann. Stat. 12:1136). That asks for no correction over the
    candidates, only over each one's rivals: max-t with the crossed model's correlation, with six seeds or more also by
    joint sign flips, and with three to five seeds and four rivals or more Bonferroni with a moderated variance.

    Args:
        data: the scores; all arms but floor and ceiling compete, whatever contrasts were named.
        means: as `mean_scores` returns them.

    Returns:
        student, teacher (`all`, `all` for the mean over places), objective, mean, in_best, p (of being as good as
        every rival; NaN, and in the set, where no rival could be tested).
    """
    arms = [name for name in data.arms if name not in FIXED]
    places = _places(data, arms)
    found = _all_pairs(data, arms, places, weights)
    rows, overall = [], _overall(means)
    for place, pairs in found.items():
        here = [name for name in arms if any(name in names for names in pairs)]
        for name in here:
            p = p_best(name, here, pairs, np.random.default_rng([seed, 5]))
            rows.append([*place, name, _mean(overall.get(name, {}), place, places), not p < alpha, p])
    frame = pd.DataFrame(rows, columns=COLUMNS)
    for position, name in enumerate(COLUMNS[:2]):
        frame[name] = pd.Series([row[position] for row in rows], dtype=object)
    return frame


def _places(data: Scores, arms: Sequence[str]) -> list[Place]:
    """Return where arms meet; one without teacher only where no arm of that student has one."""
    found = dict.fromkeys(place for a, b in itertools.combinations(arms, 2) for place in data.places(a, b))
    taught = {student for student, teacher in found if teacher is not None}
    return [place for place in found if place[1] is not None or place[0] not in taught]


def _all_pairs(
    data: Scores, arms: Sequence[str], places: Sequence[Place], weights: Mapping[str, float] | None
) -> dict[Place, dict[tuple[str, str], Known]]:
    """Return, for each place and for all together, every two arms that share seeds and items there.

    Two arms at a time, because the differences themselves are large; what is kept of them is small.
    """
    found: dict[Place, dict[tuple[str, str], Known]] = {place: {} for place in places}
    if len(places) > 1:
        found[ALL] = {}
    for a, b in itertools.combinations(arms, 2):
        parts = []
        for place in places:
            paired = pair(data, a, b, place, Notes())
            if paired is not None:
                parts.append(paired)
                found[place][a, b] = _fitted(paired, weights, data)
        if 1 < len(parts) == len(places) and (whole := pool(parts, Notes(), "")):
            found[ALL][a, b] = _fitted(whole, weights, data)
    return found


def _fitted(paired: Paired, weights: Mapping[str, float] | None, data: Scores) -> Known:
    given = np.array([1.0 if weights is None else weights[task] for task in paired.tasks])
    given = given / given.sum()
    fit = stats.crossed(paired.units, given)
    return Known(paired.seeds, fit, maxt.member(paired, fit, math.nan, given, data.values.shape[1], (0, 1)).items)


def p_best(name: str, arms: Sequence[str], pairs: dict, rng: np.random.Generator) -> float:
    """Return the p of `name` being as good as every rival: that of the rival that beats it most clearly."""
    rivals = []
    for position, other in enumerate(arms):
        known = pairs.get((other, name)) or pairs.get((name, other))
        if known is None or known.fit.n_seeds < 2:
            continue
        turn = 1.0 if (other, name) in pairs else -1.0
        fit = replace(known.fit, delta=turn * known.fit.delta, seed_means=turn * known.fit.seed_means)
        rivals.append(maxt.Member(fit, _one_sided(fit), known.seeds, turn * known.items, (position + 1, 0)))
    if not rivals:
        return math.nan
    if all(moderates(len(one.seeds), len(rivals)) for one in rivals):
        return min(1.0, len(rivals) * min(_one_sided(fit) for fit in moderated([one.fit for one in rivals])))
    smallest = min(one.p for one in rivals)
    found = smallest
    if len(rivals) > 1:
        found = float(np.mean(maxt.null_p(rivals, rng, sides=1, draws=DRAWS).min(axis=1) <= smallest))
    if all(len(one.seeds) >= BOOTSTRAP_FROM for one in rivals):
        signed = maxt.flips(rivals, rng).max(axis=1)
        found = max(found, float(np.mean(signed >= signed[0] - 1e-9)))
    return max(found, smallest)


def _one_sided(fit: stats.Crossed) -> float:
    """Return the p of "not larger than 0"."""
    p = stats.t_p_value(fit)
    return p / 2 if fit.delta > 0 else 1 - p / 2


def _overall(means: pd.DataFrame) -> dict[str, dict[Place, float]]:
    """Return every arm's overall means by place."""
    rows = means[means.task == "overall"][["objective", "student", "teacher", "mean"]]
    found: dict[str, dict[Place, float]] = {}
    for objective, student, teacher, mean in rows.itertuples(index=False):
        found.setdefault(objective, {})[student, teacher] = mean
    return found


def _mean(known: dict[Place, float], place: Place, places: Sequence[Place]) -> float:
    """Return an arm's overall mean at a place, or over all places where it stands."""

    def at(where: Place) -> float:
        nearest = (where, (where[0], None), (None, where[1]), (None, None))
        return next((known[name] for name in nearest if name in known), math.nan)

    return float(np.nanmean([at(where) for where in places])) if place == ALL else at(place)


def sentences(best: pd.DataFrame, alpha: float) -> list[str]:
    """Return one sentence a place: which arms may be the best."""
    said = []
    for (student, teacher), rows in best.groupby(["student", "teacher"], sort=False, dropna=False):
        inside = [row.objective for row in rows.sort_values("mean", ascending=False).itertuples() if row.in_best]
        where = "over all student-teacher pairs" if (student, teacher) == ALL else f"at student {student}"
        where += "" if student == "all" or pd.isna(teacher) else f" with teacher {teacher}"
        sure = f"({100 * (1 - alpha):g} % sure that the best is among them)"
        if len(inside) == len(rows):
            said.append(f"No objective can be ruled out as the best {where}: all {len(rows)} remain.")
        else:
            more = f" and {len(inside) - NAMED} more" if len(inside) > NAMED else ""
            named = f"{', '.join(inside[:NAMED])}{more}"
            said.append(f"The best {where} is among {len(inside)} of {len(rows)}: {named} {sure}.")
    return said
