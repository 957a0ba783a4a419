"""TRL's trainers on text that is tokenised already: the best case for them, since their collators cost nothing then.

`gkd` is the GKDTrainer with lmbda = 0. `iw_opd` is, in TRL 1.16, the only distillation trainer that can learn from a
corpus (distillation_objective="jsd", lmbda = 0): DistillationTrainer itself learns from the student's text alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import SequentialSampler

if TYPE_CHECKING:
    from torch import nn

    from kdbench.distill.data import Blocks


@dataclass
class Run:
    """What a training did.

    losses: of every step; ends: when each step ended.
    """

    losses: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def step_seconds(self, warm: int) -> list[float]:
        """Return the seconds of each step after the first `warm`."""
        return [b - a for a, b in zip(self.ends[warm - 1 :], self.ends[warm:], strict=False)]


@dataclass(frozen=True)
class Task:
    """What is trained, as both sides are told: `order` lists the rows of the text, batch after batch."""

    student: nn.Module
    teacher: nn.Module
    tokenizer: Any
    blocks: Blocks
    order: list[int]
    batch_rows: int
    lr: float
    beta: float
    folder: Path


def train(kind: str, task: Task, schedule: str = "constant", warmup: float = 0.0) -> Run:
    """Train by one of TRL's trainers; batches, optimiser settings and clipping are kdbench's."""
    found = Run()
    trainer_class, config_class, extra = _classes(kind)
    config = config_class(**_settings(task, schedule, warmup), **extra)

    class Watched(trainer_class):  # type: ignore[misc, valid-type]
        """The trainer, with the rows in the given order, and with its losses noted."""

        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

        def compute_loss(self, *given: Any, **named: Any) -> Any:
            loss = super().compute_loss(*given, **named)
            found.losses.append(float(loss.detach()))
            return loss

    trainer = Watched(
        model=task.student,
        teacher_model=task.teacher,
        args=config,
        train_dataset=_dataset(task),
        data_collator=_collate,
        processing_class=task.tokenizer,
        callbacks=[_clock(found)],
    )
    trainer.train()
    return found


def _settings(task: Task, schedule: str, warmup: float) -> dict[str, Any]:
    steps = len(task.order) // task.batch_rows
    return {
        "output_dir": str(task.folder),
        "per_device_train_batch_size": task.batch_rows,
        "gradient_accumulation_steps": 1,
        "max_steps": steps,
        "learning_rate": task.lr,
        "lr_scheduler_type": schedule,
        "warmup_steps": round(warmup * steps),
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "lmbda": 0.0,
        "beta": task.beta,
        "temperature": 1.0,
        "max_length": task.blocks.length,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,  # their default; it would make every step dearer
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
    }


def _classes(kind: str) -> tuple[Any, Any, dict[str, Any]]:
    if kind == "gkd":
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        return GKDTrainer, GKDConfig, {}
    from trl.experimental.iw_opd import IWOPDConfig, IWOPDTrainer

    extra = {"distillation_objective": "jsd", "loss_top_k": 0, "max_completion_length": 8}
    return IWOPDTrainer, IWOPDConfig, extra


def _dataset(task: Task) -> Any:
    from datasets import Dataset

    rows = task.blocks.select(torch.tensor(task.order))
    return Dataset.from_dict({"input_ids": rows.ids.tolist(), "valid": rows.mask.tolist()}).with_format("torch")


def _collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The names that both trainers ask for; no row is padded, so every position is attended to."""
    ids = torch.stack([row["input_ids"] for row in rows]).long()
    labels = ids.masked_fill(~torch.stack([row["valid"] for row in rows]).bool(), -100)
    ones = torch.ones_like(ids)
    first = {"prompts": ids[:, :1], "prompt_attention_mask": ones[:, :1]}
    return {"input_ids": ids, "attention_mask": ones, "labels": labels, **first}


def _clock(found: Run) -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Notes when steps end."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            found.ends.append(time.perf_counter())

    return Clock()
