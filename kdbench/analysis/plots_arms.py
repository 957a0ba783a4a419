"""Arms side by side: who may be the best, quality against cost, and the items on which they differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from kdbench.analysis.labels import cut, fold, model
from kdbench.analysis.plots import FAINT, GRID, INK, LINES, STYLE, _save, factor
from kdbench.analysis.plots_scaling import grid
from kdbench.analysis.words import OVERALL, unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kdbench.analysis.verdict import Comparison

FIXED = ("floor", "ceiling")
IN, OUT = LINES[0], "#b6bdc9"
PLACES = 5  # panels beside each other; of more, only all pairs
LABELLED = 8  # points named in the picture of costs


def best_set(comparison: Comparison, path: Path) -> None:
    """Draw every trained arm's mean, best first: filled where it may be the best, hollow where it is surely worse."""
    frame = ranked(comparison)
    places = list(dict.fromkeys(frame.place))
    places = places if len(places) <= PLACES else places[:1]
    order = list(
        frame.groupby("objective", sort=False)["mean"].mean().sort_values(ascending=False, kind="stable").index
    )
    labels = ["\n".join(fold(name, 34, 2)) for name in order]
    left = 0.083 * max(len(part) for label in labels for part in label.split("\n")) + 0.3
    step = 0.29 if max(label.count("\n") for label in labels) == 0 else 0.38
    scale = factor(comparison)
    with matplotlib.rc_context(STYLE):
        wide = 4.4 if len(places) == 1 else 2.1 * len(places)
        figure = Figure(figsize=(left + wide, step * len(order) + 1.05), layout="constrained")
        panels = figure.subplots(1, len(places), sharey=True, sharex=True, squeeze=False)[0]
        for axes, place in zip(panels, places, strict=True):
            for row in frame[frame.place == place].to_dict("records"):
                _standing(axes, order.index(row["objective"]), row, scale)
            axes.set_title((" ← " if len(places) == 1 else " ←\n").join(map(model, place.split(" ← "))), fontsize=9.5)
            axes.set_ylim(len(order) - 0.4, -0.6)
            axes.set_yticks(range(len(order)), labels, fontsize=9)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="y", color=GRID, lw=0.6)
            axes.locator_params(axis="x", nbins=5)
            axes.set_axisbelow(True)
        figure.supxlabel(_best_caption(comparison, frame), fontsize=9, color=FAINT)
        _save(figure, path)


def ranked(comparison: Comparison) -> pd.DataFrame:
    """Return `place, objective, mean, low, high, in_best` (None where nobody tested it), trained arms only."""
    means = comparison.means[(comparison.means.task == OVERALL) & ~comparison.means.objective.isin(FIXED)]
    sd = {(row.objective, row.student, row.teacher): row.sd_seeds for row in means.itertuples()}
    best = getattr(comparison, "best", None)
    tested = best is not None and len(best) > 0
    source = best if tested else _over_pairs(means)
    rows = []
    for row in source.to_dict("records"):
        student, teacher = row["student"], row["teacher"]
        everywhere = student == "all" and teacher == "all"
        place = "all pairs" if everywhere else " ← ".join(str(p) for p in (student, teacher) if not pd.isna(p))
        spread = sd.get((row["objective"], student, teacher), math.nan)
        rows.append([place, row["objective"], row["mean"], spread, row["in_best"] if tested else None])
    frame = pd.DataFrame(rows, columns=["place", "objective", "mean", "sd", "in_best"])
    return frame.assign(first=frame.place != "all pairs").sort_values("first", kind="stable").drop(columns="first")


def _over_pairs(means: pd.DataFrame) -> pd.DataFrame:
    """Mean over pairs, at the place `all pairs`, or at the one pair."""
    pairs = means[["student", "teacher"]].dropna().drop_duplicates()
    student, teacher = (pairs.student.iloc[0], pairs.teacher.iloc[0]) if len(pairs) == 1 else ("all", "all")
    over = means.groupby("objective", sort=False)["mean"].mean().reset_index()
    return over.assign(student=student, teacher=teacher)


def _standing(axes: Axes, y: int, row: Mapping[str, Any], scale: float) -> None:
    inside = row["in_best"] is None or bool(row["in_best"])
    colour, sd = (IN, row["sd"]) if inside else (OUT, row["sd"])
    if math.isfinite(sd):
        axes.plot([scale * (row["mean"] - sd), scale * (row["mean"] + sd)], [y, y], color=colour, lw=1.4)
    face = colour if inside else "white"
    axes.plot([scale * row["mean"]], [y], "o", ms=7, color=colour, mfc=face, mec=colour, mew=1.5, zorder=3)


