"""The loss of an objective: dense, on logits; and fused, on hidden states, where no `[N, V]` tensor outlives a chunk.

Both take the weights of the *global* batch, so a loss may be cut into micro-batches and chunks at will.
Legend: `N` valid tokens, `V` vocabulary, `H` hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdbench.api import Dist, LossParts, Objective, Tokens
from kdbench.errors import ConfigError
from kdbench.registry import objective

CHUNK_BYTES = 24 * 2**20
LIVE_TENSORS = 12  # fp32 [chunk, V] tensors alive at the worst moment of a divergence's forward and backward pass


def loss(
    spec: str | Mapping[str, Any] | Objective,
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    targets: Tensor,
    mask: Tensor | None = None,
) -> LossParts:
    """Compute an objective on logits, densely. Differentiable in `student_logits`.

    Args:
        spec: an objective, its name (`"kl+atkd"`), or its mapping.
        student_logits: `[B, T, V]` or `[N, V]`, already aligned with `targets` (no shift is made).
        teacher_logits: the same shape; None for objectives without a teacher. No gradient flows into it.
        targets: `[B, T]` or `[N]`, the token that follows at each position.
        mask: like `targets`; True where a token counts. Default: all count.

    Raises:
        ConfigError: unknown objective, or shapes that do not fit.
    """
    chosen = objective(spec)
    _check_shapes(chosen, student_logits, teacher_logits, targets, mask)
    valid = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask.bool()
    row = torch.arange(valid.shape[0], device=valid.device)
    sequence = row[:, None].expand(valid.shape)[valid] if valid.dim() == 2 else torch.zeros_like(row)[valid]
    target = targets[valid]
    student = Dist(student_logits[valid], target)
    teacher = None if teacher_logits is None else Dist(teacher_logits.detach()[valid], target)
    tokens = Tokens(
        sequence=sequence,
        log_prob_target=None if teacher is None else teacher.log_prob_target,
        teacher_entropy=None if teacher is None else teacher.entropy,
    )
    if not len(tokens):
        return LossParts(total=student_logits[valid].sum(), tokens=0)
    measured = chosen.terms(student, teacher, target)
    weighted = weigh(measured, step_weights(chosen, tokens), slice(None), len(tokens))
    return LossParts(
        total=torch.stack(list(weighted.values())).sum(),
        terms={name: value.detach() for name, value in weighted.items()},
        tokens=len(tokens),
    )


def _check_shapes(chosen: Objective, student: Tensor, teacher: Tensor | None, targets: Tensor, mask: Any) -> None:
    if student.shape[:-1] != targets.shape or student.dim() not in (2, 3):
        raise ConfigError(
            f"expected student_logits [B, T, V] or [N, V] and targets of the leading shape, found "
            f"{tuple(student.shape)} and {tuple(targets.shape)}"
        )
    if mask is not None and mask.shape != targets.shape:
        raise ConfigError(f"expected mask of shape {tuple(targets.shape)}, found {tuple(mask.shape)}")
    if chosen.needs_teacher and teacher is None:
        raise ConfigError(f"objective {chosen.label!r} needs teacher_logits, found None")
    if teacher is not None and teacher.shape != student.shape:
        raise ConfigError(
            f"expected teacher_logits of shape {tuple(student.shape)}, found {tuple(teacher.shape)}; "
            "if one vocabulary is padded, cut both to the tokenizer's size"
        )


@dataclass(frozen=True)
class StepWeights:
    """How much each token of the global batch counts: a row per named term, and 1/N for all other terms."""

    named: dict[str, Tensor]
    count: int


def step_weights(chosen: Objective, tokens: Tokens) -> StepWeights:
    """Ask an objective for its weights over all tokens of an optimiser step, once."""
    named = dict(chosen.weights(tokens))
    for name, weight in named.items():
        if weight.shape != (len(tokens),):
            raise ConfigError(
                f"objective {chosen.label!r}: weights() must give [N] = [{len(tokens)}] for {name!r}, "
                f"found {list(weight.shape)}"
            )
    return StepWeights(named, len(tokens))


def weigh(measured: Mapping[str, Tensor], weights: StepWeights, part: slice, expected: int) -> dict[str, Tensor]:
    """Return each term's weighted sum over the tokens of `part` of the global batch."""
    unknown = set(weights.named) - set(measured)
    if unknown:
        raise ConfigError(f"weights() names {sorted(unknown)}, but terms() gives {sorted(measured)}")
    weighted = {}
    for name, values in measured.items():
        if values.shape != (expected,):
            raise ConfigError(f"terms() must give one number a token, [{expected}] for {name!r}: {list(values.shape)}")
        if name in weights.named:
            weighted[name] = (weights.named[name][part].to(values.dtype) * values).sum()
        else:
            weighted[name] = values.sum() / weights.count
    return weighted


