"""`compare`: from tidy scores to better / worse / equivalent / undecided, with interval and sensitivity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kdbench.analysis import stats
from kdbench.analysis.checkpoints import checkpoints
from kdbench.analysis.means import mean_scores
from kdbench.analysis.remarks import BOOTSTRAP_FROM, MODEL, exact_test, in_words, remark
from kdbench.analysis.scores import Notes, Paired, Place, Scores, pair, pool, read
from kdbench.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Comparison", "checkpoints", "compare"]

KEY = ["student", "teacher", "task", "objective", "baseline"]
COLUMNS = [*KEY, "delta", "ci_low", "ci_high", "p_value", "p_adjusted", "verdict", "n_seeds", "n_items"]
DETAILS = [*KEY, "method", "se", "var_seeds", "var_items", "p_model", "p_sign_flip", "tost_low", "tost_high"]
DETAILS += ["mde", "seeds_needed"]
OVERALL = "overall"
FLOOR, CEILING = "floor", "ceiling"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. Differences and means are in units of `score`; `delta` is objective − baseline."""

    table: pd.DataFrame
    pooled: pd.DataFrame
    means: pd.DataFrame
    details: pd.DataFrame
    notes: list[str]
    method: str
    smallest_p: float
    alpha: float
    margin: float
    contrasts: list[tuple[str, str]]
    points: bool  # scores lie in 0..1 and read as points, x 100

    def sentence(self, row: Mapping[str, Any]) -> str:
        """Return one row of `table` or `pooled` in plain words."""
        from kdbench.analysis.words import sentence

        return sentence(self, row)

    def sentences(self) -> list[str]:
        """Return the pooled rows, then every overall row, in plain words."""
        frames = [frame[frame.task == OVERALL] for frame in (self.pooled, self.table)]
        return [self.sentence(row) for frame in frames for row in frame.to_dict("records")]

    def rich_tables(self) -> list[Table]:
        """Return tables for the terminal that fit 100 columns."""
        from kdbench.analysis.terminal import tables

        return tables(self)

    def to_markdown(self) -> str:
        """Return everything as Markdown."""
        from kdbench.analysis.words import markdown

        return markdown(self)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values; None for what is not known."""
        from kdbench.analysis.words import as_json

        return as_json(self)


Cell = tuple[Place, str, str, Paired]  # where, objective, baseline, differences


@dataclass(frozen=True)
class _Question:
    """What was asked, checked."""

    weights: Mapping[str, float] | None
    alpha: float
    margin: float
    resampler: stats.Resampler
    task_order: list[str]


def compare(
    scores: pd.DataFrame,
    baseline: str | None = None,
    *,
    contrasts: Sequence[tuple[str, str]] | None = None,
    objectives: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    alpha: float = 0.05,
    margin: float = 0.01,
    seed: int = 0,
) -> Comparison:
    """Ask of each objective whether it is better than its baseline, with seeds and items random and tasks fixed.

    Args:
        scores: tidy rows `objective, student, teacher, seed, task, item, score[, item_hash]`; null teacher or seed:
            the arm needs none, and stands beside every value of the other arm.
        baseline: contrast every other objective with it; `floor` and `ceiling` only when named in `objectives`.
        contrasts: (objective, baseline) pairs, instead of `baseline`.
        objectives: contrast only these.
        tasks: use only these.
        weights: of the tasks in `overall`; equal by default.
        alpha: family-wise error of the overall rows (Holm), and of the pooled rows.
        margin: differences inside ±margin count as equivalent, in units of score.
        seed: of resampling.

    Raises:
        ConfigError: when scores or arguments do not fit together.
    """
    if not 0 < alpha < 0.5 or not (margin > 0 and math.isfinite(margin)):
        raise ConfigError(f"alpha must lie in 0..0.5 and margin above 0; found alpha={alpha}, margin={margin}")
    data = read(scores, tasks)
    wanted = _contrasts(data, baseline, contrasts, objectives)
    asked = _Question(_checked(weights, data), alpha, margin, stats.Resampler(seed), list(data.columns))
    notes = Notes()
    cells: list[Cell] = []
    pooled: list[Cell] = []
    for a, b in wanted:
        found = [(place, pair(data, a, b, place, notes)) for place in data.places(a, b)]
        parts = [(place, paired) for place, paired in found if paired is not None]
        if not parts:
            reasons = "; ".join(notes.lines()) or "they stand at no common (student, teacher)"
            raise ConfigError(f"{a!r} and {b!r} have no overlap to compare: {reasons}")
        cells += [(place, a, b, paired) for place, paired in parts]
        if len(parts) > 1 and (whole := pool([paired for _, paired in parts], notes, f"{a} against {b}")):
            pooled.append((("all", "all"), a, b, whole))
    table, table_details = _family(cells, asked)
    pooled_table, pooled_details = _family(pooled, asked)
    remark(notes, cells, len(data.columns), alpha)
    frames = [frame for frame in (table_details, pooled_details) if len(frame)]
    smallest = min(stats.smallest_sign_flip_p(len(paired.seeds)) for *_, paired in cells)
    return Comparison(
        table, pooled_table, mean_scores(data, asked.weights), pd.concat(frames, ignore_index=True), notes.lines(),
        in_words(list(table_details.method), alpha), smallest, alpha, margin, wanted, data.in_unit,
    )  # fmt: skip


def _contrasts(
    data: Scores, baseline: str | None, contrasts: Sequence[tuple[str, str]] | None, objectives: Sequence[str] | None
) -> list[tuple[str, str]]:
    """Return the (objective, baseline) pairs that were asked for."""
    if (baseline is None) == (contrasts is None):
        raise ConfigError(f"give either baseline= or contrasts=. Objectives in the scores: {', '.join(data.arms)}")
    for name in objectives or ():
        data.known(name, "objective")
    if contrasts is None:
        data.known(str(baseline), "baseline")
        named = objectives if objectives is not None else [n for n in data.arms if n not in (FLOOR, CEILING)]
        wanted = [(name, str(baseline)) for name in named if name != baseline]
    else:
        wanted = [(a, b) for a, b in contrasts if objectives is None or a in objectives]
    for a, b in wanted:
        data.known(a, "objective")
        data.known(b, "baseline")
        if a == b:
            raise ConfigError(f"contrast {a!r} with another objective than itself")
    if not wanted:
        raise ConfigError(f"nothing to compare with {baseline!r}. Objectives in the scores: {', '.join(data.arms)}")
    return list(dict.fromkeys(wanted))


def _checked(weights: Mapping[str, float] | None, data: Scores) -> Mapping[str, float] | None:
    """Return the weights if they name every task with a positive number."""
    if weights is None:
        return None
    for task in weights:
        if task not in data.columns:
            hint = did_you_mean(task, data.columns)
            raise ConfigError(f"weights name the task {task!r}, which is not in the scores.{hint}")
    for task in data.columns:
        value = weights.get(task)
        if value is None or not math.isfinite(value) or value <= 0:
            raise ConfigError(f"weights must give every task a number above 0; task {task!r} has {value}")
    return weights


def _family(cells: list[Cell], asked: _Question) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of one family, adjusted and judged: the columns of `table`, and those of `details`."""
    size = sum(len(paired.seeds) > 1 for *_, paired in cells)
    rows = [row for cell in cells for row in _rows(*cell, asked, size)]
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *DETAILS[len(KEY) :]])
    for name in KEY:  # a student or teacher of None stays None
        frame[name] = pd.Series([row[name] for row in rows], dtype=object)
    overall = (frame.task == OVERALL).to_numpy(dtype=bool)
    p_values = frame.p_value.to_numpy(dtype=float)
    adjusted = np.full(len(frame), np.nan)
    adjusted[overall] = stats.adjust(p_values[overall], "holm")
    adjusted[~overall] = stats.adjust(p_values[~overall], "fdr_bh")
    frame["p_adjusted"] = adjusted
    frame["verdict"] = [_verdict(row, asked) for row in frame.to_dict("records")]
    frame.loc[frame.verdict != "undecided", "seeds_needed"] = np.nan
    return frame[COLUMNS].copy(), frame[DETAILS].copy()


