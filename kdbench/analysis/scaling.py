"""Where does an objective help: scores and gains against the size of teacher and student, and the teacher's UNC."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from kdbench.analysis.scaling_words import STUDENT, TEACHER, UNC_STEP, UNSURE, sentences
from kdbench.analysis.scores import Paired, Place
from kdbench.analysis.slopes import NOTHING, ROW, SIZE, Question, family, question, slope
from kdbench.errors import ConfigError

__all__ = ["along_uncertainty", "interactions", "sentences", "teacher_trend"]

ARM = ["objective", "student"]
GAIN = ["objective", "baseline", "moderator"]
TOO_CLOSE = "models that lie this close together show no slope"
CLOSE = 1.1  # sizes within 10 %, or UNC within .014: a slope over that would be noise blown up
BOUNDARY = 1e-4  # of the residual variance; below it the seeds' is at 0
NOT_TRAINED = ("floor", "ceiling", NOTHING)
TREND_WORDS = {"": ("larger teachers help", "larger teachers hurt", "no trend shown")}
GAIN_WORDS = {
    TEACHER: ("the gain grows with the teacher", "the gain shrinks with the teacher", "no change shown"),
    STUDENT: ("the gain grows with the student", "the gain shrinks with the student", "no change shown"),
    UNSURE: ("the gain grows with the teacher's UNC", "the gain shrinks with the teacher's UNC", "no change shown"),
}
Parts = list[tuple[Place, Paired]]


def teacher_trend(
    scores: pd.DataFrame,
    sizes: Mapping[str, float],
    tasks: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    alpha: float = 0.05,
    *,
    teachers: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return each objective's slope of the mean score per doubling of the teacher, for each student.

    Model-based (`slopes`): interval and p are those of the crossed random-effects model, seeds and items random,
    teachers fixed; p by Holm over all rows. A straight line is asked for, which a peak in the middle can hide.

    Args:
        scores: tidy, as `kdbench.load_scores` gives.
        sizes: parameters of every model.
        tasks, weights: of the mean; all tasks, equally, by default.
        teachers: use only these, such as those of one regime.

    Returns:
        objective, student, slope, ci_low, ci_high (units of score), p_value, p_adjusted, reading, mde, n_models
        (teachers), n_seeds, n_items, lowest, highest (parameters). No rows where fewer than two sizes of teacher were
        run; `attrs["notes"]` says so.
    """
    asked = question(scores, tasks, weights, alpha, teachers)
    rows = []
    for objective in asked.data.arms:
        parts = [] if objective in NOT_TRAINED else _sized(asked.places(objective), 1, sizes, asked)
        for student in dict.fromkeys(place[0] for place, _ in parts):
            mine = [part for part in parts if part[0][0] == student]
            row = _over(mine, 1, sizes, asked, f"{objective} at {student or 'all students'}")
            rows += [] if row is None else [{"objective": objective, "student": student, **row}]
    if not rows and TOO_CLOSE not in asked.notes.found:
        asked.notes.add("a trend over teachers needs results with two sizes of teacher or more", "teacher size")
    return family(rows, [*ARM, *ROW, *SIZE], TREND_WORDS, asked)