def _best_caption(comparison: Comparison, frame: pd.DataFrame) -> str:
    kind = f"mean score in {unit(comparison)}, bar: sd over seeds"
    if frame.in_best.isna().all():
        return kind
    return f"{kind}\nfilled: cannot be told apart from the best at {comparison.alpha:g}; hollow: below it"


def costs(frame: pd.DataFrame, path: Path, *, points: bool = True) -> None:
    """Draw score against training seconds, a panel a pair, the front of what nothing beats in both joined by a line.

    Args:
        frame: as `analysis.costs.costs` returns it.
    """
    places = list(dict.fromkeys(zip(frame.student, frame.teacher, strict=True)))[:6]
    columns, scale = min(3, len(places)), 100.0 if points else 1.0
    lines = math.ceil(len(places) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(3.5 * columns, 6.4), 3.6 * lines + 0.2), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, place in zip(panels, places, strict=False):
            _cost_panel(axes, frame[(frame.student == place[0]) & (frame.teacher == place[1])], scale)
            axes.set_title(" ← ".join(model(str(part), 16) for part in place), fontsize=9.5)
        for axes in panels[len(places) :]:
            axes.set_visible(False)
        figure.supxlabel("training seconds, median over seeds", fontsize=9, color=FAINT)
        figure.supylabel("score in points" if points else "score", fontsize=9, color=FAINT)
        _save(figure, path)


def _cost_panel(axes: Axes, mine: pd.DataFrame, scale: float) -> None:
    """Draw one pair; all points are named where they are few, else those of the front and the slowest."""
    mine = mine.sort_values("seconds", kind="stable")
    front = mine[mine.on_front.astype(bool)]
    axes.plot(front.seconds, scale * front.score, color=LINES[0], lw=1.2, alpha=0.6, drawstyle="steps-post")
    few = len(mine) <= LABELLED
    for row in mine.to_dict("records"):
        colour = LINES[0] if row["on_front"] else FAINT
        axes.plot([row["seconds"]], [scale * row["score"]], "o", ms=6, color=colour, mec="white", mew=0.7, zorder=3)
    _names(axes, mine if few else front, scale)
    low, high = mine.seconds.min(), mine.seconds.max()
    pad = 0.08 * (high - low) or 0.5 * high
    axes.set_xlim(max(0, low - pad), high + 5 * pad)
    axes.margins(y=0.12)
    axes.grid(color=GRID, lw=0.7)
    axes.set_axisbelow(True)


def _names(axes: Axes, rows: pd.DataFrame, scale: float) -> None:
    """Write names beside points, from the top down, moved apart where two would lie on one another."""
    high, wide = (
        scale * (rows.score.max() - rows.score.min()) or 1.0,
        rows.seconds.max() - rows.seconds.min() or 1.0,
    )
    taken: list[tuple[float, float]] = []
    for row in sorted(rows.to_dict("records"), key=lambda row: -row["score"]):
        x, y = row["seconds"] + 0.03 * wide, scale * row["score"]
        for other_x, other_y in taken:
            if abs(other_x - x) < 0.4 * wide and other_y - y < 0.07 * high:
                y = other_y - 0.07 * high
        taken.append((x, y))
        halo = [withStroke(linewidth=2.5, foreground="white")]  # so that the front's line does not cross a name
        axes.text(x, y, cut(row["objective"], 24), fontsize=8, va="center", color=INK, zorder=2, path_effects=halo)


def differing(frame: pd.DataFrame, arms: Sequence[str], path: Path) -> None:
    """Draw the share of items on which two arms differ (number) and who wins more of them (colour).

    Args:
        frame: as `agreement` returns it.
        arms: rows and columns, in this order.
    """
    at = {name: index for index, name in enumerate(arms)}
    net = np.full((len(arms), len(arms)), np.nan)
    texts = [["" for _ in arms] for _ in arms]
    for row in frame[frame.objective.isin(at) & frame.other.isin(at)].to_dict("records"):
        where = at[row["objective"]], at[row["other"]]
        net[where] = 100 * (row["won"] - row["lost"])
        texts[where[0]][where[1]] = f"{100 * row['differ']:.0f}"
    labels = ["\n".join(fold(f"{index}  {name}", 36, 2)) for index, name in enumerate(arms, start=1)]
    title = "% of items answered differently; violet: the row wins more of them, orange: the column"
    grid(net, texts, labels, [str(index) for index in range(1, len(arms) + 1)], title, path)
