"""What a design can find: power, detectable difference and seeds needed, by the rules that `compare` judges by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import special

from kdbench.analysis.remarks import exact_test
from kdbench.analysis.stats import EXACT_UP_TO
from kdbench.analysis.variance import moderates

DRAWS = 10_000
MOST_SEEDS = 1_000
WANTED = 0.8  # power
_PATTERNS_UP_TO = 9  # seeds; beyond, fewer draws are held against more sign patterns
SHARED = 0.25  # squared correlation of two contrasts that share a baseline


@dataclass(frozen=True)
class Design:
    """One contrast as it is going to be measured; variances in units of score squared.

    Attributes:
        seed: variance of one seed's mean difference, apart from the residual.
        item: what the luck of the items adds to the mean: Σ w² · item variance / items; no seed shrinks it.
        residual: what seed x item adds to one seed's mean: Σ w² · residual variance / items.
        df_items: degrees of freedom of `item` and `residual`.
        family: contrasts among which the p is adjusted.
        borrows: whether few seeds may borrow the family's variance, as the overall rows do and those per task do not.
    """

    seeds: int
    seed: float
    item: float
    residual: float
    df_items: float
    family: int = 1
    alpha: float = 0.05
    borrows: bool = True

    def scaled(self, items: float) -> Design:
        """Return the design with `items` times as many items in every task."""
        return replace(
            self, item=self.item / items, residual=self.residual / items, df_items=max(1.0, self.df_items * items)
        )


def power(design: Design, delta: float) -> float:
    """Return the probability that a true difference `delta` is called better (or worse, below 0).

    Seed means are drawn and judged by the rules of `compare`: the crossed model, from six seeds on also sign flips
    where these can reach alpha, and with three to five seeds in a family of four or more the moderated variance. The
    level is alpha / family, the first step of Holm: other contrasts that are found make the later steps milder, so this
    is a lower bound.
    """
    if design.seeds < 2:
        return 0.0
    means, luck = _draws(design.seeds)
    values = delta + math.sqrt(max(0.0, design.seed) + design.residual) * means
    shift = math.sqrt(design.item) * luck
    centre = values.mean(axis=1) + shift
    half = _half(design, values, design.alpha / design.family / 2)
    found = (np.abs(centre) > half) & (np.sign(centre) == np.sign(delta))
    if exact_test(design.seeds, design.family, design.alpha) and design.seeds <= EXACT_UP_TO:
        found &= _flipped(values + shift[:, None]) <= design.alpha / design.family * (1 + 1e-9)
    return float(found.mean())


def equivalence_power(design: Design, margin: float, delta: float = 0.0) -> float:
    """Return the probability of `equivalent` at a true difference `delta`: the 1 − 2·alpha interval inside ±margin."""
    if design.seeds < 2:
        return 0.0
    means, luck = _draws(design.seeds)
    values = delta + math.sqrt(max(0.0, design.seed) + design.residual) * means
    half = _half(replace(design, family=1), values, design.alpha)
    return float(np.mean(np.abs(values.mean(axis=1) + math.sqrt(design.item) * luck) + half < margin))


def detectable(design: Design, wanted: float = WANTED) -> float:
    """Return the smallest true difference that is found with probability `wanted`; infinite below two seeds."""
    if design.seeds < 2:
        return math.inf
    high = 3 * math.sqrt((max(0.0, design.seed) + design.residual) / design.seeds + design.item)
    if high == 0:
        return 0.0
    low = 0.0
    while power(design, high) < wanted:
        low, high = high, 2 * high
        if high > 1e6:
            return math.inf
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (low, middle) if power(design, middle) >= wanted else (middle, high)
    return high


def seeds_for(enough: Callable[[int], bool], start: int = 2) -> int | None:
    """Return the smallest number of seeds that is enough and from which ten more are too; None above 1,000.

    The rules change at three and at six seeds, so that one more may be worse than one less.
    """
    run = 0
    for seeds in range(start, 41):
        run = run + 1 if enough(seeds) else 0
        if run == 10:
            return seeds - 9
    if run:
        return 41 - run
    low, high = 40, 80
    while not enough(min(high, MOST_SEEDS)):
        if high >= MOST_SEEDS:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def items_for(design: Design, enough: Callable[[Design], bool], most: float = 1_000.0) -> float | None:
    """Return how many times as many items are enough with these seeds, to 5 %; None where more items alone are not."""
    if enough(design):
        return 1.0
    if not enough(design.scaled(most)):
        return None
    low, high = 1.0, most
    while high / low > 1.05:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(design.scaled(middle)) else (middle, high)
    return high


def _half(design: Design, values: np.ndarray, tail: float) -> np.ndarray:
    """Return the half width of each draw's interval, `tail` on either side."""
    seeds, freedom = design.seeds, design.seeds - 1.0
    spread = values.var(axis=1, ddof=1) / seeds
    if design.borrows and moderates(seeds, design.family):
        spread, freedom = np.maximum(spread, _family_mean(design, spread)), 2 * freedom
    of_seeds, of_items = special.stdtrit(freedom, tail), special.stdtrit(design.df_items, tail)
    lacking = np.maximum(0.0, design.residual / seeds - spread)
    return np.sqrt(of_seeds**2 * spread + of_items**2 * (lacking + design.item))


def _family_mean(design: Design, spread: np.ndarray) -> np.ndarray:
    """Return the family's mean seed variance, its other members drawn as if they shared a baseline."""
    others = design.family - 1
    freedom = (design.seeds - 1) / (SHARED + (1 - SHARED) / others)
    rng = np.random.default_rng([design.seeds, design.family])
    typical = (max(0.0, design.seed) + design.residual) / design.seeds
    return (spread + others * typical * rng.chisquare(freedom, len(spread)) / freedom) / design.family


@lru_cache(maxsize=64)
def _draws(seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return standard normal seed means [draws, seeds] and item luck [draws], the same for every question."""
    draws = DRAWS if seeds <= _PATTERNS_UP_TO or seeds > EXACT_UP_TO else DRAWS // 4
    rng = np.random.default_rng(seeds)
    luck = rng.standard_normal(draws)
    if seeds <= 60:
        return rng.standard_normal((draws, seeds)), luck
    sums, squares = rng.standard_normal(draws), rng.chisquare(seeds - 1, draws)
    half = np.sqrt(squares / (seeds - seeds % 2))[:, None]  # same mean and variance as `seeds` normal numbers
    signs = np.where(np.arange(seeds) % 2, 1.0, -1.0) * (np.arange(seeds) < seeds - seeds % 2)
    return sums[:, None] / math.sqrt(seeds) + half * signs, luck


def _flipped(values: np.ndarray) -> np.ndarray:
    """Return the exact two-sided sign-flip p of every row of [draws, seeds]."""
    seeds = values.shape[1]
    patterns = 1.0 - 2.0 * ((np.arange(2 ** (seeds - 1))[:, None] >> np.arange(seeds)) & 1)  # the last sign stays
    seen = np.abs(values.sum(axis=1)) - 1e-9 * np.abs(values).sum(axis=1)
    return np.mean(np.abs(values @ patterns.T) >= seen[:, None], axis=1)
