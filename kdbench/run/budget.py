"""What a suite would take on a named accelerator: from the suite file alone, without weights, text or that device.

Every number is arithmetic on the models' configs and the assumptions of `suite/devices.py`, which are printed with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.distill import models
from kdbench.registry import objective
from kdbench.run.configs import Known
from kdbench.suite import cost, footprint
from kdbench.suite.devices import BANDWIDTH_UTILISATION, LAYER_S, RESERVED_BYTES, TF32_COST, UTILISATION, Device
from kdbench.suite.footprint import Size
from kdbench.suite.materials import Pretrain
from kdbench.suite.matrix import Cell, cells
from kdbench.suite.schema import Suite, Train
from kdbench.suite.serving import reads_cache


@dataclass(frozen=True)
class Spent:
    """Seconds on the device and operations of a part of the suite."""

    seconds: float = 0.0
    flop: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.flop + other.flop)


def size_of(config: Any) -> Size:
    """Return a model's numbers from its config, by making it without weights."""
    from torch import nn

    model = models.without_weights(config)
    total = sum(one.numel() for one in model.parameters())
    looked_up = {id(one.weight): one.weight.numel() for one in model.modules() if isinstance(one, nn.Embedding)}
    looked_up.pop(id(model.get_output_embeddings().weight), None)  # a tied head is looked up and multiplied with
    width = config.hidden_size
    return Size(total, total - sum(looked_up.values()), config.num_hidden_layers, width, models.hidden_size(config))


