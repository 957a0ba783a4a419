"""From paired differences to the rows of a family: estimate, test, adjust, judge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kdbench.analysis import maxt, stats, variance
from kdbench.analysis.remarks import BOOTSTRAP_FROM, MODEL, exact_test
from kdbench.analysis.scores import Paired, Place

KEY = ["student", "teacher", "task", "objective", "baseline"]
COLUMNS = [*KEY, "delta", "ci_low", "ci_high", "p_value", "p_adjusted", "verdict", "n_seeds", "n_items"]
DETAILS = [*KEY, "method", "se", "var_seeds", "var_items", "p_model", "p_sign_flip", "tost_low", "tost_high"]
DETAILS += ["mde", "seeds_needed", "effect_size", "gap_recovered_delta", "p_moderated", "p_max_t"]
DETAILS += ["simultaneous_low", "simultaneous_high", "n_units"]
VARIANCE = [*KEY, "seed", "item", "residual", "n_seeds", "n_units"]
OVERALL = "overall"
Cell = tuple[Place, str, str, Paired]  # where, objective, baseline, differences


@dataclass(frozen=True)
class Question:
    """What was asked, checked.

    Attributes:
        alpha: the level that rows are judged at; at a planned look, that look's.
        judged: False at a look that was not planned: no row is judged.
        width: how many items the scores have over all tasks.
        gaps: (student, teacher, task) -> ceiling − floor, where both are known.
    """

    weights: Mapping[str, float] | None
    alpha: float
    margin: float
    resampler: stats.Resampler
    task_order: list[str]
    width: int
    judged: bool
    gaps: Mapping[tuple, float]

    def share(self, tasks: Sequence[str]) -> np.ndarray:
        """Return the weights of these tasks, summing to 1."""
        given = np.array([1.0 if self.weights is None else self.weights[task] for task in tasks])
        return given / given.sum()


@dataclass(frozen=True)
class Family:
    """The rows of one family: the columns of `table`, of `details`, and of `variance`."""

    table: pd.DataFrame
    details: pd.DataFrame
    variance: pd.DataFrame
    method: str = ""  # of max-T, in words
    adjustment: str = "Holm"  # of the overall rows' p


def family(cells: Sequence[Cell], asked: Question) -> Family:
    """Return the rows of one family, adjusted and judged."""
    tested = [cell for cell in cells if len(cell[3].seeds) > 1]
    borrows = bool(tested) and all(variance.moderates(len(paired.seeds), len(tested)) for *_, paired in tested)
    rows, parts, wholes = [], [], []
    for cell in cells:
        found, components, whole = _rows(cell, asked, len(tested))
        rows += found
        parts += components
        wholes.append((found[-1], whole))
    if borrows:
        _moderate(wholes)
    method = _simultaneous(cells, wholes, asked)
    frame = _frame(rows, [*COLUMNS, *DETAILS[len(KEY) :]])
    how = "Bonferroni" if borrows else "Holm"
    frame["p_adjusted"] = _adjusted(frame, how)
    frame["verdict"] = [_verdict(row, asked) for row in frame.to_dict("records")]
    frame.loc[frame.verdict != "undecided", "seeds_needed"] = np.nan
    return Family(frame[COLUMNS].copy(), frame[DETAILS].copy(), _frame(parts, VARIANCE), method, how)


def _frame(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=columns)
    for name in KEY:  # a student or teacher of None stays None
        frame[name] = pd.Series([row[name] for row in rows], dtype=object)
    return frame


def _adjusted(frame: pd.DataFrame, how: str) -> np.ndarray:
    """Return p adjusted over the overall rows as said, and over the tasks' rows by Benjamini-Hochberg."""
    overall = (frame.task == OVERALL).to_numpy(dtype=bool)
    p_values = frame.p_value.to_numpy(dtype=float)
    adjusted = np.full(len(frame), np.nan)
    adjusted[overall] = stats.adjust(p_values[overall], how.lower())
    adjusted[~overall] = stats.adjust(p_values[~overall], "fdr_bh")
    return adjusted


