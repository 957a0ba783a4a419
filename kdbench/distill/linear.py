"""The fused loss for training loops of other people: hidden states and output heads in, a differentiable loss out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kdbench.api import Dist, LossParts, Objective, Tokens
from kdbench.distill.loss import (
    EXACT,
    TeacherStates,
    chunk_size,
    fused_loss,
    fused_probe,
    head_logits,
    pieces,
    room,
    step_weights,
)
from kdbench.errors import ConfigError
from kdbench.registry import objective


def linear_loss(
    spec: str | Mapping[str, Any] | Objective,
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor | None,
    teacher_head: Tensor | None,
    targets: Tensor,
    mask: Tensor | None = None,
    memory: int | None = None,
    sampled: Tensor | None = None,
    compiled: bool = False,
) -> LossParts:
    """Compute an objective from hidden states and output heads; no `[tokens, V]` tensor is ever built.

    The value and the gradients of `kdbench.loss` on `hidden @ head.T`, for a training loop of one's own:
    `.total.backward()` reaches `student_hidden` and `student_head`, each if it asks for gradients.

    Args:
        spec: an objective, its name (`"kl+atkd"`), or its mapping.
        student_hidden: `[B, T, H]` or `[N, H]`, what enters the output head, aligned with `targets` (no shift is made).
        student_head: `[V, H]`, the head's weight, tied or not.
        teacher_hidden, teacher_head: `[B, T, H']` or `[N, H']`, and `[V, H']`; None for objectives without a teacher.
        targets: `[B, T]` or `[N]`, the token that follows at each position.
        mask: like `targets`; True where a token counts. Default: all count.
        memory: bytes that one chunk of logits and its gradients may take; by default small against any model.
        sampled: like `targets`; True where the student wrote the token. Default: nowhere.
        compiled: the objective's terms by `torch.compile`, for a GPU; the first call takes longer.

    Raises:
        ConfigError: unknown objective, or shapes that do not fit.
    """
    chosen = objective(spec)
    _check_linear(chosen, student_hidden, student_head, teacher_hidden, teacher_head, targets, mask)
    valid = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask.bool()
    hidden, target = student_hidden[valid], targets[valid]
    if not len(target):
        return LossParts(total=0.0 * (hidden.sum() + student_head.sum()), tokens=0)
    taught = None
    if teacher_hidden is not None and teacher_head is not None and chosen.reads_teacher:
        taught = TeacherStates(teacher_hidden.detach()[valid], teacher_head.detach())
    tokens = _linear_tokens(chosen, valid, target, taught, memory)
    tokens = replace(tokens, sampled=None if sampled is None else sampled[valid].bool())
    if chosen.probes:
        tokens = tokens.knowing(fused_probe(chosen, hidden.detach(), student_head.detach(), taught, tokens, memory))
    weights = step_weights(chosen, tokens)
    return fused_loss(chosen, hidden, student_head, taught, target, weights, memory=memory, compiled=compiled)


def _linear_tokens(
    chosen: Objective, valid: Tensor, target: Tensor, taught: TeacherStates | None, memory: int | None
) -> Tokens:
    """Return what is known of the tokens; the teacher is asked beforehand only by objectives that weigh tokens."""
    row = torch.arange(valid.shape[0], device=valid.device)
    sequence = row[:, None].expand(valid.shape)[valid] if valid.dim() == 2 else torch.zeros_like(target)
    if taught is None or not chosen.weighs:
        return Tokens(sequence=sequence, target=target)
    head, size = taught.head, min(chunk_size(taught.head, memory), len(target))
    log_probs, entropies = head.new_empty(2, len(target), dtype=head.dtype if head.dtype in EXACT else torch.float32)
    space = room(size, head)
    for begin in range(0, len(target), size or 1):
        logits = head_logits(taught.hidden[begin : begin + size], head, space)
        for piece in pieces(logits):
            rows = slice(begin + piece.start, begin + piece.stop)
            dist = Dist(logits[piece], target[rows])
            log_probs[rows], entropies[rows] = dist.log_prob_target, dist.entropy
    return Tokens(sequence, log_probs, entropies, target=target)


def _check_linear(chosen, student_hidden, student_head, teacher_hidden, teacher_head, targets, mask) -> None:
    sides = [("student", student_hidden, student_head), ("teacher", teacher_hidden, teacher_head)]
    if chosen.reads_teacher and (teacher_hidden is None or teacher_head is None):
        raise ConfigError(f"objective {chosen.label!r} needs teacher_hidden and teacher_head, found None")
    for name, hidden, head in sides:
        if hidden is None or head is None:
            continue
        if hidden.shape[:-1] != targets.shape or hidden.dim() not in (2, 3):
            raise ConfigError(
                f"expected {name}_hidden [B, T, H] or [N, H] and targets of the leading shape, found "
                f"{tuple(hidden.shape)} and {tuple(targets.shape)}"
            )
        if head.dim() != 2 or head.shape[1] != hidden.shape[-1]:
            raise ConfigError(f"expected {name}_head [V, {hidden.shape[-1]}], found {tuple(head.shape)}")
    if teacher_head is not None and teacher_head.shape[0] != student_head.shape[0]:
        raise ConfigError(
            f"expected heads over one vocabulary, found {student_head.shape[0]:,} and {teacher_head.shape[0]:,} "
            "entries; if one is padded, cut both to the tokenizer's size"
        )
    if mask is not None and mask.shape != targets.shape:
        raise ConfigError(f"expected mask of shape {tuple(targets.shape)}, found {tuple(mask.shape)}")