@dataclass(frozen=True)
class TeacherStates:
    """The teacher's side of some tokens: final hidden states `[N, H]` and its output head `[V, H]`."""

    hidden: Tensor
    head: Tensor


def fused_loss(
    chosen: Objective,
    hidden: Tensor,
    head: Tensor,
    teacher: TeacherStates | None,
    targets: Tensor,
    weights: StepWeights,
    start: int = 0,
    chunk_bytes: int = CHUNK_BYTES,
) -> LossParts:
    """Compute an objective from hidden states, chunk by chunk, and fold each chunk's gradient at once.

    Same value and gradient as `loss` on the logits; peak extra memory is one chunk.

    Args:
        hidden: `[N, H]`, the student's final hidden states of valid tokens.
        head: `[V, H]`, the student's output head (possibly tied to its embedding).
        teacher: the teacher's states of the same tokens; None for objectives without a teacher.
        targets: `[N]`.
        weights: of the global batch, of which these tokens are `start : start + N`.
        chunk_bytes: memory that one chunk of logits and its gradients may take.
    """
    names: list[str] = []
    total, *values = _Fused.apply(hidden, head, teacher, targets, chosen, weights, start, chunk_bytes, names)
    return LossParts(
        total=total,
        terms={name: value.detach() for name, value in zip(names, values, strict=True)},
        tokens=targets.numel(),
    )


class _Fused(torch.autograd.Function):
    """The forward pass makes the gradients too, so that no chunk has to be kept or made twice."""

    @staticmethod
    def forward(ctx, hidden, head, teacher, targets, chosen, weights, start, chunk_bytes, names):
        need_hidden, need_head = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden) if need_hidden else None
        grad_head = torch.zeros_like(head, dtype=_accumulator(head)) if need_head else None
        size = max(1, chunk_bytes // (LIVE_TENSORS * 4 * head.shape[0]))
        sums: dict[str, Tensor] = {}
        for begin in range(0, targets.numel(), size):
            part = slice(begin, min(begin + size, targets.numel()))
            slope, weighted = _chunk(hidden[part], head, teacher, targets, chosen, weights, start, part)
            for name, value in weighted.items():
                sums[name] = sums[name] + value if name in sums else value
            if need_hidden:
                grad_hidden[part] = (slope @ head).to(hidden.dtype)
            if need_head:
                grad_head.addmm_(slope.t().to(grad_head.dtype), hidden[part].to(grad_head.dtype))
        ctx.save_for_backward(grad_hidden, None if grad_head is None else grad_head.to(head.dtype))
        names.extend(sums)
        total = torch.stack(list(sums.values())).sum() if sums else hidden.sum() * 0.0
        return total, *sums.values()

    @staticmethod
    def backward(ctx, slope, *_):
        grad_hidden, grad_head = ctx.saved_tensors
        scaled = (None if g is None else g * slope.to(g.dtype) for g in (grad_hidden, grad_head))
        return *scaled, None, None, None, None, None, None, None


def _accumulator(head: Tensor) -> torch.dtype:
    """Sums over many chunks lose bits in half precision."""
    return torch.float32 if head.dtype in (torch.float16, torch.bfloat16) else head.dtype


def _chunk(hidden, head, teacher, targets, chosen, weights, start, part):
    """Return the slope of the loss at a chunk's student logits, `[chunk, V]`, and the chunk's weighted terms."""
    target = targets[part]
    logits = _logits(hidden, head).requires_grad_()
    taught = None if teacher is None else Dist(_logits(teacher.hidden[part], teacher.head), target)
    with torch.enable_grad():
        measured = chosen.terms(Dist(logits, target), taught, target)
        weighted = weigh(measured, weights, slice(start + part.start, start + part.stop), target.numel())
        total = torch.stack(list(weighted.values())).sum()
        (slope,) = torch.autograd.grad(total, logits)
    return slope.to(head.dtype), {name: value.detach() for name, value in weighted.items()}


@torch.no_grad()
def _logits(hidden: Tensor, head: Tensor) -> Tensor:
    logits = hidden.to(head.dtype) @ head.t()
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
