"""Which items do two arms answer differently, and who wins them? Paired at the same pair, seed and item."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kdbench.analysis.scores import read

FIXED = ("floor", "ceiling")
LIMIT = 16  # arms that a matrix can show


def agreement(scores: pd.DataFrame, tasks: Sequence[str] | None = None) -> pd.DataFrame:
    """Return, for every ordered couple of trained arms, how often their answers differ and who wins.

    Args:
        scores: tidy rows as for `compare`.
        tasks: use only these; each task counts alike.

    Returns:
        `objective`, `other`, `differ` (share of items on which the scores differ, of which the objective wins `won`
        and loses `lost`), `n` (pairs of checkpoints), means over student, teacher, seed and task.
    """
    data = read(scores, tasks)
    arms = [name for name in data.arms if name not in FIXED]
    rows = []
    for index, a in enumerate(arms):
        for b in arms[index + 1 :]:
            won, lost = [], []
            for place in data.places(a, b):
                first, second = data.rows(a, place), data.rows(b, place)
                for seed in [seed for seed in first if seed in second]:
                    difference = data.values[first[seed]] - data.values[second[seed]]
                    parts = [part[~np.isnan(part)] for part in (difference[where] for where in data.columns.values())]
                    parts = [part for part in parts if len(part)]
                    if parts:
                        won.append(float(np.mean([(part > 0).mean() for part in parts])))
                        lost.append(float(np.mean([(part < 0).mean() for part in parts])))
            if won:
                w, z = float(np.mean(won)), float(np.mean(lost))
                rows += [[a, b, w + z, w, z, len(won)], [b, a, w + z, z, w, len(won)]]
    return pd.DataFrame(rows, columns=["objective", "other", "differ", "won", "lost", "n"])


def shown_arms(means: pd.Series, keep: Sequence[str]) -> list[str]:
    """Return at most sixteen arms, best first: those to keep, then those with the highest means."""
    ranked = list(means.sort_values(ascending=False, kind="stable").index)
    kept = [name for name in ranked if name in keep][:LIMIT]
    kept += [name for name in ranked if name not in kept][: LIMIT - len(kept)]
    return [name for name in ranked if name in kept]
