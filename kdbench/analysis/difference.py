"""Two checkpoints side by side: what was asked of each, what each scored, which items and tokens they part on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdbench.analysis import stats, token_pair
from kdbench.analysis.examined import Checkpoint, find
from kdbench.analysis.spelling import Speller
from kdbench.analysis.token_pair import TokenPair
from kdbench.analysis.words import p_text, plain
from kdbench.errors import ConfigError, StoreError, did_you_mean
from kdbench.files import read_text
from kdbench.run import orchestrate, plans
from kdbench.run.store import Store

ALL, ALPHA, LONG = "all items", 0.05, 16
WRITTEN = {"rollout/length": "tokens a continuation", "rollout/eos_rate": "share ended by EOS"}
BINARY = "acc"
LESS_IS_BETTER = "word_nll"
ANOTHER_SEED = "another seed makes other checkpoints; about the objectives, ask `kdbench compare`"


@dataclass(frozen=True)
class Difference:
    """How two checkpoints differ.

    Attributes:
        names: how the two are called: by that in which they differ.
        inputs: what was asked of each and differs: `input`, `a`, `b`.
        scores: a row a task, and `all items` over those scored 0 or 1: `task`, `metric`, `a`, `b`, `n_items` shared,
            `a_only` and `b_only` (items on which it does better), `p`, `p_adjusted` (Holm over tasks), `method`.
        items: those that one gets and the other misses: `task`, `item`, `by` (`a` or `b`), and their text.
        tokens: the comparison token by token; None where there is none.
        apart: the tokens on which they differ most, with the words around: `before`, `token`, `after`, `a`, `b`, `unc`.
        written: what the last step of the training generated; empty for training on fixed text.
    """

    cells: tuple[Checkpoint, Checkpoint]
    names: tuple[str, str]
    inputs: list[dict[str, str]]
    scores: pd.DataFrame
    items: list[dict[str, Any]]
    tokens: TokenPair | None
    apart: list[dict[str, Any]]
    written: dict[str, tuple[float | None, float | None]]
    notes: list[str] = field(default_factory=list)

    @property
    def sentence(self) -> str:
        """The answer in words."""
        return _sentence(self)

    def as_json(self) -> dict[str, Any]:
        """Return plain data; None for what is not known."""
        tokens: dict[str, Any] | None = None
        if self.tokens is not None:
            told = self.tokens
            tokens = {"n_tokens": told.n_tokens, "table": _records(told.table), "teacher": told.teacher}
            tokens |= {"thirds": told.thirds, "shares": told.shares, "apart": [_row(row) for row in self.apart]}
        cells = [
            {"key": cell.key, "suite": cell.suite, **cell.named, "metrics": cell.metrics, "name": name}
            for cell, name in zip(self.cells, self.names, strict=True)
        ]
        return {
            "cells": cells, "inputs": self.inputs, "scores": _records(self.scores), "items": self.items,
            "tokens": tokens, "written": self.written, "notes": self.notes, "sentence": self.sentence,
        }  # fmt: skip


def difference(store: Store, first: str, second: str, *, task: str | None = None, items: int = 5) -> Difference:
    """Compare two examined cells, from the store alone.

    Args:
        first, second: cells, as `examined.find` takes them.
        task: this task alone; None: all.
        items: how many to show that one gets and the other misses, each way.

    Raises:
        ConfigError: no such cell or task, twice the same cell, or cells of different protocols.
        StoreError: files are damaged.
    """
    a, b = find(store, first), find(store, second)
    if a.key == b.key:
        raise ConfigError(f"expected two different cells, found {a.title} ({a.key[:8]}) twice")
    if not plans.comparable(a.inputs, b.inputs):
        told = [f"{one.title} of protocol {one.inputs['protocol']}" for one in (a, b)]
        raise ConfigError(f"expected two cells of one protocol, found {told[0]} and {told[1]}; they do not compare")
    names, notes = call(a, b), []
    joined = _join(a, b, task)
    scores = _scores(a, b, task, joined)
    if joined.empty:
        notes.append("no item is shared: the two were examined on different items, so scores are not paired")
    speller = Speller(store, *a.text)
    found = token_pair.pair(a, b, names)
    tokens = None if isinstance(found, str) else found
    notes += [found] if isinstance(found, str) else found.notes
    apart = [] if tokens is None else [row | speller.around(row) for row in tokens.apart.to_dict("records")]
    notes += speller.notes
    shown, said = _shown(store, a, joined, items)
    return Difference(
        (a, b), names, inputs(a, b), scores, shown, tokens, apart, _written(a, b), [*notes, *said, ANOTHER_SEED]
    )  # fmt: skip


def call(a: Checkpoint, b: Checkpoint) -> tuple[str, str]:
    """Name two cells by that in which they differ, `atkd` and `kl`, `seed 0` and `seed 1`; if that is long, A and B."""
    differing = [name for name in ("arm", "student", "teacher", "seed") if a.named[name] != b.named[name]]
    if "arm" in differing:  # what only one of them has goes with its arm
        differing = [name for name in differing if None not in (a.named[name], b.named[name])]
    if not differing:
        return f"{a.named['arm']} {a.key[:8]}", f"{b.named['arm']} {b.key[:8]}"

    def name(cell: Checkpoint) -> str:
        parts = [(f"seed {cell.named[part]}" if part == "seed" else cell.named[part]) for part in differing]
        return " ".join(map(str, parts))

    names = name(a), name(b)
    return names if max(map(len, names)) <= LONG else ("A", "B")


def inputs(a: Checkpoint, b: Checkpoint) -> list[dict[str, str]]:
    """Return what was asked of the two and differs, with both values; of two different objectives only which."""
    names = orchestrate.differences(a.inputs, b.inputs)
    if {"objective", "objective.name"} & set(names):
        names = ["objective", *(name for name in names if name != "arm" and not name.startswith("objective"))]
    return [{"input": name, "a": _value(a, name), "b": _value(b, name)} for name in names]


def _value(cell: Checkpoint, name: str) -> str:
    if name in ("student", "teacher") and cell.inputs.get(name):
        return f"{cell.named[name]} ({cell.inputs[name][:8]})"
    if name == "objective":
        return str(cell.named["arm"])
    value: Any = cell.inputs
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        return "–"
    if isinstance(value, dict):
        value = ", ".join(f"{key} {one}" for key, one in value.items() if one is not None)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) >= 20 and all(sign in "0123456789abcdef" for sign in text):
        return text[:8]
    return text if len(text) <= 2 * LONG else text[: 2 * LONG - 1] + "…"


def _join(a: Checkpoint, b: Checkpoint, task: str | None) -> pd.DataFrame:
    """Return the items that both were asked, with both scores."""
    known = sorted({*a.items.task, *b.items.task})
    if task is not None and task not in known:
        raise ConfigError(f"--task {task}: expected a task of these cells.{did_you_mean(task, known)}")
    on = ["task", "metric", "item_hash"]
    frames = [cell.items if task is None else cell.items[cell.items.task == task] for cell in (a, b)]
    if a.inputs["tasks"] == b.inputs["tasks"]:
        return frames[0].merge(frames[1], on=[*on, "item"], suffixes=("_a", "_b")).assign(item_a=lambda f: f["item"])
    frames = [frame.drop_duplicates(on) for frame in frames]
    return frames[0].merge(frames[1], on=on, suffixes=("_a", "_b"))


def _scores(a: Checkpoint, b: Checkpoint, task: str | None, joined: pd.DataFrame) -> pd.DataFrame:
    rng, rows = np.random.default_rng(0), []
    metrics = dict(pd.concat([a.items, b.items]).groupby("task", sort=False).metric.first())
    for name, metric in metrics.items():
        if task in (None, name):
            means = [cell.items[cell.items.task == name].score.mean() for cell in (a, b)]
            rows.append(_score(name, metric, *means, joined[joined.task == name], rng))
    p = np.array([row["p"] for row in rows], dtype=float)
    for row, value in zip(rows, stats.adjust(p, "holm"), strict=True):
        row["p_adjusted"] = float(value)
    binary = joined[joined.metric == BINARY]
    if binary.task.nunique() > 1:
        whole = _score(ALL, BINARY, binary.score_a.mean(), binary.score_b.mean(), binary, rng)
        rows.append(whole | {"p_adjusted": whole["p"]})
    return pd.DataFrame(rows)


def _score(task: str, metric: str, a: float, b: float, items: pd.DataFrame, rng: np.random.Generator) -> dict[str, Any]:
    """One task: exact McNemar for scores of 0 and 1, random signs over items for graded ones."""
    gain = (items.score_a - items.score_b).to_numpy(float) * (-1 if metric == LESS_IS_BETTER else 1)
    binary = metric != LESS_IS_BETTER and set(gain) <= {-1.0, 0.0, 1.0}
    better, worse = int((gain > 0).sum()), int((gain < 0).sum())
    row = {"task": task, "metric": metric, "a": float(a), "b": float(b), "n_items": len(items)}
    row |= {"a_only": better, "b_only": worse, "p": math.nan, "method": ""}
    if len(gain):
        row["p"] = stats.mcnemar(better, worse) if binary else stats.sign_flip(gain, rng)
        row["method"] = "exact McNemar" if binary else "paired permutation over items"
    return row


def _shown(store: Store, a: Checkpoint, joined: pd.DataFrame, most: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the first items that one gets and the other misses, with their text: items stand in random order."""
    entry = store.entry("tasks", a.inputs["tasks"])
    names = {str(task): f"{task}.jsonl" for task in joined.task.unique()}
    kept = {task: name for task, name in names.items() if (entry.path / name).exists()}  # not those of lm-eval's tasks
    binary = joined[joined.task.isin(kept) & (joined.metric == BINARY) & (joined.score_a != joined.score_b)]
    binary = binary.sort_values(["item_a", "task"])
    found: list[dict[str, Any]] = []
    if binary.empty:
        return found, []
    try:
        entry.verified(*kept.values())
    except StoreError as error:
        return [], [f"the text of the items is not shown: {error}"]
    for by, gets in (("a", binary.score_a > binary.score_b), ("b", binary.score_a < binary.score_b)):
        for row in binary[gets].head(most).to_dict("records"):
            text = _text(entry.path / kept[row["task"]], int(row["item_a"]))
            if text is None:
                return [], [f"the text of the items is not shown: {entry.path} holds others"]
            found.append({"task": row["task"], "item": int(row["item_a"]), "by": by, **text})
    return found, []


