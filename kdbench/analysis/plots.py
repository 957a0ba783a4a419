"""The style that all pictures share, and the forest plot: SVG of the same bytes for the same numbers, and PNG.

Every picture stands on a white card of its own, so that it reads the same on a light and on a dark page.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure

from kdbench.analysis import rows as choice
from kdbench.analysis.labels import cut, fold, model
from kdbench.analysis.rows import Row
from kdbench.analysis.words import number, place_text, unit
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


LABEL, LETTER, LINE = 34, 0.083, 0.29  # letters of a label's line; inches a letter; inches a line of the forest
FOREST_LIMIT = 60  # lines; above, one line a contrast, and then the decided and the largest


def forest(comparison: Comparison, path: Path) -> None:
    """Draw differences with intervals: a line a contrast, or a heading a contrast and a line a pair below it.

    Args:
        path: as for every picture: ends in .svg or .png, or has no suffix and stands for both.
    """
    rows, compact = forest_rows(comparison)
    lines = _forest_lines(comparison, rows, compact)
    heights = [0.72 * (text.count("\n") + 1) + 0.28 for text, _ in lines]
    centres = [sum(heights[:i]) + heights[i] / 2 for i in range(len(lines))]
    scale, margin = factor(comparison), factor(comparison) * comparison.margin
    with matplotlib.rc_context(STYLE):
        left = LETTER * max([12, *(len(part) for text, row in lines if row for part in text.split("\n"))]) + 0.25
        width, height = left + 3.5 + 2.95, LINE * sum(heights)
        figure = Figure(figsize=(width, height + 0.95))
        axes = figure.add_axes((left / width, 0.75 / (height + 0.95), 3.5 / width, height / (height + 0.95)))
        axes.axvspan(-margin, margin, color="#eef2f7", lw=0, zorder=0)
        axes.axvline(0, color=FAINT, lw=1, zorder=1)
        axes.set(ylim=(sum(heights), 0), yticks=[], xlim=_limits(rows, scale, margin))
        for y, (text, row) in zip(centres, lines, strict=True):
            if row is None:
                x = -(left - 0.1) / 3.5
                axes.text(x, y, text, transform=axes.get_yaxis_transform(), weight="bold", va="center", bbox=PLAIN)
            else:
                _forest_row(axes, comparison, row, text, y)
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlabel(_forest_caption(comparison, margin), fontsize=9, color=FAINT)
        _save(figure, path)


def forest_rows(comparison: Comparison) -> tuple[list[dict[str, Any]], bool]:
    """Return the rows that the forest shows, and whether each contrast has a single one."""
    rows = choice.overall(comparison, pooled_first=True)
    if len(rows) + len(comparison.contrasts) > FOREST_LIMIT:
        rows = choice.chief(comparison) if len(comparison.pooled) else rows
        rows, _ = choice.telling(rows, FOREST_LIMIT)
    seen = [(row["objective"], row["baseline"]) for row in rows]
    return rows, len(set(seen)) == len(seen)


def _forest_lines(comparison: Comparison, rows: Sequence[Row], compact: bool) -> list[tuple[str, Row | None]]:
    """Return what stands on each line: a label and its row, or a heading and None."""
    if compact:
        return [("\n".join(fold(choice.name(comparison, row), LABEL, 2)), row) for row in rows]
    lines: list[tuple[str, Row | None]] = []
    before = None
    for row in rows:
        if (row["objective"], row["baseline"]) != before:
            before = (row["objective"], row["baseline"])
            lines.append((cut(f"{row['objective']} against {row['baseline']}", 90), None))
        lines.append((" ← ".join(model(name, 15) for name in place_text(row).split(" ← ")), row))
    return lines


def _forest_caption(comparison: Comparison, margin: float) -> str:
    against = choice.one_baseline(comparison)
    right = f"right: better than {cut(against, 30)}" if against else "right: the first named is better"
    level = f"{100 * (1 - comparison.alpha):g} % interval; band: ±{margin:g} {unit(comparison)}"
    level += f" (equivalent: the {100 * (1 - 2 * comparison.alpha):g} % interval lies inside)"
    return f"difference in {unit(comparison)}  ({right})\n{level}"


def _forest_row(axes: Axes, comparison: Comparison, row: Row, label: str, y: float) -> None:
    """Draw one line: name, interval, number, verdict."""
    colour, pooled, scale = VERDICT[row["verdict"]], choice.is_pooled(row), factor(comparison)
    delta, low, high = (scale * row[name] for name in ("delta", "ci_low", "ci_high"))
    if math.isfinite(low):
        axes.plot([low, high], [y, y], color=colour, lw=3 if pooled else 2, solid_capstyle="butt", zorder=2)
    axes.plot([delta], [y], "D" if pooled else "o", color=colour, ms=7 if pooled else 6, mec="white", mew=0.8, zorder=3)
    beside = axes.get_yaxis_transform()
    axes.text(-0.04, y, label, transform=beside, ha="right", va="center", fontsize=9.5, linespacing=1.05)
    interval = f"{number(comparison, row['ci_low'])} to {number(comparison, row['ci_high'])}"
    text = f"{number(comparison, row['delta'], sign=True)}  [{interval}]"
    axes.text(1.04, y, text, transform=beside, va="center", fontsize=9.5)
    axes.text(1.55, y, row["verdict"], transform=beside, va="center", fontsize=9.5, color=colour, weight="bold")


def _limits(rows: Sequence[Row], scale: float, margin: float) -> tuple[float, float]:
    """Return x limits that hold every interval and the margin, but are not ruled by one very wide interval."""
    ends = [abs(scale * row[name]) for row in rows for name in ("ci_low", "ci_high") if math.isfinite(row[name])]
    deltas = [abs(scale * row["delta"]) for row in rows]
    cap = 4 * max([*deltas, margin, sorted(ends)[len(ends) // 2] if ends else 0])
    values = [min(scale * row[name], cap) for row in rows for name in ("ci_high", "delta") if math.isfinite(row[name])]
    lows = [max(scale * row[name], -cap) for row in rows for name in ("ci_low", "delta") if math.isfinite(row[name])]
    low, high = min([*lows, -1.5 * margin]), max([*values, 1.5 * margin])
    pad = 0.05 * (high - low)
    return low - pad, high + pad


def factor(comparison: Comparison) -> float:
    """Return what turns a score into the number that is shown: 100 for points."""
    return 100.0 if comparison.points else 1.0


def _save(figure: Figure, path: Path) -> None:
    """Write the picture, the same bytes each time: no date, ids from a fixed salt.

    Args:
        path: ends in .svg or .png; without a suffix both are written, which lays the picture out once.
    """
    for kind in [path.suffix] if path.suffix else [".svg", ".png"]:
        buffer = io.BytesIO()
        if kind == ".svg":
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        else:
            figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
        figure.set_layout_engine("none")
        atomic_write(path.with_suffix(kind), buffer.getvalue())
