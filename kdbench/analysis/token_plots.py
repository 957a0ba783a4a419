"""Pictures of the token view: how sure teachers are, and what an arm gains from easy to hard tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kdbench.analysis.labels import model
from kdbench.analysis.plots import FAINT, GRID, INK, LINES, MARKS, STYLE, _save

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_uncertainty(frame: pd.DataFrame, path: Path) -> None:
    """Draw how sure each teacher is, from `token_view.uncertainty`: deciles, quartiles, median and mean of UNC.

    Args:
        frame: a row at least.
        path: ends in .svg or .png.
    """
    teachers, texts = (list(dict.fromkeys(frame[name])) for name in ("teacher", "text"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 1.2 + 0.55 * len(teachers)), layout="constrained")
        axes = figure.subplots()
        for row in frame.itertuples():
            number = texts.index(row.text)
            y, colour = teachers.index(row.teacher) + 0.3 * (number - (len(texts) - 1) / 2), LINES[number]
            axes.plot([row.q10, row.q90], [y, y], color=colour, lw=1.4, solid_capstyle="butt")
            axes.plot([row.q25, row.q75], [y, y], color=colour, lw=7, alpha=0.45, solid_capstyle="butt")
            axes.plot([row.q50], [y], "o", color=colour, ms=7, mec="white", mew=0.8, label=f"{row.text} text")
            axes.plot([row.mean], [y], "x", color=INK, ms=5)
        axes.set_yticks(range(len(teachers)), [model(name, 18) for name in teachers])
        axes.set(xlim=(-0.01, 1.01), ylim=(len(teachers) - 0.5, -0.5))
        axes.set_xlabel("UNC = 1 − p(token that follows), from sure (0) to lost (1)", color=FAINT)
        axes.set_title("dot: median, ×: mean, bar: half of the tokens, line: four fifths", fontsize=9, color=FAINT)
        axes.grid(axis="x", color=GRID, lw=0.8)
        axes.set_axisbelow(True)
        named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(named.values(), named.keys(), loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
        _save(figure, path)


def draw_by_difficulty(frame: pd.DataFrame, path: Path) -> None:
    """Draw what one arm gains on another from easy to hard tokens, from `token_view.by_difficulty`: a panel a student.

    Args:
        frame: of one pair of arms, a row at least.
        path: ends in .svg or .png.
    """
    frame = frame[frame.bin > 0]
    students, teachers = (list(dict.fromkeys(frame[name])) for name in ("student", "teacher"))
    bars = "; bars: intervals over seeds" if frame.ci_low.notna().any() else ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(7.2, 3.9 * len(students) + 1.6), 3.6), layout="constrained")
        panels = figure.subplots(1, len(students), sharey=True, squeeze=False)[0]
        for axes, student in zip(panels, students, strict=True):
            for number, teacher in enumerate(teachers):
                mine = frame[(frame.student == student) & (frame.teacher == teacher)]
                shift = min(0.12, 0.5 / len(teachers)) * (number - (len(teachers) - 1) / 2)
                _line(axes, mine, shift, LINES[number % len(LINES)], MARKS[number % len(MARKS)], model(teacher, 18))
            axes.axhline(0, color=FAINT, lw=1, zorder=1)
            axes.set_title(f"student {student}", fontsize=10)
            axes.set_xticks(range(1, int(frame.bin.max()) + 1))
            axes.grid(axis="y", color=GRID, lw=0.8)
            axes.set_axisbelow(True)
        scale = f"held-out tokens by the teacher's UNC, from 1 (easiest) to {frame.bin.max()} (hardest)"
        figure.supxlabel(scale + bars, fontsize=10, color=FAINT)
        first = frame.iloc[0]
        panels[0].set_ylabel(f"log p, nats: {first.objective} − {first.baseline}", color=FAINT)
        panels[0].set_ylim(_limits(frame))
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, title="teacher", loc="outside right upper", frameon=False, fontsize=9)
        _save(figure, path)


def _line(axes: Axes, rows: pd.DataFrame, shift: float, colour: str, mark: str, label: str) -> None:
    known = np.isfinite(rows.ci_low.to_numpy(float)).all() and len(rows)
    error = [rows.delta - rows.ci_low, rows.ci_high - rows.delta] if known else None
    axes.errorbar(
        rows.bin + shift, rows.delta, error, color=colour, marker=mark, ms=5, lw=1.8, elinewidth=1, label=label
    )


def _limits(frame: pd.DataFrame) -> tuple[float, float]:
    """Return y limits that hold every mean and most intervals: of two seeds these may be a hundred times as wide."""
    cap = 4 * float(frame.delta.abs().max()) or 1.0
    low = min(0.0, max(-cap, float(frame[["delta", "ci_low"]].min().min())))
    high = max(0.0, min(cap, float(frame[["delta", "ci_high"]].max().max())))
    pad = 0.06 * (high - low) or 0.1
    return low - pad, high + pad
