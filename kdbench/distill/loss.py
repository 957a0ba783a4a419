"""The loss of an objective: dense, on logits; and fused, on hidden states, where no `[N, V]` tensor outlives a chunk.

Both take the weights of the *global* batch, so a loss may be cut into micro-batches and chunks at will.
Legend: `N` valid tokens, `V` vocabulary, `H` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kdbench.api import WATCHED, Dist, LossParts, Objective, Tokens
from kdbench.errors import ConfigError
from kdbench.registry import objective

GPU_CHUNK_BYTES = 2**30  # small beside any model, and some hundred rows of the largest vocabularies
CHUNK_BYTES = 24 * 2**20  # stays near a core's cache where the vocabulary is small
MIN_ROWS = 128  # fewer would read the heads from memory more often than it takes to multiply with them
EXACT = (torch.float32, torch.float64)  # what a logit is kept in; half precision is widened
BACKEND = "inductor"  # of torch.compile
LIVE_TENSORS = 12  # fp32 [chunk, V] tensors alive at the worst moment of a divergence's forward and backward pass
PIECE_BYTES = 4 * 2**20  # of one such tensor: what a divergence passes over again and again stays near the core


def loss(
    spec: str | Mapping[str, Any] | Objective,
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    targets: Tensor,
    mask: Tensor | None = None,
    sampled: Tensor | None = None,
) -> LossParts:
    """Compute an objective on logits, densely. Differentiable in `student_logits`.

    Args:
        spec: an objective, its name (`"kl+atkd"`), or its mapping.
        student_logits: `[B, T, V]` or `[N, V]`, already aligned with `targets` (no shift is made).
        teacher_logits: the same shape; None for objectives without a teacher. No gradient flows into it.
        targets: `[B, T]` or `[N]`, the token that follows at each position.
        mask: like `targets`; True where a token counts. Default: all count.
        sampled: like `targets`; True where the student wrote the token. Default: nowhere.

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
        sampled=None if sampled is None else sampled[valid].bool(),
        target=target,
    )
    if not len(tokens):
        return LossParts(total=student_logits[valid].sum(), tokens=0)
    if chosen.probes:
        with torch.no_grad():
            probed = chosen.probe(Dist(student.logits, target), teacher, tokens)
        tokens = tokens.knowing(probed)
    weights = step_weights(chosen, tokens)
    return _parts(weigh(chosen.terms(student, teacher, weights.tokens), weights, slice(None)), len(tokens))


def _parts(weighted: Mapping[str, Tensor], count: int, total: Tensor | None = None) -> LossParts:
    """Tell the loss's terms from what is only watched; `total` where it was made elsewhere."""
    terms = _lost(weighted)
    return LossParts(
        total=torch.stack(list(terms.values())).sum() if total is None else total,
        terms={name: value.detach() for name, value in terms.items()},
        tokens=count,
        watched={name.removeprefix(WATCHED): value.detach() for name, value in weighted.items() if name not in terms},
    )


def _lost(weighted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weighted.items() if not name.startswith(WATCHED)}


def _check_shapes(chosen: Objective, student: Tensor, teacher: Tensor | None, targets: Tensor, mask: Any) -> None:
    if student.shape[:-1] != targets.shape or student.dim() not in (2, 3):
        raise ConfigError(
            f"expected student_logits [B, T, V] or [N, V] and targets of the leading shape, found "
            f"{tuple(student.shape)} and {tuple(targets.shape)}"
        )
    if mask is not None and mask.shape != targets.shape:
        raise ConfigError(f"expected mask of shape {tuple(targets.shape)}, found {tuple(mask.shape)}")
    if chosen.reads_teacher and teacher is None:
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
    tokens: Tokens


def step_weights(chosen: Objective, tokens: Tokens) -> StepWeights:
    """Ask an objective for its weights over all tokens of an optimiser step, once; `tokens` hold what it probed."""
    tokens = tokens.knowing(chosen.derive(tokens))
    named = dict(chosen.weights(tokens))
    for name, weight in (named | dict(tokens.known)).items():
        if weight.shape != (len(tokens),):
            raise ConfigError(
                f"objective {chosen.label!r}: expected one number a token, [{len(tokens)}], for {name!r} in weights(), "
                f"probe() and derive(), found {list(weight.shape)}"
            )
    return StepWeights(named, tokens)


