"""Differences task by task, and learning curves term by term."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from kdbench.analysis import rows as choice
from kdbench.analysis.labels import fold
from kdbench.analysis.plots import FAINT, GRID, LINES, STYLE, VERDICT, _save, factor
from kdbench.analysis.words import OVERALL, unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kdbench.analysis.verdict import Comparison

LIMIT = 40  # contrasts in the picture of tasks: those with the largest differences
PANELS = 24  # objectives in the picture of curves


def tasks(comparison: Comparison, path: Path) -> None:
    """Draw each contrast's difference, a panel a task: over all pairs where it is pooled, else at each pair."""
    rows = task_rows(comparison)
    names = list(dict.fromkeys(choice.name(comparison, row) for row in rows))
    shown = list(dict.fromkeys(row["task"] for row in rows))
    labels = ["\n".join(fold(name, 34, 2)) for name in names]
    scale, margin = factor(comparison), factor(comparison) * comparison.margin
    left = 0.083 * max(len(part) for label in labels for part in label.split("\n")) + 0.3
    step = 0.3 if max(label.count("\n") for label in labels) == 0 else 0.4
    with matplotlib.rc_context(STYLE):
        wide = left + 2.15 * min(len(shown), 4)
        lines = math.ceil(len(shown) / 4)
        figure = Figure(figsize=(wide + 0.2, lines * (step * len(names) + 0.6) + 0.5), layout="constrained")
        panels = figure.subplots(lines, min(len(shown), 4), sharex=True, sharey=True, squeeze=False).ravel()
        for axes, task in zip(panels, shown, strict=False):
            axes.axvspan(-margin, margin, color="#eef2f7", lw=0, zorder=0)
            axes.axvline(0, color=FAINT, lw=1, zorder=1)
            mine = [row for row in rows if row["task"] == task]
            _dots(axes, mine, [names.index(choice.name(comparison, row)) for row in mine], scale)
            axes.set_title(task, fontsize=10)
            axes.set_ylim(len(names) - 0.4, -0.6)
            axes.set_yticks(range(len(names)), labels, fontsize=9)
            axes.tick_params(axis="y", length=0)
            axes.locator_params(axis="x", nbins=4)
            axes.grid(axis="y", color=GRID, lw=0.6)
            axes.set_axisbelow(True)
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        level = f"difference in {unit(comparison)}, {100 * (1 - comparison.alpha):g} % interval"
        figure.supxlabel(level, fontsize=9, color=FAINT)
        _save(figure, path)


def task_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the rows of single tasks that the picture shows."""
    found = []
    for a, b in comparison.contrasts:
        frames = (comparison.pooled, comparison.table)
        parts = [f[(f.objective == a) & (f.baseline == b) & (f.task != OVERALL)].to_dict("records") for f in frames]
        found.append(parts[0] or parts[1])
    found = [rows for rows in found if rows]
    largest = sorted(found, key=lambda rows: -max(abs(row["delta"]) for row in rows))[:LIMIT]
    return [row for rows in found if rows in largest for row in rows]


def _dots(axes: Axes, rows: Sequence[Mapping[str, Any]], places: Sequence[int], scale: float) -> None:
    """Draw points with intervals; several pairs of one contrast lie a little apart."""
    for index, (row, place) in enumerate(zip(rows, places, strict=True)):
        mates = [i for i, other in enumerate(places) if other == place]
        y = place + (0.5 * (mates.index(index) + 0.5) / len(mates) - 0.25 if len(mates) > 1 else 0)
        colour = VERDICT[row["verdict"]]
        if math.isfinite(row["ci_low"]):
            axes.plot([scale * row["ci_low"], scale * row["ci_high"]], [y, y], color=colour, lw=1.6)
        axes.plot([scale * row["delta"]], [y], "o", color=colour, ms=4.5, mec="white", mew=0.6)


def curves(history: pd.DataFrame, path: Path) -> None:
    """Draw the training loss and its terms against the step, a panel an objective, the mean over all its cells.

    Losses of different objectives are different functions: the picture shows whether each settles, not which is lower.

    Args:
        history: columns `objective, step, loss` and, where known, `loss/<term>`, in nats a token.
    """
    terms = [name for name in history.columns if str(name).startswith("loss/")]
    mean = history.groupby(["objective", "step"], sort=False)[["loss", *terms]].mean().reset_index()
    names = list(dict.fromkeys(history.objective))[:PANELS]
    columns = min(4, len(names))
    lines = math.ceil(len(names) / columns)
    with matplotlib.rc_context(STYLE):
        wide, high = 2.6 * columns + 0.5, 2.1 * lines + 0.5
        figure = Figure(figsize=(wide, high))  # laid out by hand: a solver takes seconds for two dozen panels
        figure.subplots_adjust(0.85 / wide, 0.65 / high, 1 - 0.1 / wide, 1 - 0.4 / high, 0.3, 0.42)
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, name in zip(panels, names, strict=False):
            _curve(axes, mean[mean.objective == name].sort_values("step"), terms)
            axes.set_title("\n".join(fold(str(name), 30, 2)), fontsize=9)
        for axes in panels[len(names) :]:
            axes.set_visible(False)
        figure.supxlabel("step", fontsize=9, color=FAINT, y=0.1 / high)
        figure.supylabel("nats a token", fontsize=9, color=FAINT, x=0.12 / wide)
        _save(figure, path)


def _curve(axes: Axes, mine: pd.DataFrame, terms: Sequence[str]) -> None:
    """Draw one objective; a single term is the loss itself and is not drawn twice."""
    known = [name for name in terms if mine[name].notna().any()]
    known = known if len(known) > 1 else []
    mark = "o" if len(mine) == 1 else None
    thick = {"lw": 3.2, "alpha": 0.4} if known else {"lw": 1.5}
    axes.plot(mine.step, mine.loss, color=LINES[0], marker=mark, label="loss", **thick)
    for position, name in enumerate(known, start=1):
        label = name.removeprefix("loss/")
        axes.plot(mine.step, mine[name], color=LINES[position % len(LINES)], lw=1.1, marker=mark, label=label)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.tick_params(labelsize=8)
    axes.locator_params(nbins=4)
    if known:
        axes.legend(frameon=False, fontsize=7.5, loc="best", handlelength=1.2, labelspacing=0.2)
