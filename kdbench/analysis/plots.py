"""Pictures for the report: SVG that is the same bytes for the same numbers, PNG for READMEs.

Every picture stands on a white card of its own, so that it reads the same on a light and on a dark page.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from kdbench.analysis.words import OVERALL, number, place_text
from kdbench.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kdbench.analysis.verdict import Comparison

INK, FAINT, GRID = "#1f2430", "#667085", "#e4e7ec"
VERDICT = {"better": "#12805c", "worse": "#c0392b", "equivalent": "#2f6fba", "undecided": "#667085"}
LINES = ("#2f6fba", "#c2571a", "#12805c", "#8a4fbf", "#b8860b", "#c0397b", "#0f8b8d", "#5b6472")  # on white, ≥ 3:1
MARKS = ("o", "s", "^", "D", "v", "P", "X", "h")
PLAIN = {"facecolor": "white", "edgecolor": "none", "pad": 2}  # behind headings, so that no line crosses them
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT,
    "xtick.color": FAINT, "ytick.color": INK, "figure.facecolor": "white", "axes.facecolor": "white",
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
    "svg.hashsalt": "kdbench", "svg.fonttype": "path",
}  # fmt: skip


def forest(comparison: Comparison, path: Path) -> None:
    """Draw differences with intervals: pooled rows first, then every overall row, a heading a contrast.

    Args:
        path: ends in .svg or .png.
    """
    lines = _forest_lines(comparison)
    scale = 100.0 if comparison.points else 1.0
    shown = [row for kind, row in lines if kind == "row"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 1.15 + 0.30 * len(lines)))
        top, bottom = 1 - 0.15 / figure.get_figheight(), 0.75 / figure.get_figheight()
        axes = figure.add_axes((0.24, bottom, 0.36, top - bottom))
        margin = comparison.margin * scale
        axes.axvspan(-margin, margin, color="#eef2f7", lw=0, zorder=0)
        axes.axvline(0, color=FAINT, lw=1, zorder=1)
        for y, (kind, row) in enumerate(lines):
            if kind == "head":
                axes.text(
                    -0.65,
                    y,
                    _short(row, 90),
                    transform=axes.get_yaxis_transform(),
                    weight="bold",
                    va="center",
                    bbox=PLAIN,
                )
            elif kind == "row":
                _forest_row(axes, comparison, row, y, scale)
        axes.set(ylim=(len(lines) - 0.4, -0.6), yticks=[], xlim=_limits(shown, scale, margin))
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=6)
        unit = "points" if comparison.points else "units of score"
        level = f"{100 * (1 - comparison.alpha):g} % interval; band: ±{margin:g} {unit}"
        level += f" (equivalent: the {100 * (1 - 2 * comparison.alpha):g} % interval lies inside)"
        axes.set_xlabel(f"difference in {unit}  (right: objective is better)\n{level}", fontsize=9, color=FAINT)
        _save(figure, path)


def _forest_lines(comparison: Comparison) -> list[tuple[str, Any]]:
    """Return what stands on each line: ("head", text), ("row", row)."""
    lines: list[tuple[str, Any]] = []
    for a, b in comparison.contrasts:
        lines.append(("head", f"{a} against {b}"))
        for frame in (comparison.pooled, comparison.table):
            mine = frame[(frame.task == OVERALL) & (frame.objective == a) & (frame.baseline == b)]
            lines += [("row", row) for row in mine.to_dict("records")]
    return lines


def _forest_row(axes: Axes, comparison: Comparison, row: Mapping[str, Any], y: int, scale: float) -> None:
    """Draw one line: name, interval, number, verdict."""
    colour, pooled = VERDICT[row["verdict"]], row["student"] == "all" and row["teacher"] == "all"
    delta, low, high = (scale * row[name] for name in ("delta", "ci_low", "ci_high"))
    if math.isfinite(low):
        axes.plot([low, high], [y, y], color=colour, lw=3 if pooled else 2, solid_capstyle="butt", zorder=2)
    mark = "D" if pooled else "o"
    axes.plot([delta], [y], mark, color=colour, ms=7 if pooled else 6, mec="white", mew=0.8, zorder=3)
    beside = axes.get_yaxis_transform()
    axes.text(-0.04, y, _short_place(row), transform=beside, ha="right", va="center", fontsize=9.5)
    interval = f"{number(comparison, row['ci_low'])} to {number(comparison, row['ci_high'])}"
    text = f"{number(comparison, row['delta'], sign=True)}  [{interval}]"
    axes.text(1.04, y, text, transform=beside, va="center", fontsize=9.5)
    axes.text(1.72, y, row["verdict"], transform=beside, va="center", fontsize=9.5, color=colour, weight="bold")


def _limits(rows: Sequence[Mapping[str, Any]], scale: float, margin: float) -> tuple[float, float]:
    """Return x limits that hold every interval and the margin, but are not ruled by one very wide interval."""
    ends = [abs(scale * row[name]) for row in rows for name in ("ci_low", "ci_high") if math.isfinite(row[name])]
    deltas = [abs(scale * row["delta"]) for row in rows]
    cap = 4 * max([*deltas, margin, sorted(ends)[len(ends) // 2] if ends else 0])
    values = [min(scale * row[name], cap) for row in rows for name in ("ci_high", "delta") if math.isfinite(row[name])]
    lows = [max(scale * row[name], -cap) for row in rows for name in ("ci_low", "delta") if math.isfinite(row[name])]
    low, high = min([*lows, -1.5 * margin]), max([*values, 1.5 * margin])
    pad = 0.05 * (high - low)
    return low - pad, high + pad


def scaling(means: pd.DataFrame, path: Path, *, points: bool = True) -> None:
    """Draw the overall score of each objective against the teacher, one panel a student.

    Teachers stand in the order of `means`; a line an objective with its sd over seeds, the floor and arms that need no
    teacher as dashed lines, the teacher itself as markers.
    """
    overall = means[means.task == OVERALL]
    teachers = list(dict.fromkeys(name for name in overall.teacher if not pd.isna(name)))
    students = list(dict.fromkeys(name for name in overall.student if not pd.isna(name))) or [None]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(5.2, 3.5 * len(students) + 2.0), 3.9), layout="constrained")
        panels = figure.subplots(1, len(students), sharey=True, squeeze=False)[0]
        for axes, student in zip(panels, students, strict=True):
            _panel(axes, overall, student, teachers, 100.0 if points else 1.0)
            axes.set_title(f"student {student}", fontsize=10)
            axes.set_xlabel("teacher", color=FAINT)
        panels[0].set_ylabel("score in points" if points else "score", color=FAINT)
        found: dict[str, Any] = {}
        for axes in panels:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                found.setdefault(label, handle)
        figure.legend(found.values(), found.keys(), loc="outside right upper", frameon=False, fontsize=9)
        _save(figure, path)


def _panel(axes: Axes, overall: pd.DataFrame, student: str | None, teachers: list[str], scale: float) -> None:
    """Draw one student's lines."""
    trained = [name for name in dict.fromkeys(overall.objective) if name not in ("floor", "ceiling")]
    at = {name: position for position, name in enumerate(teachers)}
    for position, objective in enumerate(trained):
        mine = overall[(overall.objective == objective) & (overall.student == student)]
        colour, mark = LINES[position % len(LINES)], MARKS[position % len(MARKS)]
        shift = 0.04 * (position - (len(trained) - 1) / 2)  # bars of equal scores stay apart
        free = mine[mine.teacher.isna()]
        with_teacher = mine[mine.teacher.isin(teachers)].sort_values("teacher", key=lambda names: names.map(at))
        for value in free["mean"]:
            axes.axhline(scale * value, color=colour, lw=1.5, ls=(0, (6, 3)), label=objective)
        if len(with_teacher):
            x = [at[name] + shift for name in with_teacher.teacher]
            sd = scale * with_teacher.sd_seeds.fillna(0)
            y = scale * with_teacher["mean"]
            axes.errorbar(x, y, sd, color=colour, marker=mark, ms=5, lw=1.8, elinewidth=1, capsize=2, label=objective)
    for value in overall[(overall.objective == "floor") & (overall.student == student)]["mean"]:
        axes.axhline(scale * value, color=FAINT, lw=1.2, ls=(0, (2, 2)), label="floor (untouched)")
    ceiling = overall[(overall.objective == "ceiling") & (overall.student.isna() | (overall.student == student))]
    ceiling = ceiling[ceiling.teacher.isin(teachers)]
    x = [at[name] for name in ceiling.teacher]
    axes.plot(x, scale * ceiling["mean"], "*", color=INK, ms=9, ls="none", label="ceiling (teacher)")
    axes.set_xticks(range(len(teachers)), [_short(name, 14) for name in teachers])
    axes.set_xlim(-0.4, max(len(teachers) - 0.6, 0.4))
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)


