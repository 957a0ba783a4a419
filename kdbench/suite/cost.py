"""What a suite will cost, before it starts: tokens, FLOP, bytes of teacher cache, seconds.

Cost per token of a cell ≈ 6·P_student + 2·H_teacher·V with cached states (+ 2·P_teacher with a live teacher).
Orders of magnitude, from sizes alone; nothing is run but a short matrix product.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
USED_SHARE = {"cpu": 0.35, "cuda": 0.3, "mps": 0.2}  # share of a large matrix product's speed that training reaches


@dataclass(frozen=True)
class Cost:
    """Tokens trained on, floating point operations, bytes of teacher cache."""

    tokens: int = 0
    flop: float = 0.0
    cache_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.tokens + other.tokens, self.flop + other.flop, self.cache_bytes + other.cache_bytes)


def pretraining(parameters: int, tokens: int) -> Cost:
    """Cost of making a model: forward and backward over `tokens`."""
    return Cost(tokens, 6.0 * parameters * tokens)


def caching(parameters: int, tokens: int, hidden: int, dtype: str) -> Cost:
    """Cost of storing a teacher's states: one forward pass, `hidden` numbers and two statistics a token."""
    return Cost(0, 2.0 * parameters * tokens, tokens * (hidden * BYTES[dtype] + 8))


def distilling(student: int, teacher: int, hidden: int, vocabulary: int, tokens: int, live: bool) -> Cost:
    """Cost of one cell's training; `teacher` = 0 parameters for an arm without one."""
    per_token = 6.0 * student + (2.0 * hidden * vocabulary if teacher else 0.0) + (2.0 * teacher if live else 0.0)
    return Cost(tokens, per_token * tokens)


def writing(student: int, teacher: int, tokens: int) -> Cost:
    """Cost of text written while training: forward passes of the student, and of the teacher if it has a hand in it."""
    return Cost(0, 2.0 * (student + teacher) * tokens)


def examining(parameters: int, items: int, tokens_per_item: int = 60) -> Cost:
    """Cost of one examination: a forward pass over every item's choices."""
    return Cost(0, 2.0 * parameters * items * tokens_per_item)


def device_flops(device: str, threads: int) -> float:
    """Measure a matrix product for a tenth of a second and return the FLOP/s that training will about reach."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads if device == "cpu" else before)
    side = 512 if device == "cpu" else 4096
    a = torch.ones(side, side, device=device)
    try:
        (a @ a).sum().item()
        begin, count = time.monotonic(), 0
        while time.monotonic() - begin < 0.1:
            (a @ a).sum().item()
            count += 1
        speed = 2.0 * side**3 * count / (time.monotonic() - begin)
    finally:
        torch.set_num_threads(before)
    return speed * USED_SHARE[device]
