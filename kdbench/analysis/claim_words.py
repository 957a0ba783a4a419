"""A claim's judgement in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kdbench.analysis.words import p_text
from kdbench.suite.claims import Claim

if TYPE_CHECKING:
    from kdbench.analysis.claim_estimates import Estimate, Setting

POINT = 0.01  # of a score in 0..1


def unit(claim: Claim) -> float:
    """Return what one of the claim's points is in units of score."""
    return POINT if claim.metric == "acc" else 1.0


def size(claim: Claim, value: float) -> str:
    """Return a difference in the claim's unit, with its sign and the two decimals that papers give."""
    text = f"{value / unit(claim):+.2f}".replace("-", "−")
    return "0.00" if text[1:] == "0.00" else text


def sentence(
    claim: Claim,
    found: Estimate,
    verdict: str,
    powered: bool | None,
    mechanism: str,
    setting: Setting,
) -> str:
    """Return the whole judgement: verdict, estimate, interval, why, power, mechanism."""
    level = f"{100 * (1 - setting.alpha):g} %"
    p = p_text(found.p)
    about = ", ".join([
        f"{'simultaneous ' if found.family > 1 else ''}{level} interval {size(claim, found.low)} to "
        f"{size(claim, found.high)}",
        *([] if math.isnan(found.p) else [f"p {p}" if p.startswith("<") else f"p = {p}"]),
        f"{found.n_seeds} {'seed' if found.n_seeds == 1 else 'seeds'} × {found.n_items:,} items",
    ])  # fmt: skip
    measured = f"{found.what} is {size(claim, found.value)} {_units(claim)} ({about})"
    parts = [f"{_head(claim)}: {verdict}. Here {measured}: {_why(claim, found, verdict, setting)}."]
    parts += [_power(claim, found, powered)] if not math.isnan(found.mde) else []
    parts += [mechanism] if mechanism else []
    return " ".join(parts)


def untested(claim: Claim, why: str) -> str:
    """Return the sentence of a claim that the results cannot be held against."""
    return f"{_head(claim)}: inconclusive, since it could not be tested: {why.rstrip('.')}."


def mechanism(says: str, levels: Mapping[str, float], below: float) -> str:
    """Return whether a mechanism is present, from the median UNC of the claim's largest teachers."""
    present = [level < below for level in levels.values()]
    how = "is present here" if all(present) else "is not present here" if not any(present) else "is present in part"
    seen = " and ".join(f"{level:.2f} of {name}" for name, level in levels.items())
    return (
        f"The mechanism that the source names {how}: {says.rstrip('.')}; the largest teacher's median UNC is {seen}, "
        f"where less than {below:g} is needed."
    )


def mechanism_unknown(says: str, teachers: Sequence[str] | None) -> str:
    """Return the sentence where nothing tells whether a mechanism is present; `teachers`: whose UNC is lacking."""
    why = "the claim names no condition for it" if teachers is None else "no median UNC is at hand of " + (
        " and ".join(teachers) or "a teacher of known size"
    )  # fmt: skip
    return f"Whether the mechanism that the source names is present here is not known: {says.rstrip('.')}; {why}."


def _head(claim: Claim) -> str:
    return f"“{claim.sentence.rstrip('.')}” ({claim.source})"


def _units(claim: Claim) -> str:
    return "points" if claim.metric == "acc" else "nats a word"


def _claimed(claim: Claim) -> str:
    return size(claim, (claim.points or 0.0) * unit(claim))


def _why(claim: Claim, found: Estimate, verdict: str, setting: Setting) -> str:
    """Say which rule gave the verdict (`kdbench.analysis.claims.verdict`)."""
    if not found.decidable:
        return "one seed cannot decide about an objective"
    significant = found.significant(setting.alpha)
    margin = f"the margin of {size(claim, setting.margin).lstrip('+')}"
    claimed = margin if claim.points is None else f"the claimed {_claimed(claim)}"
    if verdict == "contradicted":
        if found.high < 0:
            return "significantly the other way"
        both = "" if claim.points is None else f" and below {margin}"
        return f"the interval ends below {claimed}{both}, and 0 is not excluded"
    if verdict == "inconclusive":
        return f"neither 0 nor {'more than ' if claim.points is None else ''}{claimed} can be excluded"
    if not significant:
        return f"the interval ends below {claimed}, and 0 is not excluded"
    if found.rises:
        return f"the ends differ as claimed, but from {' and from '.join(found.rises)} the score rises"
    if verdict == "smaller":
        return f"significantly above 0, but the interval ends below {claimed}"
    if claim.points is None:
        return "significantly above 0, and no size is claimed"
    how = "lies above" if found.low > claim.points * unit(claim) else "holds"
    return f"significantly above 0, and the interval {how} {claimed}"


def _power(claim: Claim, found: Estimate, powered: bool | None) -> str:
    typical = " in the median of these differences" if found.family > 1 else ""
    detects = f"it detects {size(claim, found.mde).lstrip('+')}{typical} with 80 % power"
    if powered is None:
        return f"Of this suite: {detects}."
    return f"This suite {'could' if powered else 'could not'} be expected to tell {_claimed(claim)} from 0: {detects}."
