"""A job in hand: what a maker is given, and how it talks to whoever watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kdbench.distill import models
from kdbench.errors import Interrupted
from kdbench.run.clock import Clock
from kdbench.run.store import Entry, Store


@dataclass(frozen=True)
class Hooks:
    """How a maker talks to whoever watches: events out, a stop code in (0: go on)."""

    emit: Callable[[dict[str, Any]], None] = lambda event: None
    should_stop: Callable[[], int] = lambda: 0

    def stage(self, name: str) -> None:
        """Say what is being done now; stop here if asked to."""
        self.emit({"event": "stage", "stage": name})
        if code := self.should_stop():
            raise Interrupted(f"stopped before: {name}", code)

    def shard(self, done: int, count: int) -> None:
        """Say how many shards are made; stop here if asked to."""
        self.emit({"event": "progress", "done": done, "total": count})
        if code := self.should_stop():
            raise Interrupted(f"stopped after shard {done}", code)


@dataclass(frozen=True)
class Work:
    """One job in hand."""

    store: Store
    entry: Entry
    inputs: dict[str, Any]
    context: dict[str, Any]
    hooks: Hooks
    clock: Clock

    def find(self, kind: str, key: str) -> Entry:
        """Return another entry, such as the text this job reads."""
        return self.store.entry(kind, key)

    @property
    def training(self) -> dict[str, Any]:
        """How the job trains a model: a cell's student, or a model of the suite; empty where it trains none."""
        return next((self.inputs[name] for name in ("train", "pretrain", "finetune") if name in self.inputs), {})

    @property
    def runtime(self) -> models.Runtime:
        """Device, precision, threads."""
        return models.Runtime(self.inputs["device"], self.inputs["precision"], self.inputs["threads"])
