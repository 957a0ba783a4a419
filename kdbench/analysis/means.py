"""Mean scores of every arm, and how much of the way from floor to ceiling it went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from kdbench.analysis.scores import Place, Scores

COLUMNS = ["objective", "student", "teacher", "task", "mean", "sd_seeds", "n_seeds", "gap_recovered"]


def mean_scores(data: Scores, weights: Mapping[str, float] | None) -> pd.DataFrame:
    """Return a row per arm, (student, teacher) and task, and `overall` (weighted mean over the arm's tasks).

    `mean` and `sd_seeds` (standard deviation over seeds, NaN for one seed) are in units of score. `gap_recovered` =
    (mean − floor) / (ceiling − floor), NaN where either is unknown or the ceiling is not above the floor.
    """
    per_task = {task: _row_means(data.values[:, part]) for task, part in data.columns.items()}
    total = {
        arm: {p: _by_task(per_task, list(s.values()), weights) for p, s in d.items()} for arm, d in data.arms.items()
    }
    rows = []
    for objective, places in total.items():
        for place, tasks in places.items():
            floor, ceiling = _at_floor(total, place), _at_ceiling(total, place)
            for task, values in tasks.items():
                sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
                gap = _gap(float(values.mean()), floor.get(task), ceiling.get(task))
                rows.append([objective, *place, task, float(values.mean()), sd, len(values), gap])
    frame = pd.DataFrame(rows, columns=COLUMNS)
    for position, name in enumerate(COLUMNS[:4]):
        frame[name] = pd.Series([row[position] for row in rows], dtype=object)
    return frame


def _row_means(part: np.ndarray) -> np.ndarray:
    """Mean over the answered items of each row; NaN for a row without any."""
    counts = np.count_nonzero(~np.isnan(part), axis=1)
    return np.where(counts > 0, np.nansum(part, axis=1) / np.maximum(counts, 1), np.nan)


def _by_task(
    per_task: dict[str, np.ndarray], rows: list[int], weights: Mapping[str, float] | None
) -> dict[str, np.ndarray]:
    """Means of one arm, one a seed, by task; seeds that lack a task do not enter `overall`."""
    found = {task: means[rows] for task, means in per_task.items()}
    found = {task: means for task, means in found.items() if not np.isnan(means).all()}
    given = np.array([1.0 if weights is None else weights[task] for task in found])
    overall = (given / given.sum()) @ np.array(list(found.values()))
    out = {task: means[~np.isnan(means)] for task, means in found.items()}
    if not np.isnan(overall).all():
        out["overall"] = overall[~np.isnan(overall)]
    return out


def _at_floor(total: dict, place: Place) -> dict[str, np.ndarray]:
    """Return the untouched student's means."""
    arm = total.get("floor", {})
    for candidate in (place, (place[0], None)):
        if candidate in arm:
            return arm[candidate]
    return {}


def _at_ceiling(total: dict, place: Place) -> dict[str, np.ndarray]:
    """Return the teacher's means; for an arm without teacher, those of the only teacher there is."""
    student, teacher = place
    arm = total.get("ceiling", {})
    for candidate in ((student, teacher), (None, teacher)):
        if candidate in arm:
            return arm[candidate]
    fitting = [means for (_, name), means in arm.items() if name == teacher or teacher is None]
    teachers = {name for _, name in arm}
    return fitting[0] if fitting and (teacher is not None or len(teachers) == 1) else {}


def _gap(mean: float, floor: np.ndarray | None, ceiling: np.ndarray | None) -> float:
    """Share of the distance floor → ceiling, 1 at the ceiling."""
    if floor is None or ceiling is None:
        return math.nan
    low, high = float(floor.mean()), float(ceiling.mean())
    return (mean - low) / (high - low) if high > low else math.nan


def gaps_of(means: pd.DataFrame, places: Sequence[Place]) -> dict[tuple, float]:
    """Return ceiling − floor by (student, teacher, task), and its mean over the places under (`all`, `all`, task).

    NaN where either is unknown or the ceiling is not above the floor.
    """
    total: dict[str, dict[Place, dict[str, np.ndarray]]] = {}
    for name in ("floor", "ceiling"):
        for row in means[means.objective == name].to_dict("records"):
            place = (row["student"], row["teacher"])
            total.setdefault(name, {}).setdefault(place, {})[row["task"]] = np.array([row["mean"]])
    found: dict[tuple, float] = {}
    unique = list(dict.fromkeys(places))
    for task in means.task.unique():
        for place in unique:
            low, high = _at_floor(total, place).get(task), _at_ceiling(total, place).get(task)
            gap = math.nan if low is None or high is None else float(high.mean() - low.mean())
            found[(*place, task)] = gap if gap > 0 else math.nan
        found["all", "all", task] = float(np.mean([found[(*place, task)] for place in unique]))
    return found


def gap_over_pairs(means: pd.DataFrame, objective: str) -> float:
    """Return Σ (mean − floor) / Σ (ceiling − floor) over the pairs of an arm with a teacher; NaN where unknown.

    Not the mean of the pairs' own shares, which a pair whose ceiling is hardly above its floor would decide alone.

    Args:
        means: rows of one task, as `mean_scores` returns them.
    """
    rows = means.to_dict("records")
    at = {(row["objective"], row["student"], row["teacher"]): row["mean"] for row in rows}
    floors = {student: value for (arm, student, _), value in at.items() if arm == "floor"}
    gained = whole = 0.0
    for (arm, student, teacher), value in at.items():
        ceiling = at.get(("ceiling", student, teacher))
        if arm == objective and ceiling is not None and student in floors:
            gained, whole = gained + value - floors[student], whole + ceiling - floors[student]
    return gained / whole if whole > 0 else math.nan
