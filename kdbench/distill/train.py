"""One student learns: a plain loop over batches addressed by their step. Knows nothing of the store or of MLflow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.api import Objective, Tokens
from kdbench.distill import checkpoint
from kdbench.distill.data import Blocks, batch_rows
from kdbench.distill.loss import StepWeights, TeacherStates, fused_loss, step_weights
from kdbench.distill.models import body, head
from kdbench.distill.teacher import Signal, Teacher
from kdbench.errors import Diverged, Interrupted
from kdbench.seeding import derive


@dataclass(frozen=True)
class Plan:
    """How to train: the suite's `train:` or a model's `pretrain:`, with what it is applied to."""

    steps: int
    batch_rows: int
    lr: float
    warmup: float = 0.05
    schedule: str = "cosine"
    weight_decay: float = 0.0
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    micro_batch: int | None = None
    dropout: bool = False
    checkpoint_steps: int = 50


@dataclass(frozen=True)
class Batch:
    """The global batch of one optimiser step: ids `[B, T]`, mask of valid targets `[B, T-1]`, the teacher's signal."""

    ids: Tensor
    mask: Tensor
    signal: Signal | None

    def tokens(self) -> Tokens:
        """Return what weights may know of all valid tokens."""
        row = torch.arange(self.mask.shape[0], device=self.mask.device)[:, None].expand(self.mask.shape)
        known = (
            {}
            if self.signal is None
            else {
                "log_prob_target": self.signal.log_prob_target,
                "teacher_entropy": self.signal.entropy,
            }
        )
        return Tokens(sequence=row[self.mask], **known)


def learning_rate(plan: Plan, step: int) -> float:
    """Return the rate of a 0-based step: linear warm-up, then the schedule down to 0 after the last step."""
    warm = max(1, round(plan.warmup * plan.steps))
    if step < warm:
        return plan.lr * (step + 1) / warm
    done = (step - warm) / max(1, plan.steps - warm)
    return (
        plan.lr * {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[plan.schedule]
    )


def train(
    model: nn.Module,
    objective: Objective,
    blocks: Blocks,
    teacher: Teacher | None,
    plan: Plan,
    *,
    seed: int,
    vocabulary: int,
    precision: str,
    folder: Path,
    on_step: Callable[[dict[str, Any]], None] = lambda record: None,
    should_stop: Callable[[], int] = lambda: 0,
) -> list[dict[str, Any]]:
    """Train `model` in place and return the history, a record a step.

    Args:
        blocks: the text; `teacher` knows the same rows.
        vocabulary: the tokenizer's size; both heads are cut to it.
        folder: for checkpoints; training goes on from the newest whole one.
        should_stop: asked after each step; a non-zero exit code saves and raises Interrupted.

    Raises:
        Diverged: when loss or gradient is not finite; the step is not applied.
        Interrupted: after saving.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.lr, betas=plan.betas, weight_decay=plan.weight_decay)
    state = checkpoint.load(folder)
    if state.step:
        checkpoint.unpack(state.tensors, model, optimizer)
    model.train(plan.dropout)
    for step in range(state.step, plan.steps):
        rows = batch_rows(seed, step, len(blocks), plan.batch_rows)
        batch = _batch(blocks, rows, teacher if objective.needs_teacher else None, model)
        record = _step(model, objective, batch, optimizer, plan, step, vocabulary, precision, state.history, seed)
        state.history.append(record)
        on_step(record)
        code = should_stop()
        if code or (step + 1) % plan.checkpoint_steps == 0 or step + 1 == plan.steps:
            state.step, state.tensors = step + 1, checkpoint.pack(model, optimizer)
            checkpoint.save(folder, state)
        if code:
            raise Interrupted(f"stopped after step {step + 1}; saved", code)
    model.eval()
    return state.history


def _batch(blocks: Blocks, rows: Tensor, teacher: Teacher | None, model: nn.Module) -> Batch:
    device = next(model.parameters()).device
    chosen = blocks.select(rows)
    signal = None if teacher is None else teacher.signal(rows)
    return Batch(chosen.ids.long().to(device), chosen.mask[:, 1:].to(device), signal)


def _step(model, objective, batch, optimizer, plan, step, vocabulary, precision, history, seed) -> dict[str, Any]:
    rate = learning_rate(plan, step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    with _stream(plan.dropout, seed, step):
        total, terms = backward(model, objective, batch, plan.micro_batch, vocabulary, precision)
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), plan.clip))
    if not (math.isfinite(total) and math.isfinite(norm)):
        what = f"loss {total}" if not math.isfinite(total) else f"gradient norm {norm}"
        raise Diverged(step, f"{what} is not finite", history[-1]["loss"] if history else None)
    optimizer.step()
    return {
        "step": step + 1,
        "loss": total,
        **{f"loss/{k}": v for k, v in terms.items()},
        "grad_norm": norm,
        "lr": rate,
    }


def _stream(dropout: bool, seed: int, step: int):
    """Dropout draws from the global RNG; give it a stream of its own for each step."""
    from contextlib import nullcontext

    from kdbench.seeding import fenced

    return fenced(derive(seed, "dropout", step), "step") if dropout else nullcontext()


def backward(
    model: nn.Module, objective: Objective, batch: Batch, micro_batch: int | None, vocabulary: int, precision: str
) -> tuple[float, dict[str, float]]:
    """Accumulate the gradient of one global batch, `micro_batch` rows at a time; return loss and terms.

    Weights are made once, over the whole batch, so the split changes nothing but the order of additions.
    """
    tokens = batch.tokens()
    if not len(tokens):
        return 0.0, {}
    weights = step_weights(objective, tokens)
    total, terms, start = 0.0, {}, 0
    size = micro_batch or batch.ids.shape[0]
    for begin in range(0, batch.ids.shape[0], size):
        rows = slice(begin, begin + size)
        parts = _micro_loss(model, objective, batch, rows, weights, start, vocabulary, precision)
        parts.total.backward()
        start += parts.tokens
        total += float(parts.total.detach())
        for name, value in parts.terms.items():
            terms[name] = terms.get(name, 0.0) + float(value)
    return total, terms


def _micro_loss(model, objective, batch: Batch, rows: slice, weights: StepWeights, start: int, vocabulary, precision):
    mask = batch.mask[rows]
    hidden = body(model, batch.ids[rows, :-1], precision)[mask]
    target = batch.ids[rows, 1:][mask]
    states = None
    if batch.signal is not None:
        taught = batch.signal.states
        states = TeacherStates(taught.hidden[start : start + len(target)], taught.head)
    return fused_loss(objective, hidden, head(model, vocabulary), states, target, weights, start)
