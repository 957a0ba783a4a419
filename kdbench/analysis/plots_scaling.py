"""Scores and differences against the teacher: the paper's Figure 1, and a heat map of objective × pair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kdbench.analysis import rows as choice
from kdbench.analysis.labels import cut, fold, model
from kdbench.analysis.plots import FAINT, GRID, INK, LINES, MARKS, STYLE, _save, factor
from kdbench.analysis.scaling_words import parameters
from kdbench.analysis.words import OVERALL, number, unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kdbench.analysis.verdict import Comparison

MANY = 8  # arms in one panel; above, a panel a contrast
PANELS = 24
NARROW = 0.13  # share of the axis below which two sizes stand too close for their labels
DIVERGING = "PuOr"  # orange below zero, violet above: told apart by every kind of colour sight


def scaling(
    means: pd.DataFrame,
    path: Path,
    *,
    points: bool = True,
    sizes: Mapping[str, int] | None = None,
    contrasts: Sequence[tuple[str, str]] = (),
) -> None:
    """Draw the overall score of each objective against the teacher's size, one panel a student, bands of one sd.

    More than eight arms get a panel a contrast and student. Teachers whose size is not known, or that stand too close
    on a log scale, are spaced evenly, by size where it is known.

    Args:
        means: as in `Comparison.means`.
        sizes: model → parameters.
        contrasts: (objective, baseline), the panels of many arms.
    """
    overall = means[means.task == OVERALL]
    at, labels, on_scale = _positions(overall, sizes or {})
    students = list(dict.fromkeys(name for name in overall.student if not pd.isna(name))) or [None]
    trained = [name for name in dict.fromkeys(overall.objective) if name not in ("floor", "ceiling")]
    groups = (
        [("", trained)] if len(trained) <= MANY or not contrasts else [(f"{a} − {b}", [b, a]) for a, b in contrasts]
    )
    panels = [(title, arms, student) for title, arms in groups for student in students][:PANELS]
    columns = min(len(panels), len(students) if len(students) > 1 else 4)
    lines = math.ceil(len(panels) / columns)
    with matplotlib.rc_context(STYLE):
        size = (max(5.2, 3.3 * columns + (2.0 if lines == 1 else 0.4)), 3.7 if lines == 1 else 2.7 * lines + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        drawn = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
        for axes, (title, arms, student) in zip(drawn, panels, strict=False):
            _panel(axes, overall, student, arms, at, 100.0 if points else 1.0)
            parts = [*fold(title, 38, 2), *([f"student {model(str(student))}"] if student else [])]
            axes.set_title("\n".join(part for part in parts if part), fontsize=9.5 if lines == 1 else 8.5)
            _ticks(axes, at, labels, 8.5 if lines == 1 else 7.5)
            axes.minorticks_off()
        for axes in drawn[len(panels) :]:
            axes.set_visible(False)
        figure.supxlabel("teacher" + (", parameters on a log scale" if on_scale else ""), fontsize=9, color=FAINT)
        figure.supylabel("score in points" if points else "score", fontsize=9, color=FAINT)
        _legend(figure, drawn[: len(panels)], single=lines == 1 and groups[0][0] == "")
        _save(figure, path)


def _positions(overall: pd.DataFrame, sizes: Mapping[str, int]) -> tuple[dict[str, float], dict[str, str], bool]:
    """Return teacher → x, teacher → label, and whether x is the logarithm of the parameters."""
    teachers = list(dict.fromkeys(name for name in overall.teacher if not pd.isna(name)))
    known = all(sizes.get(name) for name in teachers)
    if known:
        teachers = sorted(teachers, key=lambda name: (_family(name), sizes[name]))
    labels = {
        name: "\n".join([*fold(model(name, 14), 14), *([parameters(sizes[name])] if known else [])])
        for name in teachers
    }
    if known and len(teachers) > 1:
        logs = [math.log10(sizes[name]) for name in teachers]
        gaps = [after - before for before, after in pairwise(logs)]
        if min(gaps) >= NARROW * (max(logs) - min(logs)) and max(logs) > min(logs):
            return dict(zip(teachers, logs, strict=True)), labels, True
    return {name: float(index) for index, name in enumerate(teachers)}, labels, False


def _ticks(axes: Axes, at: Mapping[str, float], labels: Mapping[str, str], size: float) -> None:
    """Name the teachers: upright where there is room, else slanted on one line."""
    texts = [labels[name] for name in at]
    if sum(max(map(len, text.split("\n"))) + 2 for text in texts) * 0.0085 * size <= 2.9:
        axes.set_xticks(list(at.values()), texts, fontsize=size)
        return
    flat = [text.replace("\n", " · ") for text in texts]
    axes.set_xticks(list(at.values()), flat, fontsize=size - 0.5, rotation=40, ha="right", rotation_mode="anchor")


def _family(name: str) -> str:
    """Return a model's name up to its first digit: `sure-` of `sure-96x3`, so that families stay together."""
    letters = model(name, 99)
    return letters[: next((i for i, sign in enumerate(letters) if sign.isdigit()), len(letters))]


