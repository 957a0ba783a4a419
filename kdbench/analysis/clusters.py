"""Items that belong together (questions on one passage): the cluster, not the item, is what could have been another."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kdbench.errors import ConfigError


def grouped(block: np.ndarray, codes: np.ndarray | None) -> np.ndarray:
    """Return paired differences with clusters as units: [seeds, items] → [seeds, clusters], seed means unchanged.

    The value of a cluster is the seed's mean plus (clusters / items) times the sum of its items' deviations from it:
    the linearised ratio estimator, whose variance over clusters is the cluster-robust variance of the mean
    (Liang & Zeger 1986; Miller 2024, arXiv 2411.00640 §2.2). Clusters of one item each give the block back.

    Args:
        block: differences [seeds, items].
        codes: the cluster of each item, any integers; None: every item is a unit of its own.
    """
    if codes is None:
        return block
    _, index = np.unique(codes, return_inverse=True)
    count = int(index.max()) + 1
    means = block.mean(axis=1, keepdims=True)
    sums = np.array([np.bincount(index, weights=line, minlength=count) for line in block - means])
    return means + sums * (count / block.shape[1])


def codes(frame: pd.DataFrame, column: np.ndarray) -> np.ndarray | None:
    """Return the cluster of every item, or None where the scores have no column `cluster`.

    Args:
        frame: tidy scores, checked.
        column: the position of each row's item.

    Raises:
        ConfigError: an item stands in two clusters.
    """
    if "cluster" not in frame.columns:
        return None
    found, names = pd.factorize(frame["cluster"])
    found = np.where(found < 0, len(names) + column, found)
    first = np.empty(int(column.max()) + 1, dtype=np.int64)
    first[column] = found
    if (differ := np.flatnonzero(first[column] != found)).size:
        row = frame.iloc[differ[0]]
        raise ConfigError(
            f"item {row['item']!r} of task {row['task']!r} stands in cluster {row['cluster']!r} for "
            f"{row['objective']!r} and in another for another arm; give every item one cluster"
        )
    return first
