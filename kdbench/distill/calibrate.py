"""A short calibration: what a real training step takes here, fixed and per token, for each objective of a suite.

A FLOP count alone misses tiny models, whose steps are mostly the overhead of starting operations, and losses, whose
work on `[tokens, V]` numbers is no matrix product.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kdbench.api import Objective, Step
from kdbench.distill import models
from kdbench.distill.loss import TeacherStates
from kdbench.distill.teacher import Signal
from kdbench.distill.train import Batch, backward
from kdbench.registry import objective

BUDGET_S = 2.0
MOST_TOKENS = 512  # of a measured step
LARGEST = 8_000_000  # parameters of a student that is measured itself; for a larger one another stands in
STAND_IN = {
    "architecture": "opt",
    "hidden_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "ffn_dim": 2048,
}
STAND_IN_VOCABULARY = 8192


@dataclass(frozen=True)
class Rates:
    """What was measured on one architecture.

    Attributes:
        layers, parameters: of the model that was measured.
        step_s: seconds of a step with no tokens: starting every operation forward, backward and in the optimiser.
        token_s: seconds a token of each objective, by its label; `sft` is always there.
    """

    layers: int
    parameters: int
    step_s: float
    token_s: Mapping[str, float]


def calibrate(
    config: Any,
    teacher_width: int,
    vocabulary: int,
    length: int,
    specs: Sequence[Mapping[str, Any]],
    runtime: models.Runtime,
) -> Rates:
    """Measure steps of a student for at most about `BUDGET_S` seconds; objectives that find no time are left out.

    Args:
        config: the student's transformers config.
        teacher_width: width of the teacher's hidden states, 0 without a teacher.
        specs: the suite's objectives, as `Objective.spec()` gives them.
    """
    begin = time.monotonic()
    model = _model(config, length).to(runtime.device)
    vocabulary = min(vocabulary, model.config.vocab_size)
    rows = max(1, MOST_TOKENS // length)
    with _threads(runtime):
        sft = objective("sft")
        few, many = (_measure(model, sft, _batch(model, n, length, 0, vocabulary, runtime), vocabulary, runtime)
                     for n in (1, max(2, rows)))  # fmt: skip
        slope = max(0.0, (many - few) / ((max(2, rows) - 1) * (length - 1)))
        fixed = max(0.0, few - slope * (length - 1))
        found = {sft.label: slope}
        batch = _batch(model, rows, length, teacher_width, vocabulary, runtime)
        for spec in specs:
            one = objective(spec)
            if one.label in found or time.monotonic() - begin > BUDGET_S:
                continue
            try:
                took = _measure(model, one, batch, vocabulary, runtime)
            except Exception:  # noqa: S112 — a user's objective may want what a calibration lacks; the run will tell
                continue
            found[one.label] = max(slope, (took - fixed) / (rows * (length - 1)))
    layers, count = model.config.num_hidden_layers, sum(p.numel() for p in model.parameters())
    return Rates(layers, count, fixed, found)


def _model(config: Any, length: int) -> nn.Module:
    """Make the student itself, or where that is more than a moment's work a layer of another, of a middling size."""
    if models.parameters(config) > LARGEST:
        config = models.architecture_config(STAND_IN, STAND_IN_VOCABULARY, length, (0, 1), False)
    return models.make(config, 0)


def _batch(model: nn.Module, rows: int, length: int, width: int, vocabulary: int, runtime: models.Runtime) -> Batch:
    """Return made-up text, and a made-up teacher of `width` numbers a token, if there is one."""
    ids = (torch.arange(rows * length, device=runtime.device) * 7919 % (vocabulary - 2) + 2).view(rows, length)
    signal = None
    if width:
        count = rows * (length - 1)
        wave = torch.linspace(-1, 1, count * width, device=runtime.device).view(count, width)
        weight = torch.linspace(-0.1, 0.1, vocabulary * width, device=runtime.device).view(vocabulary, width)
        ones = torch.ones(count, device=runtime.device)
        signal = Signal(TeacherStates(wave, weight), -ones, ones)
    mask = torch.ones(rows, length - 1, dtype=torch.bool, device=runtime.device)
    return Batch(ids, mask, signal, torch.zeros(rows, dtype=torch.bool, device=runtime.device))


def _measure(model: nn.Module, one: Objective, batch: Batch, vocabulary: int, runtime: models.Runtime) -> float:
    """Return the seconds of a step: the best of three, since whatever disturbs makes it longer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    now, times = one.at(Step(0, 1, {})), []
    for _ in range(3):
        clock = _clock(runtime)
        begin = clock()
        optimizer.zero_grad(set_to_none=True)
        backward(model, now, batch, batch.tokens(), None, vocabulary, runtime.precision)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        times.append(clock() - begin)
        if times[-1] > BUDGET_S / 2:
            break
    return min(times)


def _clock(runtime: models.Runtime) -> Any:
    """On one thread its own time counts, so that busy neighbours do not; else the wall's."""
    if runtime.device == "cuda":
        return lambda: (torch.cuda.synchronize(), time.perf_counter())[1]
    return time.thread_time if runtime.device == "cpu" and runtime.threads == 1 else time.perf_counter


@contextmanager
def _threads(runtime: models.Runtime) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(runtime.threads if runtime.device == "cpu" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
