"""Trends and interactions over model sizes in words, with a warning against reading beyond what was run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from kdbench.analysis.words import p_text

TEACHER, STUDENT, UNSURE = "teacher size", "student size", "teacher's median UNC"
UNC_STEP = 0.1
UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "k"))


def sentences(frame: pd.DataFrame) -> list[str]:
    """Return a frame of `teacher_trend`, `interactions` or `along_uncertainty` in words.

    That is a sentence a row, then once for all rows what they hold for, then notes.
    """
    rows = frame.to_dict("records")
    held = list(dict.fromkeys(_warning(row) for row in rows))
    notes = [f"{note[:1].upper()}{note[1:]}" for note in frame.attrs["notes"]]
    return [_sentence(row, frame.attrs) for row in rows] + held + notes


def parameters(count: float) -> str:
    """Return a number of parameters as people say it: `125M`."""
    count = float(f"{count:.3g}")
    for size, unit in UNITS:
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def _sentence(row: Mapping[str, Any], attrs: Mapping[str, Any]) -> str:
    moderator = row.get("moderator", TEACHER)
    side = _side(moderator)
    per = f"{UNC_STEP:g} of UNC" if moderator == UNSURE else f"doubling of the {side}"
    name = f"{row['objective']} − {row['baseline']}" if "baseline" in row else _arm(row)
    measured = f"{_number(row['slope'], attrs)} {'points' if attrs['points'] else 'units of score'} per {per}"
    return f"{name}: {row['reading']}: {measured} ({_about(row, attrs)}){_rank(row)}{_mixed(row, attrs)}."


def _arm(row: Mapping[str, Any]) -> str:
    return f"{row['objective']} at student {row['student']}" if row["student"] is not None else str(row["objective"])


def _number(value: float, attrs: Mapping[str, Any]) -> str:
    text = (f"{100 * value:+.2f}" if attrs["points"] else f"{value:+.3g}").replace("-", "−")
    return "0.00" if text[1:] == "0.00" else text


def _about(row: Mapping[str, Any], attrs: Mapping[str, Any]) -> str:
    p = p_text(row["p_adjusted"])
    tested = "no test with one seed" if math.isnan(row["p_value"]) else "adjusted p " + (p if p[0] == "<" else f"= {p}")
    interval = f"{_number(row['ci_low'], attrs)} to {_number(row['ci_high'], attrs)}"
    seeds = f"{row['n_seeds']} {'seed' if row['n_seeds'] == 1 else 'seeds'} × {row['n_items']:,} items"
    detects = "" if math.isnan(row["mde"]) else f", detectable {_number(row['mde'], attrs).lstrip('+')}"
    return f"{100 * (1 - attrs['alpha']):g} % interval {interval}, {tested}, {seeds}{detects}"


def _rank(row: Mapping[str, Any]) -> str:
    rho = row.get("spearman", math.nan)
    return "" if math.isnan(rho) else f"; rank correlation {rho:+.2f}".replace("-", "−") + ", a description only"


def _mixed(row: Mapping[str, Any], attrs: Mapping[str, Any]) -> str:
    """Set the mixed model beside the contrast, or say why there is none."""
    if "mixed" not in row:
        return ""
    if math.isnan(row["mixed_slope"]):
        return f"; mixed model: {row['mixed'].rstrip('.')}"
    p = p_text(row["mixed_p"])
    return f"; mixed model: {_number(row['mixed_slope'], attrs)}, p {p if p[0] == '<' else f'= {p}'} ({row['mixed']})"


def _side(moderator: str) -> str:
    return "student" if moderator == STUDENT else "teacher"


def _warning(row: Mapping[str, Any]) -> str:
    """Say what was run, and that nothing is known beyond."""
    count, ends, moderator = row["n_models"], (row["lowest"], row["highest"]), row.get("moderator", TEACHER)
    if moderator == UNSURE:
        return (
            f"This holds for the {count} teachers run, with median UNC between {ends[0]:.2f} and {ends[1]:.2f}, and "
            "these differ in more than UNC."
        )
    low, high = map(parameters, ends)
    side = _side(moderator)
    return f"This holds for the {count} {side}s between {low} and {high} parameters that were run, and no further."
