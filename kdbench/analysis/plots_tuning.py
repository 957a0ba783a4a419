"""The picture of a suite's tuning: dev accuracy against the learning rate, and what was chosen."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from kdbench.analysis.labels import cut
from kdbench.analysis.plots import FAINT, GRID, LINES, MARKS, STYLE, _save
from kdbench.analysis.words import place_text

COLUMNS, PANELS = 3, 6


def sensitivity(frame: pd.DataFrame, path: Path) -> None:
    """Draw each objective's dev accuracy against its learning rate, a panel a pair; a ring marks what was chosen.

    Args:
        frame: rows of `run.tuning_words.sensitivity`; an arm without a teacher stands in every panel of its student.
            Where other settings were tried too, a point is the best of those with its learning rate.
    """
    frame = frame.dropna(subset="score")
    places = list(dict.fromkeys(zip(frame.student, frame.teacher, strict=True)))
    places = ([one for one in places if pd.notna(one[1])] or places)[:PANELS]
    arms = list(dict.fromkeys(frame.objective))
    columns = min(COLUMNS, len(places))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(5.6, 3.2 * columns + 1.8), 3.2 * -(-len(places) // columns)), layout="constrained")
        panels = figure.subplots(-(-len(places) // columns), columns, sharey=True, squeeze=False).ravel()
        for axes, (student, teacher) in zip(panels, places, strict=False):
            here = frame[(frame.student == student) & (frame.teacher.isna() | (frame.teacher == teacher))]
            for number, arm in enumerate(arms):
                mine = here[here.objective == arm].sort_values("score").drop_duplicates("lr", keep="last")
                mine = mine.sort_values("lr")
                look = {
                    "color": LINES[number % len(LINES)],
                    "marker": MARKS[number % len(MARKS)],
                    "label": cut(arm, 28),
                }
                axes.plot(mine.lr, 100 * mine.score, lw=1.6, ms=5, **look)
                chosen = mine[mine.chosen.astype(bool)]
                axes.plot(chosen.lr, 100 * chosen.score, "o", ms=11, mfc="none", mec=look["color"], mew=1.5)
            rates = sorted(here.lr.unique())
            axes.set_xscale("log")
            axes.set_xticks(rates, [f"{rate:g}" for rate in rates], minor=False, fontsize=8.5)
            axes.minorticks_off()
            axes.set_title(place_text({"student": student, "teacher": teacher}), fontsize=9.5)
            axes.grid(axis="y", color=GRID, lw=0.8)
        for axes in panels[len(places) :]:
            axes.set_visible(False)
        figure.supxlabel("learning rate; ring: chosen", fontsize=9, color=FAINT)
        figure.supylabel("accuracy on dev items, %", fontsize=9, color=FAINT)
        named = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
        figure.legend(named.values(), named.keys(), loc="outside right upper", frameon=False, fontsize=9)
        _save(figure, path)
