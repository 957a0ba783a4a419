"""What a score costs: seconds, memory and generated tokens of every objective, and who is on the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import pandas as pd

from kdbench.analysis.words import OVERALL, place_text
from kdbench.errors import ConfigError, did_you_mean

COLUMNS = ["objective", "student", "teacher", "score", "seconds", "ratio", "peak_mib", "generated_tokens"]
COLUMNS += ["tokens", "n_cells", "on_front"]
UNTRAINED = ("floor", "ceiling")
FIRST = ("sft", "kl")  # what others are set against, where nobody says
SHARED = (
    "Seconds are those of each student's training as measured; where cells ran beside others on shared cores they are "
    "rough. What cells share is not in them: making the models, the teacher's cache, text that teachers wrote. Memory "
    "is the peak of the worker's process so far, so what it did before a cell counts too."
)
MEANS_ONLY = "The front sets mean scores against each other; whether they differ at all is for the comparison to say."


def costs(cells: Iterable[Mapping[str, Any]], means: pd.DataFrame, baseline: str | None = None) -> pd.DataFrame:
    """Return what each objective costs at each (student, teacher), and whether that buys anything.

    Args:
        cells: rows of the report, one a cell: `objective`, `student`, `teacher`, `status`, and its facts at the top, in
            `timing` or in `done`: `train_s` (else `seconds`, the cell's whole wall time), `peak_rss_mib`,
            `generated_tokens`, `tokens`. Only cells with status `ok`, or without status, count.
        means: as in `Comparison.means`.
        baseline: whose seconds `ratio` divides by; default: sft, else kl, else none.

    Returns:
        objective, student, teacher, score (overall mean), seconds, peak_mib, generated_tokens, tokens (medians over the
        cells of a pair; NaN where nobody measured), ratio (seconds over the baseline's), n_cells, on_front: no other
        arm of the pair scores at least as high in at most the time and is better in one of them. An arm without teacher
        stands beside every teacher. Floor and ceiling are left out.

    Raises:
        ConfigError: the baseline has no cells.
    """
    found = [cell for cell in cells if cell.get("status", "ok") == "ok" and cell["objective"] not in UNTRAINED]
    arms = list(dict.fromkeys(cell["objective"] for cell in found))
    if baseline is None:
        baseline = next((name for name in FIRST if name in arms), None)
    elif baseline not in arms:
        raise ConfigError(f"no finished cell of the baseline {baseline!r}.{did_you_mean(baseline, arms)}")
    facts = {key: _medians(group) for key, group in _groups(found).items()}
    rows = [
        {
            "objective": arm,
            "student": student,
            "teacher": teacher,
            **known,
            "score": _score(means, arm, student, teacher),
        }
        for student, teacher in _pairs(facts)
        for arm in arms
        if (known := facts.get((arm, student, teacher)) or facts.get((arm, student, None)))
    ]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    for name in ("student", "teacher"):  # None stays None
        frame[name] = pd.Series([row[name] for row in rows], dtype=object)
    frame["ratio"] = _ratios(frame, baseline)
    frame["on_front"] = _front(frame)
    frame.attrs = {"baseline": baseline, "points": bool(frame.score.between(0, 1).all()), "notes": [SHARED, MEANS_ONLY]}
    return frame


def _groups(cells: Sequence[Mapping[str, Any]]) -> dict[tuple, list[Mapping[str, Any]]]:
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["objective"], _name(cell["student"]), _name(cell["teacher"])), []).append(cell)
    return groups


def _name(value: Any) -> str | None:
    return None if value is None or value != value else str(value)


def _pairs(facts: Mapping[tuple, Any]) -> list[tuple[str | None, str | None]]:
    """Return the (student, teacher) pairs; a student without any teacher is a pair of its own."""
    pairs = list(dict.fromkeys((student, teacher) for _, student, teacher in facts))
    taught = {student for student, teacher in pairs if teacher is not None}
    return [pair for pair in pairs if pair[1] is not None or pair[0] not in taught]


def _medians(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def typical(fact: Callable[[Mapping[str, Any]], float | None]) -> float:
        values = [value for cell in cells if (value := fact(cell)) is not None]
        return float(median(values)) if values else math.nan

    facts = {"peak_mib": "peak_rss_mib", "generated_tokens": "generated_tokens", "tokens": "tokens"}
    found = {column: typical(partial(_fact, name=name)) for column, name in facts.items()}
    return {"seconds": typical(_train_seconds), **found, "n_cells": len(cells)}


def _fact(cell: Mapping[str, Any], name: str) -> float | None:
    """Return a fact of a cell, wherever it stands."""
    done = cell.get("done") or {}
    holders = [cell, cell.get("timing") or {}, done, done.get("timing") or {}]
    return next((part[name] for part in holders if part.get(name) is not None), None)


def _train_seconds(cell: Mapping[str, Any]) -> float | None:
    """Return the seconds of training; the whole cell's where nobody told them apart, and none for a foreign student."""
    found = _fact(cell, "train_s")
    told_apart = cell.get("timing") or cell.get("done") or cell.get("elsewhere")
    return cell.get("seconds") if found is None and not told_apart else found


def _score(means: pd.DataFrame, arm: str, student: str | None, teacher: str | None) -> float:
    """Return the overall mean of an arm at a pair, or of the arm without teacher."""
    mine = means[(means["task"] == OVERALL) & (means["objective"] == arm)]
    at = {(_name(row["student"]), _name(row["teacher"])): float(row["mean"]) for row in mine.to_dict("records")}
    return at.get((student, teacher), at.get((student, None), math.nan))


def _ratios(frame: pd.DataFrame, baseline: str | None) -> list[float]:
    first = frame[frame["objective"] == baseline]
    base = {(row["student"], row["teacher"]): row["seconds"] for row in first.to_dict("records")}
    rows = frame.to_dict("records")
    return [row["seconds"] / base.get((row["student"], row["teacher"]), math.nan) for row in rows]


def _front(frame: pd.DataFrame) -> list[bool]:
    """Return whether nothing in the pair is better in score or seconds and no worse in the other; False for unknown."""
    on_front = []
    for row in frame.to_dict("records"):
        pair = frame[
            [(s, t) == (row["student"], row["teacher"]) for s, t in zip(frame.student, frame.teacher, strict=True)]
        ]
        as_good = (pair.score >= row["score"]) & (pair.seconds <= row["seconds"])
        better = (pair.score > row["score"]) | (pair.seconds < row["seconds"])
        known = not (math.isnan(row["score"]) or math.isnan(row["seconds"]))
        on_front.append(known and not bool((as_good & better).any()))
    return on_front


def sentences(frame: pd.DataFrame) -> list[str]:
    """Return a frame of `costs` in words: a sentence an objective, then what the numbers leave out."""
    if frame.empty:
        return ["No trained cell is finished, so there are no costs to show."]
    arms = frame.groupby("objective", sort=False)
    return [_sentence(str(arm), part, frame.attrs["baseline"]) for arm, part in arms] + list(frame.attrs["notes"])


def _sentence(arm: str, part: pd.DataFrame, baseline: str | None) -> str:
    where = place_text(part.iloc[0]) if len(part) == 1 else f"median over {len(part)} pairs"
    seconds = part.seconds.median()
    told = [f"{arm}: {seconds:,.1f} s of training ({where})" if seconds == seconds else f"{arm}: not trained here"]
    ratio = part.ratio.median()
    if arm != baseline and ratio == ratio:
        told.append(f"{ratio:.2f} × {baseline}")
    if (peak := part.peak_mib.max()) == peak:
        told.append(f"at most {peak:,.0f} MiB of memory")
    if (written := part.generated_tokens.median()) == written:
        told.append(f"{written:,.0f} tokens generated")
    front = int(part.on_front.sum())
    if seconds == seconds:
        held = "on" if front else "not on"
        of = "" if len(part) == 1 else f" at {front} of {len(part)} pairs" if front else " at any pair"
        told.append(f"{held} the front of score against seconds{of}")
    return ", ".join(told) + "."
