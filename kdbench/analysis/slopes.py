"""A slope over models as one contrast of cells: the same estimate and variance as any difference of `compare`.

The least-squares slope of y on x is Σ_c w_c y_c with w_c = (x_c − x̄) / Σ (x − x̄)². Taken seed by seed and item by item
it is one block [seeds, items], to which the crossed model (`stats.crossed`) applies as it stands: seeds and items are
random, models are fixed. What models share, the items and the seeds, cancels or stays as it really does.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from kdbench.analysis import stats
from kdbench.analysis.scores import Notes, Paired, Place, Scores, pair, pool, read
from kdbench.errors import ConfigError

NOTHING = "\0nothing"  # an arm that scores 0 everywhere, so that a score is a difference from it
ROW = ["slope", "ci_low", "ci_high", "p_value", "p_adjusted", "reading", "mde"]
SIZE = ["n_models", "n_seeds", "n_items", "lowest", "highest"]


@dataclass(frozen=True)
class Question:
    """Scores, and how they are read.

    Attributes:
        models: use only these teachers; None: all.
    """

    data: Scores
    weights: Mapping[str, float] | None
    alpha: float
    models: Sequence[str] | None
    notes: Notes

    def places(self, objective: str, baseline: str = NOTHING) -> list[tuple[Place, Paired]]:
        """Return the differences of two arms, or the scores of one, wherever they stand."""
        notes = Notes() if baseline == NOTHING else self.notes
        places = self.data.places(objective, baseline)
        if self.models is not None:
            places = [place for place in places if place[1] in self.models]
        found = [(place, pair(self.data, objective, baseline, place, notes)) for place in places]
        return [(place, paired) for place, paired in found if paired is not None]

    def task_weights(self, tasks: Sequence[str]) -> np.ndarray:
        """Return the weights of tasks, summing to 1."""
        given = np.array([1.0 if self.weights is None else self.weights[task] for task in tasks])
        return given / given.sum()


def question(
    scores: pd.DataFrame,
    tasks: Sequence[str] | None,
    weights: Mapping[str, float] | None,
    alpha: float,
    models: Sequence[str] | None,
) -> Question:
    """Read tidy scores; errors as for `kdbench.compare`."""
    data = read(scores, tasks)
    if absent := [task for task in data.columns if weights is not None and not weights.get(task, 0) > 0]:
        raise ConfigError(f"weights must give every task a number above 0; found none for {', '.join(absent)}")
    zeros = np.zeros((1, data.values.shape[1]))
    arms = data.arms | {NOTHING: {(None, None): {None: len(data.values)}}}
    return Question(replace(data, values=np.vstack([data.values, zeros]), arms=arms), weights, alpha, models, Notes())


def slope(
    parts: Sequence[tuple[Place, Paired]], x: Sequence[float], strata: Sequence[Hashable], asked: Question, where: str
) -> dict[str, Any] | None:
    """Return the numbers of the slope over `x` within `strata`; None where no stratum holds two values of x.

    Args:
        x: one value a part.
        strata: only parts of one stratum are set against each other, so that what sets strata apart does not count.
    """
    frame = pd.DataFrame({"x": x, "stratum": pd.factorize(pd.Series(strata, dtype=object), use_na_sentinel=False)[0]})
    centred = (frame.x - frame.groupby("stratum").x.transform("mean")).to_numpy()
    total = float(np.square(centred).sum())
    if total <= 1e-12:
        return None
    used = [(paired, c / total) for (_, paired), c in zip(parts, centred, strict=True) if abs(c) > 1e-9]
    scaled = [replace(one, blocks=tuple(c * len(used) * block for block in one.blocks)) for one, c in used]
    whole = pool(scaled, asked.notes, where)  # the mean of the scaled blocks is their weighted sum
    if whole is None:
        return None
    fit = stats.crossed(whole.units, asked.task_weights(whole.tasks))
    low, high = stats.t_interval(fit, 1 - asked.alpha)
    varied = frame[frame.groupby("stratum").x.transform("nunique") > 1].x
    return {
        "slope": fit.delta, "ci_low": low, "ci_high": high,
        "p_value": stats.t_p_value(fit) if fit.n_seeds > 1 else math.nan,
        "mde": stats.detectable(fit, asked.alpha) if fit.n_seeds > 1 else math.nan,
        "n_seeds": fit.n_seeds, "n_items": sum(whole.n_items), "lowest": varied.min(), "highest": varied.max(),
    }  # fmt: skip


def family(
    rows: list[dict[str, Any]], columns: list[str], words: Mapping[str, tuple[str, str, str]], asked: Question
) -> pd.DataFrame:
    """Return rows as a frame with p adjusted by Holm over all of them, and read in words.

    Args:
        words: kind of row (its `moderator`, or "") → what a rise, a fall and neither is called.
    """
    frame = pd.DataFrame(rows, columns=columns)
    frame["p_adjusted"] = stats.adjust(frame["p_value"].to_numpy(dtype=float), "holm")
    frame["reading"] = [
        words[row.get("moderator", "")][2 if not row["p_adjusted"] < asked.alpha else int(row["slope"] < 0)]
        for row in frame.to_dict("records")
    ]
    frame.attrs = {"alpha": asked.alpha, "points": asked.data.in_unit, "notes": asked.notes.lines()}
    return frame
