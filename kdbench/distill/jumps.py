"""A loss that explodes and stays finite is a result, and is marked as such: a training that went wrong is no gap.

The rule is a flag of the protocol: it changes no training and no key. A loss has jumped where it exceeds the median of
the steps before it, 50 at most, by 1 nat and by four times their usual size, so that a positive loss is five times its
median. Of 825 trainings that ended well the largest jump was a quarter of the median.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

WINDOW = 50  # steps before, at most
SIZES = 4.0  # median absolute losses above the median
LEAST = 1.0  # nats above the median; small losses, and those that begin at 0 by design, may grow
RECORDED = "loss_jumps"


def facts(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what DONE.json says of a history with jumps; nothing of one without.

    Returns:
        `loss_jumps`: `steps` (how many), `first_step` (1-based), its `loss` and the `median` before it, `largest`.
    """
    losses = [float(record["loss"]) for record in history]
    found = [index for index in range(1, len(losses)) if _jumped(losses[max(0, index - WINDOW) : index], losses[index])]
    if not found:
        return {}
    first = found[0]
    told = {"steps": len(found), "first_step": int(history[first]["step"]), "loss": losses[first]}
    told |= {"median": statistics.median(losses[max(0, first - WINDOW) : first])}
    return {RECORDED: told | {"largest": max(losses[index] for index in found)}}


def _jumped(before: Sequence[float], loss: float) -> bool:
    usual = statistics.median(abs(one) for one in before)
    return loss - statistics.median(before) > max(SIZES * usual, LEAST)


def in_words(told: Mapping[str, Any]) -> str:
    """Return what `facts` found, in words."""
    first = (
        f"the loss jumped to {told['loss']:,.4g} at step {told['first_step']} (median before: {told['median']:,.4g})"
    )
    return first + (f", {told['steps']} times in all, at most to {told['largest']:,.4g}" if told["steps"] > 1 else "")
