"""What varies: variance components of paired differences, effect size, and a family's moderated seed variance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from kdbench.analysis.stats import Crossed

MODERATED_FROM = 4  # contrasts in the family
MODERATED_SEEDS = (3, 5)  # with six, sign flipping begins
MODERATED = "seed variance at least the family's mean, its df doubled"


@dataclass(frozen=True)
class Components:
    """Variance of one paired difference d[seed, item], in units of score squared; an estimate may lie below 0."""

    seed: float
    item: float
    residual: float


def components(block: np.ndarray) -> Components:
    """Return the ANOVA estimates of one task: seed, item and residual variance of a difference.

    Args:
        block: paired differences [seeds, items or clusters]; what needs two of either is NaN.
    """
    n_seeds, n_items = block.shape
    if n_seeds < 2 or n_items < 2:
        return Components(*(float("nan"),) * 3)
    rest = block - block.mean(axis=0) - block.mean(axis=1, keepdims=True) + block.mean()
    residual = float(np.square(rest).sum()) / ((n_seeds - 1) * (n_items - 1))
    seed = float(np.var(block.mean(axis=1), ddof=1)) - residual / n_items
    item = float(np.var(block.mean(axis=0), ddof=1)) - residual / n_seeds
    return Components(seed, item, residual)


def seed_component(fit: Crossed) -> float:
    """Return the seed variance of a mean over tasks, apart from the residual; NaN with one seed."""
    return (fit.var_seeds - fit.noise) * fit.n_seeds if fit.n_seeds > 1 else float("nan")


def effect_size(seed_means: np.ndarray) -> float:
    """Return Cohen's d_z over seeds, mean / sd of the seeds' differences, times Hedges' small-sample correction.

    The correction is exact, Γ(ν/2) / (√(ν/2) Γ((ν−1)/2)) with ν = seeds − 1 (Hedges 1981). NaN below three seeds,
    where it does not exist, and where the seeds do not vary.
    """
    freedom, sd = len(seed_means) - 1, float(np.std(seed_means, ddof=1)) if len(seed_means) > 2 else 0.0
    if sd <= 1e-12 * float(np.abs(seed_means).max(initial=0.0)):
        return float("nan")
    log_correction = special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2) - np.log(freedom / 2) / 2
    return float(np.mean(seed_means) / sd * np.exp(log_correction))


def moderates(n_seeds: int, family: int) -> bool:
    """Return whether a family of this size borrows its seed variance (a fact of the design, not of the scores)."""
    return family >= MODERATED_FROM and MODERATED_SEEDS[0] <= n_seeds <= MODERATED_SEEDS[1]


def moderated(fits: Sequence[Crossed]) -> list[Crossed]:
    """Return the fits with each seed variance raised to the family's mean, and its degrees of freedom doubled.

    With three seeds a variance has two degrees of freedom, and after Bonferroni over 50 the critical t is 45. The usual
    remedy shrinks every variance towards the family's (limma: Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3:3). It does
    not hold here: in simulations with contrasts that share a baseline and seed sds spread by 4 x, limma errs up to 20 %
    for a nominal 5 % (one contrast of 50 with a large variance that is small by luck); with total df capped for the
    shared baseline still up to 7.5 %. So variances are never shrunk downwards: s² becomes max(s², mean s²), and 2 (S−1)
    df stand for it. Under spreads of 1 x to 100 x, one to all contrasts with the large variance, with and without a
    shared baseline that dominates, families of 4 to 50 and 3 to 5 seeds, the familywise error stays at or below 5.2 %
    (limit for one contrast whose variance dwarfs all others: 4.98 % at 3 seeds and 4 contrasts). This holds for
    Bonferroni over the whole family, not for Holm, whose last steps would use the doubled df at a mild level, nor for
    single intervals, which therefore keep their own variance.
    """
    pool: dict[int, list[float]] = {}
    for fit in fits:
        pool.setdefault(fit.n_seeds, []).append(fit.var_seeds)
    return [
        replace(
            fit,
            var_seeds=(raised := max(fit.var_seeds, float(np.mean(pool[fit.n_seeds])))),
            var_noise=max(0.0, fit.noise - raised),
            df_seeds=2.0 * (fit.n_seeds - 1),
        )
        for fit in fits
    ]