def interactions(
    scores: pd.DataFrame,
    sizes: Mapping[str, float],
    contrasts: Sequence[tuple[str, str]],
    tasks: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    alpha: float = 0.05,
    *,
    teachers: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return how each contrast's gain changes per doubling of the teacher, and per doubling of the student.

    Teachers are set against each other within a student, and students within a teacher. As a cross-check a linear
    mixed model, gain ~ log2(teacher) + log2(student) with the seed random (statsmodels MixedLM), is fitted to the mean
    gain of every pair and seed: it does not know of items, and its p is a normal one.

    Args and returns as for `teacher_trend`, with `contrasts` (objective, baseline), a row for each and `moderator`
    (teacher size, student size), and `mixed_slope`, `mixed_p`, `mixed` (how the fit went, in words).
    """
    asked = question(scores, tasks, weights, alpha, teachers)
    rows = []
    for objective, baseline in _known(contrasts, asked):
        parts = asked.places(objective, baseline)
        mixed = _mixed(parts, sizes, asked)
        for moderator, side in ((TEACHER, 1), (STUDENT, 0)):
            sized = _sized(parts, side, sizes, asked)
            row = _over(sized, side, sizes, asked, f"{objective} − {baseline}, {moderator}")
            head = {"objective": objective, "baseline": baseline, "moderator": moderator}
            if row is not None:
                found = dict(zip(("mixed_slope", "mixed_p", "mixed"), mixed.get(moderator, mixed[""]), strict=True))
                rows.append(head | row | found)
    if not rows and TOO_CLOSE not in asked.notes.found:
        asked.notes.add("an interaction with size needs results with two sizes of teacher or student", "model size")
    return family(rows, [*GAIN, *ROW, *SIZE, "mixed_slope", "mixed_p", "mixed"], GAIN_WORDS, asked)


def along_uncertainty(
    scores: pd.DataFrame,
    uncertainty: Mapping[str, float],
    contrasts: Sequence[tuple[str, str]],
    tasks: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    alpha: float = 0.05,
    *,
    teachers: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return how each contrast's gain changes per 0.1 of the teacher's median UNC = 1 − p(target).

    Args and returns as for `interactions`, with `uncertainty` (median UNC of every teacher) for sizes, and `spearman`,
    the rank correlation of UNC and gain over teachers: a description, since teachers are few and were not drawn.
    """
    asked = question(scores, tasks, weights, alpha, teachers)
    steps = {name: 2 ** (value / UNC_STEP) for name, value in uncertainty.items() if math.isfinite(value)}
    rows = []
    for objective, baseline in _known(contrasts, asked):
        parts = _sized(asked.places(objective, baseline), 1, steps, asked)
        row = _over(parts, 1, steps, asked, f"{objective} − {baseline}, {UNSURE}", UNSURE)
        if row is not None:
            ends = {name: math.log2(row[name]) * UNC_STEP for name in ("lowest", "highest")}
            ranks = {"spearman": _rank_correlation(parts, uncertainty, asked)}
            rows.append({"objective": objective, "baseline": baseline, "moderator": UNSURE} | row | ends | ranks)
    if not rows and TOO_CLOSE not in asked.notes.found:
        asked.notes.add("whether the gain follows UNC needs two teachers whose median UNC is known", UNSURE)
    return family(rows, [*GAIN, *ROW, *SIZE, "spearman"], GAIN_WORDS, asked)


def _known(contrasts: Sequence[tuple[str, str]], asked: Question) -> list[tuple[str, str]]:
    """Return the contrasts of which both arms have results; the others are noted."""
    found = [(a, b) for a, b in contrasts if a in asked.data.arms and b in asked.data.arms]
    for a, b in contrasts:
        if (a, b) not in found:
            asked.notes.add("contrasts without results on both sides were left out", f"{a} − {b}")
    return found


def _sized(parts: Parts, side: int, sizes: Mapping[str, float], asked: Question) -> Parts:
    """Return the parts whose student (side 0) or teacher (side 1) has a known size; the others are noted."""
    what = ("student", "teacher")[side]
    for name in dict.fromkeys(place[side] for place, _ in parts):
        if name is not None and name not in sizes:
            asked.notes.add(f"nothing is known to order a {what} by, so it was left out", str(name))
    return [part for part in parts if part[0][side] in sizes]


def _over(
    parts: Parts, side: int, sizes: Mapping[str, float], asked: Question, where: str, unit: str = "size"
) -> dict[str, Any] | None:
    """Return the slope per doubling of one side's size, within each model of the other side."""
    if bad := [place[side] for place, _ in parts if not sizes[str(place[side])] > 0]:
        raise ConfigError(f"sizes: expected a number of parameters above 0, found {sizes[str(bad[0])]} for {bad[0]!r}")
    x = [math.log2(sizes[str(place[side])]) for place, _ in parts]
    row = slope(parts, x, [place[1 - side] for place, _ in parts], asked, where) if parts else None
    if row is None:
        return None
    if row["highest"] - row["lowest"] < math.log2(CLOSE):
        asked.notes.add(TOO_CLOSE, where)
        return None
    names = {place[side] for place, _ in parts}
    if unit == "size" and len({sizes[str(name)] for name in names}) < len(names):
        asked.notes.add("models of one size stand on the same line, though they may differ otherwise", where)
    return row | {"n_models": len(names), **{name: 2 ** row[name] for name in ("lowest", "highest")}}


def _mean_by_seed(paired: Paired, asked: Question) -> np.ndarray:
    return asked.task_weights(paired.tasks) @ np.array([block.mean(axis=1) for block in paired.blocks])


def _rank_correlation(parts: Parts, uncertainty: Mapping[str, float], asked: Question) -> float:
    """Return Spearman's ρ of UNC and mean gain over teachers; NaN for fewer than three."""
    gains: dict[str, list[float]] = {}
    for (_, teacher), paired in parts:
        gains.setdefault(str(teacher), []).append(float(_mean_by_seed(paired, asked).mean()))
    if len(gains) < 3:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant input has no rank correlation: NaN
        return float(spearmanr([uncertainty[name] for name in gains], [np.mean(some) for some in gains.values()])[0])


def _mixed(parts: Parts, sizes: Mapping[str, float], asked: Question) -> dict[str, tuple[float, float, str]]:
    """Return (slope, p, how it went) of each moderator by a linear mixed model; under "" why there is none."""
    rows = [
        {TEACHER: sizes[str(teacher)], STUDENT: sizes[str(student)], "seed": str(seed), "gain": gain}
        for (student, teacher), paired in parts
        if student in sizes and teacher in sizes
        for seed, gain in zip(paired.seeds, _mean_by_seed(paired, asked), strict=True)
    ]
    frame = pd.DataFrame(rows, columns=[TEACHER, STUDENT, "seed", "gain"])
    varied = [name for name in (TEACHER, STUDENT) if frame[name].nunique() > 1]
    if frame["seed"].nunique() < 2 or len(frame) <= len(varied) + 2:
        return {"": (math.nan, math.nan, "not fitted: too few seeds or pairs")}
    fit, spread, how = _fit_mixed(frame, varied)
    if fit is None:
        return {"": (math.nan, math.nan, how)}
    return {"": (math.nan, math.nan, how)} | {
        name: (spread * float(fit.params[index + 1]), float(fit.pvalues[index + 1]), how)
        for index, name in enumerate(varied)
    }


def _fit_mixed(frame: pd.DataFrame, varied: list[str]) -> tuple[Any, float, str]:
    """Return the fit to the gain over its standard deviation, which helps it converge, that deviation, and words."""
    from statsmodels.regression.mixed_linear_model import MixedLM

    x = np.column_stack([np.ones(len(frame)), *(np.log2(frame[name].to_numpy(dtype=float)) for name in varied)])
    x[:, 1:] -= x[:, 1:].mean(axis=0)
    gain = frame["gain"].to_numpy(dtype=float)
    spread = float(gain.std())
    if spread <= 1e-12:
        return None, spread, "not fitted: the gain is the same everywhere"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of them is said below
            fit = MixedLM(gain / spread, x, groups=frame["seed"].to_numpy()).fit(reml=True, method=["powell"])
            known = bool(np.isfinite(fit.pvalues[1 : 1 + len(varied)]).all())  # a variance of 0 has none
    except (np.linalg.LinAlgError, ValueError) as error:
        return None, spread, f"not fitted: {error}"
    if not fit.converged or not known:
        return None, spread, "did not converge"
    at_zero = float(np.asarray(fit.cov_re).ravel()[0]) < BOUNDARY * fit.scale
    return fit, spread, "fitted; the variance of seeds is at 0" if at_zero else "fitted"