def _rows(cell: Cell, asked: Question, size: int) -> tuple[list[dict], list[dict], stats.Crossed]:
    """Return one contrast at one place: a row a task and the overall row, their variance, and the overall fit."""
    place, a, b, paired = cell
    units, n_seeds, resampled = paired.units, len(paired.seeds), None
    if n_seeds >= BOOTSTRAP_FROM:
        resampled = asked.resampler.means(units, [asked.task_order.index(task) for task in paired.tasks])
    exact = exact_test(n_seeds, size, asked.alpha)
    head = dict(zip(("student", "teacher", "objective", "baseline"), (*place, a, b), strict=True))
    parts = [(task, [i], np.ones(1), 1) for i, task in enumerate(paired.tasks)]
    parts.append((OVERALL, list(range(len(paired.tasks))), asked.share(paired.tasks), size))
    rows, components = [], []
    for task, which, weights, among in parts:
        fit = stats.crossed([units[i] for i in which], weights)
        shape = None if resampled is None else weights @ resampled[which]
        name = head | {"task": task}
        items = {"n_items": sum(paired.n_items[i] for i in which), "n_units": fit.n_items}
        gap = asked.gaps.get((*place, task), math.nan)
        rows.append(
            name | _estimate(fit, shape, exact, among, asked) | items | {"gap_recovered_delta": fit.delta / gap}
        )
        known = variance.components(units[which[0]]) if task != OVERALL else None
        seed = known.seed if known else variance.seed_component(fit)
        two = {"item": known.item, "residual": known.residual} if known else {"item": math.nan, "residual": math.nan}
        components.append(name | {"seed": seed, **two, "n_seeds": n_seeds, "n_units": fit.n_items})
    return rows, components, fit


def _estimate(fit: stats.Crossed, shape: np.ndarray | None, exact: bool, among: int, asked: Question) -> dict[str, Any]:
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
    nothing = dict.fromkeys(("p_moderated", "p_max_t", "simultaneous_low", "simultaneous_high"), math.nan)
    return nothing | {
        "delta": fit.delta, "ci_low": low, "ci_high": high, "p_value": max(p_model, p_flip) if exact else p_model,
        "n_seeds": fit.n_seeds, "method": f"interval: {bounds}; p: {test}", "se": fit.se,
        "var_seeds": fit.var_seeds + fit.var_noise, "var_items": fit.var_items, "p_model": p_model,
        "p_sign_flip": p_flip, "tost_low": tost_low, "tost_high": tost_high,
        "mde": math.nan if alone else stats.detectable(fit, asked.alpha),
        "seeds_needed": stats.seeds_needed(fit, asked.alpha / max(among, 1), asked.margin),
        "effect_size": variance.effect_size(fit.seed_means),
    }  # fmt: skip


def _moderate(wholes: Sequence[tuple[dict, stats.Crossed]]) -> None:
    """Test overall rows with the family's moderated variance; intervals keep their own."""
    tested = [(row, fit) for row, fit in wholes if fit.n_seeds > 1]
    for (row, _), fit in zip(tested, variance.moderated([fit for _, fit in tested]), strict=True):
        row["p_value"] = row["p_moderated"] = stats.t_p_value(fit)
        row["method"] += f", {variance.MODERATED}"


def _simultaneous(cells: Sequence[Cell], wholes: Sequence[tuple[dict, stats.Crossed]], asked: Question) -> str:
    """Fill in the overall rows' max-T p and simultaneous intervals; return in words how they were made."""
    numbers: dict[Any, int] = {}
    members, rows = [], []
    for (place, a, b, paired), (row, fit) in zip(cells, wholes, strict=True):
        if fit.n_seeds < 2:
            continue
        names = zip((a, b), paired.rows, strict=True)
        arms = tuple(numbers.setdefault(r if r >= 0 else (name, place), len(numbers)) for name, r in names)
        alone = row["p_value"] if math.isnan(row["p_moderated"]) else row["p_model"]
        members.append(maxt.member(paired, fit, alone, asked.share(paired.tasks), asked.width, arms))
        rows.append((row, fit))
    if not members:
        return ""
    found, level = maxt.adjusted(members, np.random.default_rng([asked.resampler.seed, 4]), asked.alpha)
    for (row, fit), p in zip(rows, found, strict=True):
        row["p_max_t"] = float(p)
        row["simultaneous_low"], row["simultaneous_high"] = stats.t_interval(fit, 1 - level)
    return maxt.in_words(min(fit.n_seeds for _, fit in rows), asked.alpha) if len(members) > 1 else ""


def _verdict(row: Mapping[str, Any], asked: Question) -> str:
    """Return the verdict word of a row. One seed never decides about an objective."""
    if row["n_seeds"] < 2 or not asked.judged:
        return "undecided"
    if row["p_adjusted"] < asked.alpha:
        return "better" if row["delta"] > 0 else "worse"
    inside = -asked.margin < row["tost_low"] and row["tost_high"] < asked.margin
    return "equivalent" if inside else "undecided"
