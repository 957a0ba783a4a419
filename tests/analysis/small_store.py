"""A store written cell by cell, in the format of a run, with numbers that the test chooses."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdbench.evaluate import token_scores
from kdbench.files import atomic_write, write_json
from kdbench.run.store import Store

TEXT, TASKS, CACHE = "7e87", "7a55", "cac4e"
ENVIRONMENT = {"protocol": "1", "device": "cpu"}


class SmallStore:
    """Writes cells and the suite's plan.

    Args:
        tokens: held-out tokens, in blocks of ten.
    """

    def __init__(self, root: Path, tokens: int = 60, teachers: Sequence[str] = ("big",), name: str = "made"):
        self.store, self.name, self.cells = Store(root), name, []
        self.place = {
            "row": np.arange(tokens, dtype=np.int32) // 10,
            "position": np.arange(tokens, dtype=np.int32) % 10 + 1,
            "target": np.arange(tokens, dtype=np.int32) % 7 + 2,
        }
        self.teachers = list(teachers)

    def cell(
        self, arm: str, student: str | None, teacher: str | None, seed: int | None, log_prob: Any = None,
        teacher_log_prob: Any = None, items: Mapping[str, Sequence[float]] | None = None, status: str = "ok",
        **inputs: Any,
    ) -> str:  # fmt: skip
        """Write one cell and return its key; without `log_prob` it is one from before token scores."""
        key = f"{len(self.cells):02d}{self.name.encode().hex()[:6]}ab"
        asked: dict[str, Any] = {"arm": arm if arm in ("floor", "ceiling") else "objective", "seed": seed}
        asked |= {"text": TEXT, "tasks": TASKS, "examine": {"tasks": ["swap"]}} | ENVIRONMENT
        asked |= {role: f"{name}key" for role, name in (("student", student), ("teacher", teacher)) if name}
        if asked["arm"] == "objective":
            asked |= {"objective": {"name": arm, "tau": 1.0}, "cache": CACHE if teacher else None}
        asked |= inputs
        entry = self.store.entry("cells", key)
        entry.begin(asked)
        write_json(entry.path / "results.json", {"swap/acc": 0.5})
        buffer = io.BytesIO()
        _items(items or {"swap": [1.0, 0.0]}).to_parquet(buffer, index=False)
        atomic_write(entry.path / "samples.parquet", buffer.getvalue())
        if log_prob is not None:
            atomic_write(
                entry.path / token_scores.FILE, token_scores.to_parquet(self._tokens(log_prob, teacher_log_prob))
            )
        entry.commit(status, {"wall_s": 1.0})
        named = {"arm": arm, "student": student, "teacher": teacher, "seed": seed}
        self.cells.append({"name": key, "key": key, "inputs": asked, **named})
        self.plan()
        return key

    def _tokens(self, log_prob: Any, teacher_log_prob: Any) -> dict[str, np.ndarray]:
        own = np.asarray(log_prob, dtype=np.float32)
        found = self.place | {
            "log_prob": own,
            "entropy": -own,
            "top1_prob": np.exp(own),
            "top1_correct": own > np.log(0.5),
        }
        if teacher_log_prob is not None:
            taught = np.asarray(teacher_log_prob, dtype=np.float32)
            found |= {"teacher_log_prob": taught, "teacher_entropy": -taught, "kl_to_teacher": np.abs(own - taught)}
            found |= {"top1_agreement": own == taught, "top10_overlap": np.full_like(own, 0.5)}
        return found

    def plan(self) -> None:
        """Write which cells make up the suite."""
        suite = {
            "name": self.name, "students": ["small"], "teachers": self.teachers, "seeds": [0, 1, 2],
            "compare": {"alpha": 0.05, "tasks": ["swap"]}, "arms": [],
        }  # fmt: skip
        content = {"suite": suite, "overrides": [], "environment": ENVIRONMENT, "cells": self.cells}
        write_json(self.store.suite_folder(self.name) / "plan.json", content)

    def texts(self, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Write the items' text."""
        entry = self.store.entry("tasks", TASKS)
        entry.begin({})
        for name, found in rows.items():
            atomic_write(entry.path / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in found))
        entry.commit("ok", {"wall_s": 1.0})


def _items(scores: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "task": task,
            "metric": "word_nll" if task == "perplexity" else "acc",
            "item": number,
            "score": float(score),
            "item_hash": f"{task}{number:08d}",
        }
        for task, found in scores.items()
        for number, score in enumerate(found)
    )
