"""Examine one model folder by a suite's tasks, beside its floor and ceiling; the suite's plan is left alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.errors import ConfigError, KdbenchError, StoreError
from kdbench.files import read_json
from kdbench.registry import user_folders
from kdbench.run.agenda import Listener
from kdbench.run.jobs import Job, Planner
from kdbench.run.orchestrate import final
from kdbench.run.store import Store
from kdbench.run.workers import Pool
from kdbench.suite.matrix import CEILING, FLOOR
from kdbench.suite.schema import Suite


@dataclass(frozen=True)
class Row:
    """What one model, or the mean of several, scored.

    Attributes:
        models: how many models the means are over.
        metrics: as stored: `<task>/acc`, `perplexity/word_perplexity`, `nats_per_token`, ….
        overall: mean accuracy over the tasks that the suite compares by.
    """

    name: str
    models: int
    metrics: dict[str, float]
    overall: float


@dataclass(frozen=True)
class Examined:
    """One model's row, and those of the untouched students and the teachers of the suite that have been examined."""

    suite: str
    key: str
    tasks: tuple[str, ...]
    row: Row
    beside: tuple[Row, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain data; scores are shares of 1."""
        rows = [{"name": row.name, "models": row.models, "overall": row.overall, **row.metrics} for row in self.beside]
        own = {"folder": self.row.name, "key": self.key, "overall": self.row.overall, **self.row.metrics}
        return {"suite": self.suite, "compare_tasks": list(self.tasks), **own, "beside": rows}


def examine(suite: Suite, base: Path, store: Store, folder: Path, listeners: Sequence[Listener] = ()) -> Examined:
    """Examine a folder as a run would examine it, with whatever that needs made in the store first.

    Args:
        base: folder to which paths in the suite are relative.
        folder: a Hugging Face folder: config.json, safetensors, the suite's tokenizer or none.

    Raises:
        ConfigError: no such folder, or one that does not fit the suite.
        KdbenchError: the examination failed.
    """
    if not folder.is_dir():
        raise ConfigError(f"expected a model folder with config.json, found none at {folder}")
    planner = Planner(suite, base)
    planner.all()
    job = planner.examination(folder.resolve())
    store.prepare()
    _make(planner, store, job, listeners)
    weights = {task: suite.compare.weights.get(task, 1.0) for task in suite.compare.tasks}
    own = _row(str(folder), [store.entry("cells", job.key).path], weights)
    return Examined(suite.name, job.key, suite.compare.tasks, own, tuple(_beside(planner, store, weights)))


def _make(planner: Planner, store: Store, job: Job, listeners: Sequence[Listener]) -> None:
    """Make the examination and what it needs, in a worker like any other, so that the numbers are those of a run."""
    done = {one.id: found for one in planner.jobs.values() if (found := final(store, one))}
    wanted: dict[str, Job] = {}

    def want(identity: str) -> None:
        if identity not in wanted and identity not in done:
            wanted[identity] = planner.jobs[identity]
            for need in planner.jobs[identity].needs:
                want(need)

    want(job.id)
    if not wanted:
        return
    outcome = Pool(store, 1, planner.suite.threads, user_folders(), listeners).run(wanted.values(), done)
    for identity, reason in outcome.failed.items():
        kind = StoreError if identity in outcome.of_the_store else KdbenchError
        raise kind(f"{planner.jobs[identity].title}: {reason}")


def _beside(planner: Planner, store: Store, weights: Mapping[str, float]) -> list[Row]:
    """Return the rows of floors (means over seeds) and ceilings whose results are in the store."""
    found: dict[str, list[Path]] = {}
    for cell, job in planner.cells:
        done = final(store, job) if cell.arm in (FLOOR, CEILING) else None
        if done and done["status"] == "ok":
            path = store.entry("cells", job.key).path
            found.setdefault(f"{cell.arm}: {cell.student or cell.teacher}", []).append(path)
    return [_row(name, paths, weights) for name, paths in found.items()]


def _row(name: str, paths: Sequence[Path], weights: Mapping[str, float]) -> Row:
    stored: list[Mapping[str, float]] = [read_json(path / "results.json") for path in paths]
    metrics = {key: statistics.fmean(one[key] for one in stored) for key in stored[0]}
    overall = statistics.fmean((score(metrics, task) for task in weights), list(weights.values()))
    return Row(name, len(stored), metrics, overall)


def score(metrics: Mapping[str, float], task: str) -> float:
    """Return by what a task is compared: its accuracy, or of an lm-eval task its primary score."""
    return metrics.get(f"{task}/score", metrics.get(f"{task}/acc", float("nan")))