class Budget:
    """The arithmetic for one suite on one device."""

    def __init__(self, suite: Suite, base: Path, device: Device):
        self.suite, self.device, self.told = suite, device, suite.teacher
        known = Known(suite, base)
        self.vocabulary = known.vocabulary
        self.sizes = {name: size_of(config) for name, config in known.configs().items()}
        self.bf16 = suite.precision != "float32"
        self.length = suite.data.length

    def of(self) -> dict[str, Any]:
        """Return everything as plain data: models, stages before the cells, pairs with their cells, totals."""
        pairs, stages = self._pairs(), self._stages()
        hours = sum(row["gpu_hours"] for row in (*pairs, *stages))
        return {
            "suite": self.suite.name,
            "device": {
                "name": self.device.name, "peak_flops": self.device.flops, "bytes": self.device.memory,
                "source": self.device.source,
            },
            "assumed": {
                "utilisation": UTILISATION, "bandwidth_utilisation": BANDWIDTH_UTILISATION, "layer_s": LAYER_S,
                "reserved_bytes": RESERVED_BYTES,
            },
            "not_counted": [entry.task for entry in self.suite.examine.lm_eval],
            "models": [{"name": name, "parameters": size.parameters} for name, size in self.sizes.items()],
            "stages": stages,
            "pairs": pairs,
            "cells": sum(row["cells"] for row in pairs),
            "gpu_hours": hours,
            "flop": sum(row["flop"] for row in (*pairs, *stages)),
            "cache_bytes": sum(row["cache_bytes"] for row in stages),
        }  # fmt: skip

    # --- cells --------------------------------------------------------------------------------------------------------

    def _pairs(self) -> list[dict[str, Any]]:
        found: dict[tuple[str | None, str | None], list[Cell]] = {}
        for cell in cells(self.suite):
            found.setdefault((cell.student, cell.teacher), []).append(cell)
        return [self._pair(student, teacher, some) for (student, teacher), some in found.items()]

    def _pair(self, student: str | None, teacher: str | None, some: list[Cell]) -> dict[str, Any]:
        work = sum((self._cell(cell) for cell in some), Spent())
        row = {
            "student": student, "teacher": teacher, "cells": len(some), "gpu_hours": work.seconds / 3600,
            "flop": work.flop,
        }  # fmt: skip
        trained = [cell for cell in some if cell.spec is not None]
        if student is None or not trained:
            return row | (self._alone(4 * self.sizes[student].parameters) if student else self._taught_by(teacher))
        train = self._train(trained[0])
        rows, together = self._rows(train), train.fsdp or 1
        guide = self.sizes[teacher] if teacher else None
        size = footprint.learning(
            self.sizes[student], guide, rows, self.length, self.vocabulary, self.bf16, self.told.quantize, together,
            train.lora.r if train.lora else 0, train.gradient_checkpointing,
        )  # fmt: skip
        return row | self._fit(size, rows)

    def _alone(self, size: int) -> dict[str, Any]:
        return self._fit(footprint.Footprint(size, 0, 0, 0, 0), 1)

    def _taught_by(self, name: str | None) -> dict[str, Any]:
        """Return the memory of a teacher with no student beside it."""
        size = footprint.frozen(self.sizes[str(name)], self.vocabulary, self.told.quantize)
        return self._fit(footprint.Footprint(0, 0, 0, size, 0), 1)

    def _fit(self, size: footprint.Footprint, rows: int) -> dict[str, Any]:
        parts = {name: int(getattr(size, name)) for name in size.__dataclass_fields__}
        possible = footprint.rows_that_fit(size, rows, self.device.usable, self.told.placement == "auto")
        return {"bytes": size.total, "parts": parts, "micro_batch": rows, "micro_batch_that_fits": possible}

    def _train(self, cell: Cell) -> Train:
        return Train.model_validate(self.suite.train.model_dump() | dict(cell.settings))

    def _rows(self, told: Train | Pretrain) -> int:
        mine = -(-(told.batch_tokens // self.length) // (getattr(told, "fsdp", None) or 1))
        return min(getattr(told, "micro_batch", None) or mine, mine)

    def _cell(self, cell: Cell) -> Spent:
        subject = self.sizes[str(cell.student or cell.teacher)]
        examined = self.suite.examine.items * len(self.suite.examine.tasks) * cost.ITEM_TOKENS
        work = self._compute(subject.forward_flop(cost.ITEM_TOKENS) * examined)
        judged = [subject] + ([self.sizes[cell.teacher]] if cell.spec and cell.teacher else [])
        tokens = self.suite.examine.intrinsic_tokens
        work += sum((self._compute(one.forward_flop(self.length) * tokens) for one in judged), Spent())
        return work if cell.spec is None else work + self._training(cell, subject)

    def _training(self, cell: Cell, student: Size) -> Spent:
        chosen, train, guide = objective(cell.spec or {}), self._train(cell), self.sizes.get(str(cell.teacher))
        read = train.steps * (train.batch_tokens // self.length) * self.length
        flop = student.learning_flop(self.length) * read
        wanted, work = chosen.trajectories, Spent()
        written = 0.0 if wanted.rollout is None else (0.5 if wanted.paired else wanted.chance)
        heads = 6.0 * student.hidden * self.vocabulary * read
        if guide:
            cached = reads_cache(chosen) and self.suite.teacher.signal == "cache"
            flop += 2.0 * guide.hidden * self.vocabulary * read
            heads += 2.0 * guide.hidden * self.vocabulary * read
            flop += guide.forward_flop(self.length) * read * (written if cached else 1.0)
        if wanted.rollout is not None:
            share = written * wanted.fresh / wanted.reuse
            writers = [student] + ([guide] if guide and wanted.rollout.by in ("mixed", "interleaved") else [])
            work += self._writing(writers, train, train.steps * share)
        slower = heads * (TF32_COST - 1) if self.bf16 else 0.0
        return work + self._compute(flop) + Spent(self.device.compute_s(slower))

    def _compute(self, flop: float) -> Spent:
        return Spent(self.device.compute_s(flop), flop)

    def _writing(self, writers: Iterable[Size], train: Train, batches: float) -> Spent:
        """Text of whole batches, each row to its end: a step of all rows at once for every new token."""
        _, new = self.suite.written_tokens
        rows, work = train.batch_tokens // self.length, Spent()
        for one in writers:
            flop = one.forward_flop(self.length) * new * rows * batches
            work += Spent(self.device.writing_s(new * batches, 4.0 * one.parameters, one.layers, flop), flop)
        return work

    # --- what is made before the cells --------------------------------------------------------------------------------

    def _stages(self) -> list[dict[str, Any]]:
        found = [self._taught(name, training) for name in self.sizes for training in self.suite.models[name].trainings]
        chosen = [objective(entry["spec"]) for entry in self.suite.objectives]
        tokens = self.suite.data.tokens or self.suite.train.steps * self.suite.train.batch_tokens
        if self.suite.teacher.signal == "cache" and any(reads_cache(one) for one in chosen):
            found += [self._cached(name, tokens) for name in self.suite.teachers]
        drawn = {str(one.trajectories.decoding): one for one in chosen if one.trajectories.fixed == "teacher"}
        drawn = {key: one for key, one in drawn.items() if one.trajectories.reads_fixed}
        return found + [self._wrote(name, tokens) for name in self.suite.teachers for _ in drawn]

    def _taught(self, name: str, told: Pretrain) -> dict[str, Any]:
        work, one = self._compute(self.sizes[name].learning_flop(self.length) * told.tokens), self.sizes[name]
        rows, together = self._rows(told), getattr(told, "fsdp", None) or 1
        size = footprint.learning(one, None, rows, self.length, self.vocabulary, self.bf16, processes=together)
        return self._stage("training", name, work) | self._fit(size, rows)

    def _cached(self, name: str, tokens: int) -> dict[str, Any]:
        size, told = self.sizes[name], self.suite.teacher
        auto = ("bfloat16" if self.bf16 else "float32") if told.layout == "hidden" else "float16"
        kept = 0 if told.layout == "hidden" else told.k
        dtype = auto if told.dtype == "auto" else told.dtype
        priced = cost.caching(size.parameters, tokens, size.hidden, dtype, told.layout, kept)
        row = self._stage("cache", name, self._compute(size.forward_flop(self.length) * tokens))
        return row | {"cache_bytes": priced.cache_bytes} | self._taught_by(name)

    def _wrote(self, name: str, tokens: int) -> dict[str, Any]:
        size, train = self.sizes[name], self.suite.train
        batches = tokens / (train.batch_tokens // self.length * self.length)
        row = self._stage("text", name, self._writing([size], train, batches))
        return row | self._taught_by(name)

    def _stage(self, what: str, name: str, work: Spent) -> dict[str, Any]:
        return {"stage": what, "model": name, "gpu_hours": work.seconds / 3600, "flop": work.flop, "cache_bytes": 0}