def _text(path: Path, number: int) -> dict[str, str] | None:
    try:
        row = json.loads(read_text(path).splitlines()[number])
        if "choices" in row:
            right = row["label"]
            return {"context": row["context"], "right": row["choices"][right], "wrong": row["choices"][1 - right]}
        return {"context": row["context"], "right": row["target"].strip(), "wrong": ""}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _written(a: Checkpoint, b: Checkpoint) -> dict[str, tuple[float | None, float | None]]:
    """What students wrote while they trained; free continuations of the finished students are not stored."""
    found = {text: (a.last_step.get(name), b.last_step.get(name)) for name, text in WRITTEN.items()}
    return {name: values for name, values in found.items() if values != (None, None)}


def _sentence(found: Difference) -> str:
    a, b = found.names
    parts = []
    whole = found.scores[(found.scores.metric == BINARY) & (found.scores.n_items > 0)].tail(1)
    for row in whole.to_dict("records"):
        p = p_text(row["p"])
        verdict = "differ" if row["p"] < ALPHA else "cannot be told apart"
        parts.append(
            f"of {row['n_items']:,} items {a} gets {row['a_only']} that {b} misses and misses {row['b_only']} that {b} "
            f"gets, so these two checkpoints {verdict} (exact McNemar, p {p if p.startswith('<') else '= ' + p})"
        )
    if found.tokens is not None:
        row = found.tokens.table.iloc[0]
        better, gap = (a if row.delta < 0 else b), f"{abs(row.delta):.3f} nats a token"
        unclear = "" if row.low > 0 or row.high < 0 else ", which other text could turn round"
        parts.append(f"on {found.tokens.n_tokens:,} held-out tokens {better} is better by {gap}{unclear}")
    text = "; ".join(parts) or f"nothing of {a} and {b} can be compared item by item or token by token"
    return f"{text[0].upper()}{text[1:]}."


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [_row(row) for row in frame.to_dict("records")]


def _row(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): plain(value) for name, value in row.items()}
