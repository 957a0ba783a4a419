"""Two checkpoints on the same held-out tokens: what each says of easy and of hard ones, and where they part most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import special

from kdbench.evaluate.token_scores import PLACE, calibration_error
from kdbench.suite.matrix import CEILING

if TYPE_CHECKING:
    from kdbench.analysis.examined import Checkpoint

THIRDS = ("easy", "middle", "hard")
SURE, LOST = 0.5, 0.9  # UNC below which the teacher gives the right token more than all others, and from which little
FURTHEST = 10
Column = np.ndarray | None


@dataclass(frozen=True)
class TokenPair:
    """Two checkpoints on the tokens that both were examined on.

    Attributes:
        table: a row a measure: `measure`, `a`, `b`, `teacher` (what the teacher itself has), `delta` = a − b, `low`
            and `high`, its interval over blocks of text; NaN where something is not known.
        teacher: by whose UNC tokens are called easy or hard; None where there is no teacher.
        thirds: of these: `third`, `low` and `high` (its range of UNC), `n_tokens`.
        shares: `sure` and `lost`, the shares of tokens with UNC < .5 and ≥ .9.
        apart: the tokens on which the two differ most, each target once: `row`, `position`, `target`, `a`, `b` (log p),
            `unc`, and `alike`, how many tokens of that target are among the ten times as many that differ most.
        notes: what is left out and why.
    """

    table: pd.DataFrame
    apart: pd.DataFrame
    n_tokens: int
    teacher: str | None = None
    thirds: list[dict[str, Any]] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def pair(a: Checkpoint, b: Checkpoint, names: Sequence[str], *, level: float = 0.95, most: int = 10) -> TokenPair | str:
    """Compare two checkpoints token by token.

    Args:
        names: how the two are called in notes.
        level: of the intervals. They are over blocks of text and hold for these two checkpoints.
        most: how many tokens to name on which the two differ most.

    Returns:
        The comparison, or in a sentence why there is none.
    """
    for cell, name in zip((a, b), names, strict=True):
        if cell.tokens is None:
            return (
                f"{name} was examined before kdbench kept token scores, so there is no comparison token by token; "
                "run its suite into a fresh results folder"
            )
    if a.text != b.text:
        return "the two were examined on different held-out text or tokenizers, so they share no token"
    assert a.tokens is not None and b.tokens is not None
    left, right = shared(a.tokens, b.tokens)
    if left.empty:
        return "the two were examined on different held-out tokens"
    notes = []
    if len(left) < max(len(a.tokens), len(b.tokens)):
        notes.append(f"{len(left):,} tokens are shared, of {len(a.tokens):,} and {len(b.tokens):,}")
    side = next((i for i, (cell, frame) in enumerate(((a, left), (b, right))) if _knows(cell, frame)), None)
    notes += _on_teachers(a, b, names, side)
    teacher = None if side is None else (left, right)[side]
    table = _table(left, right, teacher, level)
    apart = _apart(left, right, teacher, most)
    if teacher is None or side is None:
        return TokenPair(table, apart, len(left), notes=notes)
    thirds, shares = _difficulty(teacher.teacher_log_prob.to_numpy(float))
    return TokenPair(table, apart, len(left), (a, b)[side].named["teacher"], thirds, shares, notes)


def _difficulty(log_prob: np.ndarray) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return the thirds of the tokens with their ranges of UNC, and the shares of sure and of lost ones."""
    unc = -np.expm1(log_prob)
    found = [
        {"third": name, "low": float(unc[part].min()), "high": float(unc[part].max()), "n_tokens": len(part)}
        for name, part in zip(THIRDS, by_difficulty(log_prob, 3), strict=True)
        if len(part)
    ]
    return found, {"sure": float((unc < SURE).mean()), "lost": float((unc >= LOST).mean())}