def _panel(
    axes: Axes, overall: pd.DataFrame, student: str | None, arms: Sequence[str], at: Mapping[str, float], scale: float
) -> None:
    """Draw one student's lines; a line is broken between families of teachers."""
    span = (max(at.values()) - min(at.values())) or 1.0 if at else 1.0
    for position, objective in enumerate(arms):
        mine = overall[(overall.objective == objective) & (overall.student == student)]
        style = {"color": LINES[position % len(LINES)], "label": objective}
        for value in mine[mine.teacher.isna()]["mean"]:
            axes.axhline(scale * value, lw=1.5, ls=(0, (6, 3)), **style)
        rows = (
            mine[mine.teacher.isin(at)].set_index("teacher").reindex([name for name in at if name in set(mine.teacher)])
        )
        for family in dict.fromkeys(map(_family, rows.index)):
            part = rows[[_family(name) == family for name in rows.index]]
            x, y = [at[name] for name in part.index], scale * part["mean"].to_numpy()
            sd = scale * part.sd_seeds.fillna(0).to_numpy()
            axes.plot(x, y, marker=MARKS[position % len(MARKS)], ms=5, lw=1.8, **style)
            if len(x) == 1:
                axes.errorbar(x, y, sd, color=style["color"], elinewidth=1, capsize=2, ls="none")
            else:
                axes.fill_between(x, y - sd, y + sd, color=style["color"], alpha=0.13, lw=0)
    for value in overall[(overall.objective == "floor") & (overall.student == student)]["mean"]:
        axes.axhline(scale * value, color=FAINT, lw=1.2, ls=(0, (2, 2)), label="floor (untouched)")
    ceiling = overall[(overall.objective == "ceiling") & (overall.student.isna() | (overall.student == student))]
    ceiling = ceiling[ceiling.teacher.isin(at)]
    x = [at[name] for name in ceiling.teacher]
    axes.plot(x, scale * ceiling["mean"], "*", color=INK, ms=9, ls="none", label="ceiling (teacher)")
    axes.set_xlim((min(at.values()) if at else 0) - 0.12 * span, (max(at.values()) if at else 1) + 0.12 * span)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)


def _legend(figure: Figure, panels: Sequence[Axes], *, single: bool) -> None:
    """One legend for all panels; with a panel a contrast, colours mean first and second named."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if not single:
        fixed = {name: found[name] for name in found if name.startswith(("floor (", "ceiling ("))}
        first = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
        found = dict(zip(("the second named (baseline)", "the first named"), first.values(), strict=False)) | fixed
        figure.legend(found.values(), found.keys(), loc="outside upper left", ncols=4, frameon=False, fontsize=8.5)
        return
    labels = ["\n".join(fold(name, 26, 2)) for name in found]
    figure.legend(found.values(), labels, loc="outside right upper", frameon=False, fontsize=9)


def heat(comparison: Comparison, path: Path) -> None:
    """Draw the difference of every contrast at every pair as coloured numbers; bold where it is decided."""
    frame = comparison.table[comparison.table.task == OVERALL]
    places = list(dict.fromkeys(zip(frame.student, frame.teacher, strict=True)))
    names = list(dict.fromkeys(choice.name(comparison, row) for row in frame.to_dict("records")))
    values = np.full((len(names), len(places)), np.nan)
    verdicts = np.full(values.shape, "", dtype=object)
    for row in frame.to_dict("records"):
        where = names.index(choice.name(comparison, row)), places.index((row["student"], row["teacher"]))
        values[where], verdicts[where] = factor(comparison) * row["delta"], row["verdict"]
    labels = ["\n".join(fold(name, 34, 2)) for name in names]
    students = {student for student, _ in places}
    heads = [
        "\n".join(model(str(part), 14) for part in ((s, t) if len(students) > 1 else (t or s,)) if part)
        for s, t in places
    ]
    against = choice.one_baseline(comparison)
    title = f"difference{f' from {cut(against, 30)}' if against else ''} in {unit(comparison)}; bold: better or worse"
    texts = [
        [number(comparison, v / factor(comparison), sign=True) if np.isfinite(v) else "" for v in row] for row in values
    ]
    bold = np.isin(verdicts, ["better", "worse"])
    grid(values, texts, labels, heads, title, path, bold=bold)


def grid(
    values: np.ndarray, texts: Sequence[Sequence[str]], labels: Sequence[str], heads: Sequence[str], title: str,
    path: Path, *, bold: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Draw numbers on a diverging scale, symmetric about zero, rows and columns named; empty where not finite."""
    finite = np.abs(values[np.isfinite(values)])
    top = float(finite.max()) if len(finite) and finite.max() > 0 else 1.0
    left = 0.083 * max([8, *(len(part) for label in labels for part in label.split("\n"))]) + 0.2
    lines = max(label.count("\n") for label in labels) + 1
    wide, high = max(0.62, 0.085 * max(len(p) for h in heads for p in h.split("\n"))), 0.3 if lines == 1 else 0.4
    width, height = wide * len(heads), high * len(labels)
    above = 0.5 + 0.17 * (max(head.count("\n") for head in heads) + 1)
    full = max(left + width + 0.2, 0.075 * len(title) + 0.2), height + above + 0.1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=full)
        axes = figure.add_axes((left / full[0], 0.1 / full[1], width / full[0], height / full[1]))
        shades = matplotlib.colormaps[DIVERGING]
        edges = [np.arange(size + 1) - 0.5 for size in values.shape[::-1]]
        shown = np.ma.masked_invalid(values)
        axes.pcolormesh(*edges, shown, cmap=shades, vmin=-top, vmax=top, edgecolors="white", linewidth=2)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                red, green, blue, _ = shades(0.5 + value / (2 * top))
                colour = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else INK
                weight = "bold" if bold is not None and bold[row, column] else "normal"
                axes.text(
                    column, row, texts[row][column], ha="center", va="center", fontsize=8.5, color=colour, weight=weight
                )
        axes.set_xticks(range(len(heads)), heads, fontsize=8.5, color=INK)
        axes.set_yticks(range(len(labels)), labels, fontsize=9)
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.spines[:].set_visible(False)
        figure.text(0.1 / full[0], 1 - 0.22 / full[1], title, fontsize=9, color=FAINT, va="center")
        _save(figure, path)
