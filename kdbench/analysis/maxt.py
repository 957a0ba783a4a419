"""The largest of many: p-values and intervals that hold for a whole family at once (max-T; for claims of "up to").

Two families of null draws. *Sign flips* (six seeds or more): the seeds of all contrasts change sign together, so their
correlation is the data's own (Westfall & Young 1993, step-down). *Parametric*: with fewer seeds there are too few
patterns, and seeds flipped alone take the items as fixed; so seed vectors are drawn from a normal law with the crossed
model's correlation, and a family's smallest p is held against those. With six seeds or more the larger p counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from kdbench.analysis.remarks import BOOTSTRAP_FROM
from kdbench.analysis.scores import Paired
from kdbench.analysis.stats import EXACT_UP_TO, Crossed
from kdbench.errors import ConfigError

if TYPE_CHECKING:
    from kdbench.analysis.verdict import Comparison

DRAWS = 10_000
FLIPS = 10_000
_SLICE = 2_000_000  # normal numbers drawn at once
_SLACK = 1e-9  # equal sums may differ in the last bits


@dataclass(frozen=True)
class Member:
    """One contrast of a family: its overall fit, its p alone, and what it shares with others."""

    fit: Crossed
    p: float  # two-sided, or one-sided for the largest
    seeds: tuple[int | None, ...]
    items: np.ndarray  # the mean's item part: its products are (co)variances of means, [all columns]
    arms: tuple[int, int]  # what stands left and right; equal numbers are one arm


def member(paired: Paired, fit: Crossed, p: float, weights: np.ndarray, width: int, arms: tuple[int, int]) -> Member:
    """Return a contrast as a member of its family; `width` is the number of columns of the scores."""
    items = np.zeros(width, dtype=np.float32)
    groups = paired.clusters or (None,) * len(paired.blocks)
    for weight, block, columns, group in zip(weights, paired.units, paired.columns, groups, strict=True):
        if block.shape[1] > 1:
            # a cluster stands at its first item
            where = columns if group is None else columns[np.unique(group, return_index=True)[1]]
            mean = block.mean(axis=0)
            items[where] = weight * (mean - mean.mean()) / math.sqrt(len(mean) * (len(mean) - 1))
    return Member(fit, p, paired.seeds, items, arms)


def correlation(family: Sequence[Member]) -> np.ndarray:
    """Return the correlation of the family's means, [contrasts, contrasts].

    Items and residual: from the items, of which there are many. What seeds add beyond the residual rests on a few
    numbers, so only its size is estimated; its correlation is that of independent arms of equal variance: ½ where two
    contrasts share a baseline, −½ where one's objective is the other's baseline. Less correlation asks for more.
    """
    items = np.array([one.items for one in family])
    count = max(arm for one in family for arm in one.arms) + 1
    design = np.zeros((len(family), count))
    for row, one in enumerate(family):
        excess = math.sqrt(max(0.0, one.fit.var_seeds - one.fit.noise) / 2)
        design[row, one.arms[0]] += excess
        design[row, one.arms[1]] -= excess
    covariance = (items @ items.T).astype(float) + design @ design.T
    sd = np.sqrt(np.diag(covariance))
    still = sd == 0
    sd[still] = 1.0
    found = covariance / np.outer(sd, sd)
    found[still, still] = 1.0
    return found


def null_p(family: Sequence[Member], rng: np.random.Generator, *, sides: int = 2, draws: int = DRAWS) -> np.ndarray:
    """Return p-values that the family could have given were all differences 0: [draws, contrasts].

    Each draw is a normal vector a seed, correlated over contrasts, and a t-test over the seeds of each contrast.
    """
    values, vectors = np.linalg.eigh(correlation(family))
    root = (vectors * np.sqrt(np.maximum(values, 0.0))).astype(np.float32)
    mask = _seed_mask(family)
    counts = mask.sum(axis=0)
    step = max(1, _SLICE // mask.size)
    parts = []
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        drawn = (rng.standard_normal((rows, *mask.shape), dtype=np.float32) @ root.T) * mask
        means = drawn.sum(axis=1) / counts
        squares = np.einsum("bsg,bsg->bg", drawn, drawn) - counts * means**2
        t = means / np.sqrt(np.maximum(squares, 1e-30) / (counts - 1) / counts)
        parts.append(special.stdtr(counts - 1, -np.abs(t) if sides == 2 else -t) * sides)
    return np.concatenate(parts)


def _seed_mask(family: Sequence[Member]) -> np.ndarray:
    """Return which seeds each contrast has, [seeds, contrasts]."""
    seeds = list(dict.fromkeys(seed for one in family for seed in one.seeds))
    return np.array([[seed in one.seeds for one in family] for seed in seeds], dtype=np.float32)


def flips(family: Sequence[Member], rng: np.random.Generator) -> np.ndarray:
    """Return the studentised means of the family under joint signs of the seeds; row 0 is what was seen.

    All patterns up to 12 seeds, else random ones. The statistic is mean · √S / root mean square, which orders the
    patterns as the t statistic does: the sum of squares does not change with the signs.
    """
    seeds = list(dict.fromkeys(seed for one in family for seed in one.seeds))
    values = np.zeros((len(seeds), len(family)))
    for column, one in enumerate(family):
        at = [seeds.index(seed) for seed in one.seeds]
        scale = math.sqrt(float(np.square(one.fit.seed_means).sum()))
        values[at, column] = one.fit.seed_means / scale if scale > 0 else 0.0
    if len(seeds) <= EXACT_UP_TO:
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(seeds))[:, None] >> np.arange(len(seeds))) & 1)
    else:
        signs = rng.integers(0, 2, size=(FLIPS, len(seeds)), dtype=np.int8) * 2.0 - 1
        signs[0] = 1
    return signs @ values


def step_down(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Return Westfall and Young's step-down adjusted p-values; large statistics are extreme.

    Args:
        observed: one statistic a contrast.
        null: [draws, contrasts]; the observed row may be among them.
    """
    order = np.argsort(-observed, kind="stable")
    highest = np.maximum.accumulate(null[:, order[::-1]], axis=1)[:, ::-1]  # over the contrasts not yet passed
    p = np.mean(highest >= observed[order] - _SLACK, axis=0)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p)
    return adjusted


