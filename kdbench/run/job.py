"""One entry of the store to be made, and its key.

A key is a sha256 over everything that decides a result; paths and names stay out of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from kdbench.files import digest
from kdbench.suite.matrix import Cell

KEY_LENGTH = 20


@dataclass(frozen=True)
class Job:
    """One entry of the store to be made.

    Attributes:
        inputs: what the key is made of.
        needs: ids of the jobs that must be complete before.
        context: what the maker must know beside (paths, names); not part of the key.
        cost: rough FLOP, by which the slowest starts first.
    """

    kind: str
    title: str
    inputs: dict[str, Any]
    needs: tuple[str, ...] = ()
    context: dict[str, Any] = field(default_factory=dict)
    cell: Cell | None = None
    cost: float = 0.0

    @cached_property
    def key(self) -> str:
        """The content key."""
        return digest(self.inputs)[:KEY_LENGTH]

    @property
    def id(self) -> str:
        """kind/key."""
        return f"{self.kind}/{self.key}"

    @property
    def processes(self) -> int:
        """How many processes, each with a device of its own, train in it together; 0 where one does it all."""
        return next(
            (told["fsdp"] for name in ("train", "finetune") if "fsdp" in (told := self.inputs.get(name, {}))), 0
        )

    def message(self) -> dict[str, Any]:
        """What a worker process is told."""
        known = {"kind": self.kind, "key": self.key, "title": self.title, "inputs": self.inputs}
        return known | {"needs": list(self.needs), "context": self.context}
