"""`compare`: from tidy scores to better / worse / equivalent / undecided, with interval and sensitivity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from kdbench.analysis import stats
from kdbench.analysis.checkpoints import checkpoints
from kdbench.analysis.inference import OVERALL, Cell, Question, family
from kdbench.analysis.looks import level_now
from kdbench.analysis.means import gaps_of, mean_scores
from kdbench.analysis.ranking import best_sets
from kdbench.analysis.remarks import in_words, remark
from kdbench.analysis.scores import Notes, Scores, pair, pool, read
from kdbench.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Comparison", "checkpoints", "compare"]

FLOOR, CEILING = "floor", "ceiling"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. Differences and means are in units of `score`; `delta` is objective − baseline.

    Attributes:
        table: a row a contrast, place and task, and `overall`; `p_adjusted` within the family of the overall rows.
        pooled: the same over all places, where there are several.
        details: more numbers for every row of both: standard error, detectable difference, effect size (d_z over
            seeds, with Hedges' correction), difference in units of ceiling − floor, max-T p, simultaneous interval.
        best: which objectives may be the best, for each place and over all (`all`): see `ranking.best_sets`.
        variance: seed, item and residual variance of one paired difference; an estimate below 0 reads as none.
        alpha: the level that rows are judged at; at a planned look, that look's share.
    """

    table: pd.DataFrame
    pooled: pd.DataFrame
    means: pd.DataFrame
    details: pd.DataFrame
    notes: list[str]
    method: str
    smallest_p: float
    alpha: float
    margin: float
    contrasts: list[tuple[str, str]]
    points: bool  # scores lie in 0..1 and read as points, x 100
    best: pd.DataFrame = field(default_factory=pd.DataFrame)
    variance: pd.DataFrame = field(default_factory=pd.DataFrame)
    looks: tuple[int, ...] = ()
    adjustment: str = "Holm"  # of the overall rows' p; "Bonferroni" where few seeds borrow the family's variance
    pooled_adjustment: str = "Holm"
    at_equal_time: Comparison | None = None  # the same contrasts where the suite has them at equal wall time

    def sentence(self, row: Mapping[str, Any]) -> str:
        """Return one row of `table` or `pooled` in plain words."""
        from kdbench.analysis.words import sentence

        return sentence(self, row)

    def sentences(self) -> list[str]:
        """Return the pooled rows, then every overall row, in plain words."""
        frames = [frame[frame.task == OVERALL] for frame in (self.pooled, self.table)]
        return [self.sentence(row) for frame in frames for row in frame.to_dict("records")]

    def rich_tables(self) -> list[Table]:
        """Return tables for the terminal that fit 100 columns."""
        from kdbench.analysis.terminal import tables

        return tables(self)

    def to_markdown(self) -> str:
        """Return everything as Markdown."""
        from kdbench.analysis.words import markdown

        return markdown(self)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values; None for what is not known."""
        from kdbench.analysis.words import as_json

        return as_json(self)


def compare(
    scores: pd.DataFrame,
    baseline: str | None = None,
    *,
    contrasts: Sequence[tuple[str, str]] | None = None,
    objectives: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    alpha: float = 0.05,
    margin: float = 0.01,
    looks: Sequence[int] | None = None,
    seed: int = 0,
) -> Comparison:
    """Ask of each objective whether it is better than its baseline, with seeds and items random and tasks fixed.

    Args:
        scores: tidy rows `objective, student, teacher, seed, task, item, score[, item_hash][, cluster]`; null teacher
            or seed: the arm needs none, and stands beside every value of the other arm. Items of one `cluster` (a
            passage, a document) count as one draw.
        baseline: contrast every other objective with it; `floor` and `ceiling` only when named in `objectives`.
        contrasts: (objective, baseline) pairs, instead of `baseline`.
        objectives: contrast only these.
        tasks: use only these.
        weights: of the tasks in `overall`; equal by default.
        alpha: family-wise error of the overall rows (Holm; Bonferroni where few seeds borrow variance from four
            contrasts or more), and of the pooled rows.
        margin: differences inside ±margin count as equivalent, in units of score.
        looks: numbers of seeds at which the results are looked at, fixed beforehand: alpha is spent over them.
        seed: of resampling.

    Raises:
        ConfigError: when scores or arguments do not fit together.
    """
    if not 0 < alpha < 0.5 or not (margin > 0 and math.isfinite(margin)):
        raise ConfigError(f"alpha must lie in 0..0.5 and margin above 0; found alpha={alpha}, margin={margin}")
    data = read(scores, tasks)
    wanted = _contrasts(data, baseline, contrasts, objectives)
    weights = _checked(weights, data)
    notes = Notes()
    cells: list[Cell] = []
    pooled: list[Cell] = []
    for a, b in wanted:
        found = [(place, pair(data, a, b, place, notes)) for place in data.places(a, b)]
        parts = [(place, paired) for place, paired in found if paired is not None]
        if not parts:
            reasons = "; ".join(notes.lines()) or "they stand at no common (student, teacher)"
            raise ConfigError(f"{a!r} and {b!r} have no overlap to compare: {reasons}")
        cells += [(place, a, b, paired) for place, paired in parts]
        if len(parts) > 1 and (whole := pool([paired for _, paired in parts], notes, f"{a} against {b}")):
            pooled.append((("all", "all"), a, b, whole))
    means = mean_scores(data, weights)
    most = max(len(paired.seeds) for *_, paired in cells)
    level, look, judged = level_now(looks, most, alpha)
    resampler, gaps = stats.Resampler(seed), gaps_of(means, [place for place, *_ in cells])
    asked = Question(weights, level, margin, resampler, list(data.columns), data.values.shape[1], judged, gaps)
    single, whole = family(cells, asked), family(pooled, asked)
    remark(notes, cells, len(data.columns), level)
    adjustments = (single.adjustment, whole.adjustment)
    method = in_words(list(single.details.method), level, adjustments, single.method)
    smallest = min(stats.smallest_sign_flip_p(len(paired.seeds)) for *_, paired in cells)
    return Comparison(
        single.table, whole.table, means, _joined(single.details, whole.details),
        [*([f"{look}."] if look else []), *notes.lines()], method,
        smallest, level, margin, wanted, data.in_unit, best_sets(data, means, weights, level, seed),
        _joined(single.variance, whole.variance), tuple(looks or ()), *adjustments,
    )  # fmt: skip


def _joined(*frames: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame for frame in frames if len(frame)], ignore_index=True)


def _contrasts(
    data: Scores, baseline: str | None, contrasts: Sequence[tuple[str, str]] | None, objectives: Sequence[str] | None
) -> list[tuple[str, str]]:
    """Return the (objective, baseline) pairs that were asked for."""
    if (baseline is None) == (contrasts is None):
        raise ConfigError(f"give either baseline= or contrasts=. Objectives in the scores: {', '.join(data.arms)}")
    for name in objectives or ():
        data.known(name, "objective")
    if contrasts is None:
        data.known(str(baseline), "baseline")
        named = objectives if objectives is not None else [n for n in data.arms if n not in (FLOOR, CEILING)]
        wanted = [(name, str(baseline)) for name in named if name != baseline]
    else:
        wanted = [(a, b) for a, b in contrasts if objectives is None or a in objectives]
    for a, b in wanted:
        data.known(a, "objective")
        data.known(b, "baseline")
        if a == b:
            raise ConfigError(f"contrast {a!r} with another objective than itself")
    if not wanted:
        raise ConfigError(f"nothing to compare with {baseline!r}. Objectives in the scores: {', '.join(data.arms)}")
    return list(dict.fromkeys(wanted))


def _checked(weights: Mapping[str, float] | None, data: Scores) -> Mapping[str, float] | None:
    """Return the weights if they name every task with a positive number."""
    if weights is None:
        return None
    for task in weights:
        if task not in data.columns:
            hint = did_you_mean(task, data.columns)
            raise ConfigError(f"weights name the task {task!r}, which is not in the scores.{hint}")
    for task in data.columns:
        value = weights.get(task)
        if value is None or not math.isfinite(value) or value <= 0:
            raise ConfigError(f"weights must give every task a number above 0; task {task!r} has {value}")
    return weights