def adjusted(
    family: Sequence[Member], rng: np.random.Generator, alpha: float, draws: int = DRAWS
) -> tuple[np.ndarray, float]:
    """Return the max-T p of every member, and the two-sided level at which single intervals hold together.

    The level is the alpha-quantile of the family's smallest p under the null: 1 − alpha intervals for all contrasts
    at once are single intervals at 1 − level.
    """
    if len(family) == 1:
        return np.array([family[0].p]), alpha
    null = null_p(family, rng, draws=draws)
    alone = np.array([one.p for one in family])
    found = np.maximum(step_down(-alone, -null), alone)
    if all(len(one.seeds) >= BOOTSTRAP_FROM for one in family):
        signed = np.abs(flips(family, rng))
        found = np.maximum(found, step_down(signed[0], signed))
    return found, float(min(alpha, np.quantile(null.min(axis=1), alpha)))


def in_words(n_seeds: int, alpha: float) -> str:
    """Return which max-T was used, for a family whose contrasts have at least `n_seeds` seeds."""
    drawn = f"simulated with the crossed model's correlation ({DRAWS:,} draws)"
    how = (
        f"parametric max-t, {drawn}, since fewer than {BOOTSTRAP_FROM} seeds give too few sign patterns"
        if n_seeds < BOOTSTRAP_FROM
        else f"the larger of step-down max-T by joint sign flips of the seeds and parametric max-t, {drawn}"
    )
    return f"p for 'up to' claims (p_max_t) and {100 * (1 - alpha):g} % intervals that hold for all rows: {how}."


@dataclass(frozen=True)
class Largest:
    """The largest difference of a family, with p and interval that know it was chosen for its size.

    Attributes:
        delta, low, high: in units of score; the interval holds for all differences of the family at once.
        p: two-sided max-T p of 0; NaN where no row has two seeds.
        family: how many differences stood for choice.
    """

    student: str | None
    teacher: str | None
    objective: str
    baseline: str
    delta: float
    low: float
    high: float
    p: float
    n_seeds: int
    family: int


def largest(comparison: Comparison, *, pooled: bool = False) -> Largest:
    """Return the largest difference among the overall rows, for claims of "up to"; `pooled`: among the pooled rows.

    The family is the comparison's: to speak of some cells or contrasts only, compare only these.

    Raises:
        ConfigError: there are no pooled rows.
    """
    frame = comparison.pooled if pooled else comparison.table
    rows = frame[frame.task == "overall"]
    if not len(rows):
        raise ConfigError("there are no pooled rows: the arms stand at one (student, teacher) only; use pooled=False")
    row = rows.loc[rows.delta.idxmax()]
    names = ["student", "teacher", "task", "objective", "baseline"]
    mine = comparison.details
    for name in names:
        mine = mine[mine[name].isna() if row[name] is None else mine[name] == row[name]]
    found = mine.iloc[0]
    return Largest(
        *(row[name] for name in names if name != "task"), float(row.delta), float(found.simultaneous_low),
        float(found.simultaneous_high), float(found.p_max_t), int(row.n_seeds), len(rows),
    )  # fmt: skip