def weigh(measured: Mapping[str, Tensor], weights: StepWeights, part: slice) -> dict[str, Tensor]:
    """Return each term's weighted sum over the tokens of `part` of the global batch."""
    unknown = set(weights.named) - set(measured) - {"*"}
    if unknown:
        raise ConfigError(f"weights() names {sorted(unknown)}, but terms() gives {sorted(measured)}")
    count = len(weights.tokens)
    expected = len(range(*part.indices(count)))
    weighted = {}
    for name, values in measured.items():
        if values.shape != (expected,):
            raise ConfigError(f"terms() must give one number a token, [{expected}] for {name!r}: {list(values.shape)}")
        row = weights.named.get(name, weights.named.get("*"))
        if row is None or name.startswith(WATCHED):
            weighted[name] = values.sum() / count
        else:
            weighted[name] = (row[part].to(values.dtype) * values).sum()
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
    memory: int | None = None,
    compiled: bool = False,
) -> LossParts:
    """Compute an objective from hidden states, chunk by chunk, and fold each chunk's gradient at once.

    Same value and gradient as `loss` on the logits; peak extra memory is one chunk.

    Args:
        hidden: `[N, H]`, the student's final hidden states of valid tokens.
        head: `[V, H]`, the student's output head (possibly tied to its embedding).
        teacher: the teacher's states of the same tokens; None for objectives without a teacher.
        targets: `[N]`.
        weights: of the global batch, of which these tokens are `start : start + N`.
        memory: bytes that one chunk of logits and its gradients may take.
        compiled: the terms by `torch.compile`.
    """
    names: list[str] = []
    measure = terms_compiled_for(chosen.label) if compiled else terms_of
    total, *values = _Fused.apply(hidden, head, teacher, targets, chosen, weights, start, memory, names, measure)
    return _parts(dict(zip(names, values, strict=True)), targets.numel(), total)


@torch.no_grad()
def fused_probe(
    chosen: Objective,
    hidden: Tensor,
    head: Tensor,
    teacher: TeacherStates | None,
    tokens: Tokens,
    memory: int | None = None,
) -> dict[str, Tensor]:
    """Return what an objective probes of `tokens`, name → `[N]`, chunk by chunk; arguments as for `fused_loss`."""
    size = chunk_size(head, memory)
    found: dict[str, list[Tensor]] = {}
    for begin in range(0, len(tokens), size):
        part = slice(begin, begin + size)
        logits = head_logits(hidden[part], head)
        taught = None if teacher is None else head_logits(teacher.hidden[part], teacher.head)
        for piece in pieces(logits):
            some = tokens.part(slice(begin + piece.start, begin + piece.stop))
            beside = None if taught is None else Dist(taught[piece], some.target)
            for name, values in chosen.probe(Dist(logits[piece], some.target), beside, some).items():
                found.setdefault(name, []).append(values)
    return {name: torch.cat(parts) for name, parts in found.items()}