def _rows(place: Place, a: str, b: str, paired: Paired, asked: _Question, size: int) -> list[dict[str, Any]]:
    """Return one row a task and the overall row of one contrast at one place."""
    given = np.array([1.0 if asked.weights is None else asked.weights[task] for task in paired.tasks])
    n_seeds, resampled = len(paired.seeds), None
    if n_seeds >= BOOTSTRAP_FROM:
        positions = [asked.task_order.index(task) for task in paired.tasks]
        resampled = asked.resampler.means(paired.blocks, positions)
    exact = exact_test(n_seeds, size, asked.alpha)
    head = dict(zip(("student", "teacher", "objective", "baseline"), (*place, a, b), strict=True))
    parts = [(task, [i], np.ones(1), 1) for i, task in enumerate(paired.tasks)]
    parts.append((OVERALL, list(range(len(paired.tasks))), given / given.sum(), size))
    rows = []
    for task, which, weights, family in parts:
        fit = stats.crossed([paired.blocks[i] for i in which], weights)
        shape = None if resampled is None else weights @ resampled[which]
        rows.append({**head, "task": task, **_estimate(fit, shape, exact, family, asked)})
    return rows


def _estimate(
    fit: stats.Crossed, shape: np.ndarray | None, exact: bool, family: int, asked: _Question
) -> dict[str, Any]:
    """Return the numbers of one row.

    Where sign flipping can reach alpha in its family (a fact of the design, known before any score), the p-value is the
    larger of the exact sign-flip p and the model's p: sign flipping alone takes the items as fixed, and when seeds
    share the luck of a small item sample it rejects true nulls far too often (up to 80 % in simulations).
    """

    def interval(level: float) -> tuple[float, float]:
        return stats.t_interval(fit, level) if shape is None else stats.bootstrap_interval(fit, shape, level)

    alone = fit.n_seeds < 2
    p_model = math.nan if alone else stats.t_p_value(fit)
    rng = np.random.default_rng([asked.resampler.seed, 2])
    p_flip = math.nan if alone else stats.sign_flip(fit.seed_means, rng)
    (low, high), (tost_low, tost_high) = interval(1 - asked.alpha), interval(1 - 2 * asked.alpha)
    bounds = "items only" if alone else MODEL if shape is None else "hierarchical bootstrap"
    test = "no test" if alone else f"sign flip and {MODEL}" if exact else MODEL
    return {
        "delta": fit.delta, "ci_low": low, "ci_high": high, "p_value": max(p_model, p_flip) if exact else p_model,
        "n_seeds": fit.n_seeds, "n_items": fit.n_items, "method": f"interval: {bounds}; p: {test}", "se": fit.se,
        "var_seeds": fit.var_seeds + fit.var_noise, "var_items": fit.var_items, "p_model": p_model,
        "p_sign_flip": p_flip, "tost_low": tost_low, "tost_high": tost_high,
        "mde": math.nan if alone else stats.detectable(fit, asked.alpha),
        "seeds_needed": stats.seeds_needed(fit, asked.alpha / max(family, 1), asked.margin),
    }  # fmt: skip


def _verdict(row: Mapping[str, Any], asked: _Question) -> str:
    """Return the verdict word of a row. One seed never decides about an objective."""
    if row["n_seeds"] < 2:
        return "undecided"
    if row["p_adjusted"] < asked.alpha:
        return "better" if row["delta"] > 0 else "worse"
    inside = -asked.margin < row["tost_low"] and row["tost_high"] < asked.margin
    return "equivalent" if inside else "undecided"
