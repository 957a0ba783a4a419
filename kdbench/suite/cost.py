"""What a suite will cost, before it starts: tokens, FLOP, bytes of teacher cache, peak memory.

Cost per token of a cell ≈ 6·P_student + 2·H_teacher·V with cached states (+ 2·P_teacher with a live teacher).
From sizes alone: nothing is run here. `run/predict.py` turns this into seconds by a calibration.
"""

from __future__ import annotations

from dataclasses import dataclass

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ITEM_TOKENS = 60  # of an examination's item with its choices, about
PROCESS_BYTES = 1000 * 2**20  # torch, transformers and lm-eval as the OS counts them, before any model
CHUNK_BYTES = 24 * 2**20  # of the loss, as `distill.loss` has it; a test holds them together
KEPT = 24  # numbers a token that a layer keeps for its backward pass, in units of its width


@dataclass(frozen=True)
class Cost:
    """Tokens trained on, floating point operations, bytes of teacher cache."""

    tokens: int = 0
    flop: float = 0.0
    cache_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.tokens + other.tokens, self.flop + other.flop, self.cache_bytes + other.cache_bytes)


def caching(parameters: int, tokens: int, hidden: int, dtype: str, layout: str = "hidden", k: int = 0) -> Cost:
    """Cost of storing a teacher's signal: one forward pass, and the bytes of a token, two statistics among them.

    Of `k` draws equal ones are stored once, so `sampled` takes at most what is said here.
    """
    entry = BYTES[dtype] + {"topk": 4, "sampled": 6}.get(layout, 0)  # a number; an id; a count
    rest = {"topk": 12, "sampled": 16}.get(layout, 8)
    return Cost(0, 2.0 * parameters * tokens, tokens * (entry * (k or hidden) + rest))


def distilling(student: int, teacher: int, hidden: int, vocabulary: int, tokens: int, live: bool) -> Cost:
    """Cost of one cell's training; `teacher` = 0 parameters for an arm without one."""
    per_token = 6.0 * student + (2.0 * hidden * vocabulary if teacher else 0.0) + (2.0 * teacher if live else 0.0)
    return Cost(tokens, per_token * tokens)


def writing(student: int, teacher: int, tokens: int) -> Cost:
    """Cost of text written while training: forward passes of the student, and of the teacher if it has a hand in it."""
    return Cost(0, 2.0 * (student + teacher) * tokens)


def examining(parameters: int, items: int, tokens_per_item: int = ITEM_TOKENS) -> Cost:
    """Cost of one examination: a forward pass over every item's choices."""
    return Cost(0, 2.0 * parameters * items * tokens_per_item)


def base_bytes(device: str) -> int:
    """Return what a worker takes before any model: its libraries, in the memory where models live."""
    return PROCESS_BYTES if device == "cpu" else 0


def memory(device: str, student: int, teacher: int, tokens: int, layers: int, hidden: int, vocabulary: int) -> int:
    """Return a training worker's peak bytes: fp32 weights, gradients and two moments, activations, a chunk, a teacher.

    Args:
        student, teacher: parameters; 0 without a teacher.
        tokens: of a micro-batch.
        layers, hidden: of the student.
    """
    states = 4 * (4 * student + teacher)
    activations = 4 * KEPT * tokens * layers * hidden
    head_gradient = 4 * vocabulary * hidden  # folded beside the gradient it is added to
    return base_bytes(device) + states + activations + head_gradient + CHUNK_BYTES


def duration(seconds: float) -> str:
    """Return `42 s`, `3.1 min` or `5.2 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
