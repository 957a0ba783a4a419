"""The other question: do these two checkpoints differ? Items are random, the two trainings are what they are."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kdbench.analysis import stats
from kdbench.analysis.scores import Notes, pair, read
from kdbench.errors import ConfigError

COLUMNS = ["student", "teacher", "seed", "task", "objective", "baseline", "delta", "wins", "losses", "p_value"]
COLUMNS += ["p_adjusted", "n_items", "method"]


def checkpoints(scores: pd.DataFrame, a: str, b: str, *, seed: int = 0) -> pd.DataFrame:
    """Test, seed by seed, whether the checkpoints of objectives `a` and `b` differ on items like these.

    Exact McNemar where scores are 0 or 1, paired permutation (random signs over items) where they are graded. It
    says nothing about the objectives: another seed makes another pair of checkpoints.

    Args:
        scores: as for `compare`.
        seed: of the permutations.

    Returns:
        One row a (student, teacher), seed and task, and one over all items (task `all items`); `wins` counts items on
        which `a` scores higher; `p_adjusted` is Holm over the rows `all items`, and over the others.

    Raises:
        ConfigError: as for `compare`.
    """
    data = read(scores)
    data.known(a, "objective")
    data.known(b, "objective")
    notes, rows, rng = Notes(), [], np.random.default_rng([seed, 3])
    binary = bool(np.isin(data.values[~np.isnan(data.values)], (0.0, 1.0)).all())
    for place in data.places(a, b):
        paired = pair(data, a, b, place, notes)
        if paired is None:
            continue
        for index, number in enumerate(paired.seeds):
            found = dict(zip(paired.tasks, (block[index] for block in paired.blocks), strict=True))
            for task, difference in {**found, "all items": np.concatenate(list(found.values()))}.items():
                wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
                p = stats.mcnemar(wins, losses) if binary else stats.sign_flip(difference, rng)
                method = "exact McNemar" if binary else "paired permutation over items"
                row = [
                    *place,
                    number,
                    task,
                    a,
                    b,
                    float(difference.mean()),
                    wins,
                    losses,
                    p,
                    0.0,
                    len(difference),
                    method,
                ]
                rows.append(row)
    if not rows:
        raise ConfigError(
            f"{a!r} and {b!r} have no overlap to compare: {'; '.join(notes.lines()) or 'no common place'}"
        )
    frame = pd.DataFrame({name: pd.Series([row[i] for row in rows]) for i, name in enumerate(COLUMNS)})
    for i, name in enumerate(COLUMNS[:3]):
        frame[name] = pd.Series([row[i] for row in rows], dtype=object)
    for part in (frame.task == "all items", frame.task != "all items"):
        frame.loc[part, "p_adjusted"] = stats.adjust(frame.loc[part, "p_value"].to_numpy(float), "holm")
    return frame