def shared(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of each that stand for the same token of the same text, in one order."""
    place = list(PLACE)
    if len(a) == len(b) and (a[place].to_numpy() == b[place].to_numpy()).all():
        return a, b
    common = a[place].merge(b[place])
    return common.merge(a), common.merge(b)


def by_difficulty(teacher_log_prob: np.ndarray, parts: int) -> list[np.ndarray]:
    """Return the indices of equally many tokens each, from those that the teacher is surest of to the others."""
    return np.array_split(np.argsort(-teacher_log_prob, kind="stable"), parts)


def unc_text(value: float) -> str:
    """Return a share as `.87`; with more digits near 1, where an unsure teacher's tokens crowd."""
    if value >= 0.99995:
        return ".9999+"
    return f"{value:.{2 if value < 0.99 else 4}f}".removeprefix("0")


def _knows(cell: Checkpoint, frame: pd.DataFrame) -> bool:
    return cell.teacher is not None and "teacher_log_prob" in frame


def _on_teachers(a: Checkpoint, b: Checkpoint, names: Sequence[str], side: int | None) -> list[str]:
    """Say whose teacher rules what is easy and hard, where that is not plain."""
    if side is None:
        return ["neither was measured against a teacher, so nothing is said about easy and hard tokens"]
    if a.teacher and b.teacher and a.teacher != b.teacher:
        return [
            f"the two have different teachers: easy and hard are by {a.named['teacher']}; agreement, overlap and KL "
            "are each to its own"
        ]
    lacking = [name for cell, name in zip((a, b), names, strict=True) if cell.teacher is None]
    if CEILING in (a.inputs["arm"], b.inputs["arm"]):
        return []
    return [f"{name} has no teacher, so it was not measured against one" for name in lacking]


def _table(left: pd.DataFrame, right: pd.DataFrame, teacher: pd.DataFrame | None, level: float) -> pd.DataFrame:
    blocks = left["row"].to_numpy()
    own = dict(zip(("nats", "entropy"), _of_teacher(teacher), strict=True))
    rows = []
    for measure, name in _MEASURES.items():
        two = [_column(frame, name) for frame in (left, right)]
        if any(column is not None for column in two):
            rows.append(_row(measure, *two, own.get(name), blocks, level))
        if name == "entropy":
            rows.append(_calibration(left, right))
    if teacher is not None:
        parts = by_difficulty(teacher.teacher_log_prob.to_numpy(), 3)
        for third, part in zip(THIRDS, parts, strict=True):
            two = [frame.log_prob.to_numpy(float)[part] for frame in (left, right)]
            there = teacher.teacher_log_prob.to_numpy(float)[part]
            rows.append(_row(f"log p, {third} third", *two, there, blocks[part], level))
    return pd.DataFrame(rows)


_MEASURES = {
    "nats a token": "nats",
    "entropy, nats": "entropy",
    "top-1 right": "top1_correct",
    "top-1 as teacher's": "top1_agreement",
    "top-10 as teacher's": "top10_overlap",
    "KL to teacher, nats": "kl_to_teacher",
}


def _column(frame: pd.DataFrame, name: str) -> Column:
    if name == "nats":
        return -frame.log_prob.to_numpy(float)
    return frame[name].to_numpy(float) if name in frame else None


def _of_teacher(teacher: pd.DataFrame | None) -> tuple[Column, Column]:
    if teacher is None:
        return None, None
    return -teacher.teacher_log_prob.to_numpy(float), teacher.teacher_entropy.to_numpy(float)


def _row(measure: str, a: Column, b: Column, teacher: Column, blocks: np.ndarray, level: float) -> dict[str, Any]:
    delta, low, high = (float("nan"),) * 3
    if a is not None and b is not None and len(a):
        delta, low, high = clustered_mean(a - b, blocks, level)
    return {"measure": measure, **_three(a, b, teacher), "delta": delta, "low": low, "high": high}


def _three(a: Column, b: Column, teacher: Column) -> dict[str, float]:
    named = {"a": a, "b": b, "teacher": teacher}
    return {name: float(v.mean()) if v is not None and len(v) else float("nan") for name, v in named.items()}


def _calibration(left: pd.DataFrame, right: pd.DataFrame) -> dict[str, Any]:
    """The calibration error is no mean over tokens: no interval; nothing of the teacher's is stored."""
    a, b = (calibration_error(one.top1_prob.to_numpy(), one.top1_correct.to_numpy()) for one in (left, right))
    missing = float("nan")
    return {
        "measure": "calibration error",
        "a": a,
        "b": b,
        "teacher": missing,
        "delta": a - b,
        "low": missing,
        "high": missing,
    }


def clustered_mean(values: np.ndarray, blocks: np.ndarray, level: float) -> tuple[float, float, float]:
    """Return the mean over tokens and its t interval, which counts blocks of text, not tokens, as independent.

    The variance is that of a ratio of sums over blocks, R / (R − 1) · Σ_r (S_r − n_r · mean)² / N², R blocks: the
    cluster-robust one of a regression on a constant.
    """
    mean = float(values.mean())
    _, index = np.unique(blocks, return_inverse=True)
    sums = np.bincount(index, weights=values - mean)
    if len(sums) < 2:
        return mean, float("nan"), float("nan")
    error = np.sqrt(len(sums) / (len(sums) - 1) * float((sums**2).sum())) / len(values)
    half = float(special.stdtrit(len(sums) - 1, (1 + level) / 2) * error)
    return mean, mean - half, mean + half


def _apart(left: pd.DataFrame, right: pd.DataFrame, teacher: pd.DataFrame | None, most: int) -> pd.DataFrame:
    """The tokens that lie furthest apart, each word once: else ten times `The` would push all others out."""
    a, b = left.log_prob.to_numpy(float), right.log_prob.to_numpy(float)
    furthest = np.argsort(-np.abs(a - b), kind="stable")[: FURTHEST * most]
    target = left.target.to_numpy()[furthest]
    _, first, index, times = np.unique(target, return_index=True, return_inverse=True, return_counts=True)
    kept = np.sort(first)[:most]
    chosen = furthest[kept]
    unc = np.nan if teacher is None else -np.expm1(teacher.teacher_log_prob.to_numpy(float)[chosen])
    found = left[list(PLACE)].iloc[chosen].reset_index(drop=True)
    return found.assign(a=a[chosen], b=b[chosen], unc=unc, alike=times[index[kept]])
