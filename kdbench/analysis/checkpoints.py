"""The other question: do these two checkpoints differ? Items are random, the two trainings are what they are."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kdbench.analysis import stats
from kdbench.analysis.scores import Notes, Paired, pair, read
from kdbench.errors import ConfigError

COLUMNS = ["student", "teacher", "seed", "task", "objective", "baseline", "delta", "wins", "losses", "p_value"]
COLUMNS += ["p_adjusted", "n_items", "method"]


def checkpoints(scores: pd.DataFrame, a: str, b: str, *, seed: int = 0) -> pd.DataFrame:
    """Test, seed by seed, whether the checkpoints of objectives `a` and `b` differ on items like these.

    Exact McNemar where scores are 0 or 1, paired permutation (random signs over items) where they are graded, and over
    clusters where the scores have that column. It says nothing about the objectives: another seed makes another pair
    of checkpoints.

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
        tasks = dict(zip(paired.tasks, range(len(paired.tasks)), strict=True))
        for index, number in enumerate(paired.seeds):
            for task, which in {**{task: [at] for task, at in tasks.items()}, "all items": [*tasks.values()]}.items():
                difference = np.concatenate([paired.blocks[at][index] for at in which])
                wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
                p, method = _test(difference, _groups(paired, which), binary, rng)
                mean, items = float(difference.mean()), len(difference)
                rows.append([*place, number, task, a, b, mean, wins, losses, p, 0.0, items, method])
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


def _groups(paired: Paired, tasks: list[int]) -> np.ndarray | None:
    """Return the cluster of each item of these tasks, or None where items do not belong together."""
    if not paired.clusters or any(paired.clusters[at] is None for at in tasks):
        return None
    return np.concatenate([paired.clusters[at] for at in tasks])


def _test(
    difference: np.ndarray, groups: np.ndarray | None, binary: bool, rng: np.random.Generator
) -> tuple[float, str]:
    """Return p and its name; items of one cluster change sign together."""
    if groups is not None:
        sums = np.bincount(np.unique(groups, return_inverse=True)[1], weights=difference)
        return stats.sign_flip(sums, rng), "paired permutation over clusters"
    if binary:
        return stats.mcnemar(int((difference > 0).sum()), int((difference < 0).sum())), "exact McNemar"
    return stats.sign_flip(difference, rng), "paired permutation over items"