def chunk_size(head: Tensor, memory: int | None = None) -> int:
    """Return how many tokens a chunk holds: what fits the memory, or a core's cache, but a full matrix product."""
    row = LIVE_TENSORS * 4 * head.shape[0]
    if memory is None and head.is_cuda:
        memory = GPU_CHUNK_BYTES
    return max(MIN_ROWS, CHUNK_BYTES // row) if memory is None else max(1, memory // row)


def pieces(logits: Tensor) -> Iterator[slice]:
    """Cut a chunk of logits for what is done class by class: on a CPU, matrix products want more rows than it does."""
    rows, vocabulary = logits.shape
    size = max(1, rows if logits.is_cuda else PIECE_BYTES // (4 * vocabulary))
    for begin in range(0, rows, size):
        yield slice(begin, min(begin + size, rows))


class _Fused(torch.autograd.Function):
    """The forward pass makes the gradients too, so that no chunk has to be kept or made twice."""

    @staticmethod
    def forward(ctx, hidden, head, teacher, targets, chosen, weights, start, memory, names, measure):
        need_hidden, need_head = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden) if need_hidden else None
        grad_head = torch.zeros_like(head, dtype=_accumulator(head)) if need_head else None
        size = min(chunk_size(head, memory), targets.numel())
        rooms = room(size, head), None if teacher is None else room(size, teacher.head)
        sums: dict[str, Tensor] = {}
        for begin in range(0, targets.numel(), size or 1):
            part = slice(begin, min(begin + size, targets.numel()))
            taught = None if teacher is None else head_logits(teacher.hidden[part], teacher.head, rooms[1])
            logits = head_logits(hidden[part], head, rooms[0])
            for piece in pieces(logits):
                window = slice(start + begin + piece.start, start + begin + piece.stop)
                told = None if taught is None else taught[piece]
                slope, weighted = _piece(measure, chosen, logits[piece], told, targets[part][piece], weights, window)
                logits[piece] = slope  # where logits stood that are used up
                for name, value in weighted.items():
                    sums[name] = sums[name] + value if name in sums else value
            slopes = logits.to(head.dtype)
            if need_hidden:
                grad_hidden[part] = (slopes @ head).to(hidden.dtype)
            if need_head:
                grad_head.addmm_(slopes.t().to(grad_head.dtype), hidden[part].to(grad_head.dtype))
        ctx.save_for_backward(grad_hidden, None if grad_head is None else grad_head.to(head.dtype))
        names.extend(sums)
        lost = list(_lost(sums).values())
        return torch.stack(lost).sum() if lost else hidden.sum() * 0.0, *sums.values()

    @staticmethod
    def backward(ctx, slope, *_):
        grad_hidden, grad_head = ctx.saved_tensors
        one = bool(slope == 1)  # the usual case, in which a copy of the head's gradient is saved
        scaled = (g if g is None or one else g * slope.to(g.dtype) for g in (grad_hidden, grad_head))
        return *scaled, *[None] * 8


def _accumulator(head: Tensor) -> torch.dtype:
    """Sums over many chunks lose bits in half precision."""
    return torch.float32 if head.dtype in (torch.float16, torch.bfloat16) else head.dtype


def room(rows: int, head: Tensor) -> Tensor | None:
    """Return room for logits that every chunk fills anew: asking the system for it costs as much as a pass over it."""
    return head.new_empty(rows, head.shape[0]) if head.dtype in EXACT else None


def _piece(measure, chosen, logits, taught, target, weights, window):
    """Return the slope of the loss at some rows of student logits, `[n, V]`, and these rows' weighted terms."""
    logits.requires_grad_()
    with torch.enable_grad():
        measured = measure(chosen, logits, taught, target, weights.tokens.part(window))
        weighted = weigh(measured, weights, window)
        total = torch.stack(list(_lost(weighted).values())).sum()
        (slope,) = torch.autograd.grad(total, logits)
    return slope, {name: value.detach() for name, value in weighted.items()}


def terms_of(
    chosen: Objective, logits: Tensor, taught: Tensor | None, target: Tensor, tokens: Tokens
) -> Mapping[str, Tensor]:
    """Return an objective's terms, name → `[N]`, of a chunk of logits `[N, V]`."""
    return chosen.terms(Dist(logits, target), None if taught is None else Dist(taught, target), tokens)


@lru_cache(maxsize=1)
def terms_compiled_for(label: str) -> Callable[..., Mapping[str, Tensor]]:
    """Return `terms_of`, compiled for an objective; sizes are symbols from the start, so that no order of chunks and no
    resumption changes which kernels run. What was compiled for another objective is forgotten: torch keeps few."""
    torch.compiler.reset()
    return torch.compile(terms_of, dynamic=True, backend=BACKEND)


@torch.no_grad()
def head_logits(hidden: Tensor, head: Tensor, room: Tensor | None = None) -> Tensor:
    """Return the logits `[N, V]` of hidden states, at least in fp32; written into the first rows of `room` if given."""
    if room is not None and isinstance(hidden, Tensor):  # rows of a sparse layout make their own
        return torch.mm(hidden.to(head.dtype), head.t(), out=room[: hidden.shape[0]]).detach()
    logits = hidden.to(head.dtype) @ head.t()
    return logits if logits.dtype in EXACT else logits.float()