def curves(history: pd.DataFrame, path: Path) -> None:
    """Draw the training loss against the step: a line an objective, the mean over all its cells.

    Losses of different objectives are different functions: the picture shows whether each settles, not which is lower.

    Args:
        history: columns `objective, step, loss`, in nats a token.
    """
    mean = history.groupby(["objective", "step"], sort=False)["loss"].mean().reset_index().sort_values("step")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.subplots()
        for position, objective in enumerate(dict.fromkeys(history.objective)):
            mine = mean[mean.objective == objective]
            mark = "o" if len(mine) == 1 else None
            axes.plot(mine.step, mine.loss, color=LINES[position % len(LINES)], lw=1.6, marker=mark, label=objective)
        axes.set(xlabel="step", ylabel="training loss")
        axes.grid(axis="y", color=GRID, lw=0.8)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
        _save(figure, path)


def _short_place(row: Mapping[str, Any]) -> str:
    """Return the place without the owners of Hub names, cut to the width beside the axes."""
    names = [_short(name.rsplit("/", 1)[-1], 14) for name in place_text(row).split(" ← ")]
    return " ← ".join(names)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _save(figure: Figure, path: Path) -> None:
    """Write the picture, the same bytes each time: no date, ids from a fixed salt."""
    buffer = io.BytesIO()
    if path.suffix == ".svg":
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    else:
        figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    atomic_write(path, buffer.getvalue())
