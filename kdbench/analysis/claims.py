"""Published claims, held against a suite's results: replicated, smaller, inconclusive or contradicted.

Each claim is judged by itself at level alpha; how it is estimated stands in `claim_estimates`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from kdbench.analysis import claim_words as words
from kdbench.analysis.claim_estimates import Estimate, Setting, Untested, estimate, rows_of
from kdbench.analysis.words import plain
from kdbench.errors import ConfigError
from kdbench.suite.claims import Claim


@dataclass(frozen=True)
class Finding:
    """The judgement of one claim.

    Attributes:
        verdict: `replicated`, `smaller`, `inconclusive` or `contradicted`: see `verdict`.
        estimate, interval: in units of score, positive is what the claim says; NaN where it could not be tested.
        p: two-sided p of 0 (for `up_to`: adjusted for the family); NaN where there is no test.
        sentence: all of it in words, for a reader who sees nothing else.
        powered: whether this suite could have told the claimed size from 0 with 80 % power; None without a size.
        deviations: how this suite's protocol differs from the source's, as the suite says.
        mechanism: whether what the source names as the cause is present here, in words; empty where it names none.
        present: the same as yes or no; None where it is not known.
        tested: whether there were results to judge by.
        notes: what had to be left out.
    """

    claim: Claim
    verdict: str
    estimate: float
    interval: tuple[float, float]
    p: float
    mde: float
    sentence: str
    powered: bool | None
    deviations: tuple[str, ...] = ()
    mechanism: str = ""
    present: bool | None = None
    tested: bool = True
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; None for what is not known."""
        found = asdict(self) | {"claim": self.claim.model_dump(mode="json"), "interval": list(self.interval)}
        return {name: _plain(value) for name, value in found.items()}


def judge(
    claims: Sequence[Claim],
    scores: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    alpha: float,
    margin: float,
    sizes: Mapping[str, float],
    uncertainty: Mapping[str, float] | None = None,
    tasks: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
) -> list[Finding]:
    """Judge claims by a suite's results, one finding a claim, in their order.

    Args:
        scores: tidy scores as `kdbench.load_scores` gives, of the metric `acc`; or one such table a metric.
        alpha: two-sided level of each claim's test and interval.
        margin: differences smaller than this do not matter, in units of score.
        sizes: parameters of every model: which teacher is larger.
        uncertainty: median UNC of every teacher on the distilled text, where it is known.
        tasks: what `overall` means where a claim names no tasks of its own; default: all in the scores.
        weights: of these tasks; equal by default.
    """
    tables = {"acc": scores} if isinstance(scores, pd.DataFrame) else scores
    setting = Setting(alpha, margin, sizes, weights, tasks)
    return [_judged(claim, tables.get(claim.metric), setting, uncertainty or {}) for claim in claims]


def verdict(found: Estimate, claimed: float | None, alpha: float, margin: float) -> str:
    """Return the verdict word; `claimed` and `margin` in units of score.

    Significant means p < alpha and an interval without 0. In this order:

    1. One seed, or no test: `inconclusive`.
    2. Significantly below 0: `contradicted`.
    3. Significantly above 0: `replicated` if the interval reaches the claimed size (it may lie above it) or if no size
       is claimed; `smaller` if it ends below; `smaller` also for a drop that is not monotone.
    4. Neither: the interval holds 0. If it reaches the claimed size: `inconclusive`. If it ends below the claimed size:
       `contradicted` when it also ends below the margin (neither the claim nor anything that matters is left), else
       `smaller` (whatever there is, is less than claimed). Where no size is claimed, the margin stands for it.
    """
    if not found.decidable:
        return "inconclusive"
    significant = found.significant(alpha)
    if significant and found.value < 0:
        return "contradicted"
    reached = found.high >= (claimed if claimed is not None else margin if not significant else 0.0)
    if significant:
        return "replicated" if reached and not found.rises else "smaller"
    if reached:
        return "inconclusive"
    return "contradicted" if found.high < margin else "smaller"


def _judged(claim: Claim, table: pd.DataFrame | None, setting: Setting, uncertainty: Mapping[str, float]) -> Finding:
    claimed = None if claim.points is None else claim.points * words.unit(claim)
    try:
        rows = rows_of(claim, table)
        found = estimate(claim, rows, setting)
    except (Untested, ConfigError) as error:
        nan, sentence = math.nan, words.untested(claim, str(error))
        return Finding(claim, "inconclusive", nan, (nan, nan), nan, nan, sentence, None, claim.deviations, tested=False)
    present, mechanism = _mechanism(claim, rows, setting.sizes, uncertainty)
    word = verdict(found, claimed, setting.alpha, setting.margin)
    powered = None if claimed is None or math.isnan(found.mde) else found.mde <= claimed
    sentence = words.sentence(claim, found, word, powered, mechanism, setting)
    return Finding(
        claim, word, found.value, (found.low, found.high), found.p, found.mde, sentence, powered, claim.deviations,
        mechanism, present, True, found.notes,
    )  # fmt: skip


def _mechanism(
    claim: Claim, rows: pd.DataFrame, sizes: Mapping[str, float], uncertainty: Mapping[str, float]
) -> tuple[bool | None, str]:
    """Return whether the mechanism is present, and that in words."""
    if claim.mechanism is None:
        return None, ""
    teachers = [name for name in dict.fromkeys(rows["teacher"].dropna()) if name in sizes]
    largest = [name for name in teachers if sizes[name] == max(sizes[one] for one in teachers)]
    known = {name: uncertainty[name] for name in largest if name in uncertainty}
    needs = claim.mechanism.needs
    if needs is None or not known or len(known) < len(largest):
        return None, words.mechanism_unknown(claim.mechanism.says, None if needs is None else largest)
    present = {name: level < needs.uncertainty_below for name, level in known.items()}
    whole = all(present.values()) if len(set(present.values())) == 1 else None
    return whole, words.mechanism(claim.mechanism.says, known, needs.uncertainty_below)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return plain(value)
