"""What the checks are made of: cases to try an objective on, and how a broken rule is said.

A check takes an objective and raises `Broken` with one sentence: what was expected, what was found, and the likely
mistake. Legend: `N` tokens of several sequences, `V` vocabulary. Float64 and moderate logits unless a rule says other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from kdbench.api import WATCHED, Dist, LossParts, Objective, Tokens
from kdbench.distill.loss import StepWeights, loss, step_weights, weigh
from kdbench.seeding import generator

CHECKS: dict[str, Callable[[Objective], None]] = {}  # every rule, in order


class Broken(AssertionError):
    """An objective breaks a rule."""


def rule(check: Callable[[Objective], None]) -> Callable[[Objective], None]:
    """Add a check to `CHECKS` under its name."""
    CHECKS[check.__name__] = check
    return check


def demand(holds: object, message: str) -> None:
    """Raise `Broken` unless something holds."""
    if not holds:
        raise Broken(message)


def agree(found: Tensor, expected: Tensor, what: str, hint: str, tolerance: float = 1e-9) -> None:
    """Raise `Broken` with the worst pair of numbers, unless |found − expected| ≤ tolerance · (1 + |expected|)."""
    found, expected = torch.atleast_1d(found.detach().double()), torch.atleast_1d(expected.detach().double())
    gap = ((found - expected).abs() / (1 + expected.abs())).nan_to_num(nan=torch.inf).masked_fill(found == expected, 0)
    worst = torch.unravel_index(gap.argmax(), gap.shape)
    place = f" at {[int(index) for index in worst]}" if gap.numel() > 1 else ""
    numbers = f"expected {float(expected[worst]):.9g}, found {float(found[worst]):.9g}"
    demand(gap.max() <= tolerance, f"{what}{place}: {numbers}; {hint}")


@dataclass(frozen=True)
class Case:
    """Tokens before both models: logits `[N, V]`, and what is known of the text, each `[N]`."""

    student: Tensor
    teacher: Tensor
    target: Tensor
    sequence: Tensor
    sampled: Tensor
    number: Tensor

    def take(self, index: Tensor) -> Case:
        """Return some of the tokens, in the order of `index`."""
        return Case(**{column.name: getattr(self, column.name)[index] for column in fields(self)})

    def to(self, dtype: torch.dtype) -> Case:
        """Return the same with logits of another precision."""
        return replace(self, student=self.student.to(dtype), teacher=self.teacher.to(dtype))


def a_case(seed: int = 0, lengths: tuple[int, ...] = (5, 3, 4), vocabulary: int = 7) -> Case:
    """Return sequences of these lengths, about half of their tokens sampled by the student."""
    draws, count = generator(seed, "conformance"), sum(lengths)
    student, teacher = (1.5 * torch.randn(count, vocabulary, generator=draws, dtype=torch.float64) for _ in range(2))
    target = torch.randint(0, vocabulary, (count,), generator=draws)
    sequence = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return Case(student, teacher, target, sequence, torch.arange(count) % 2 == 1, torch.arange(count))


def prepare(objective: Objective, case: Case) -> StepWeights:
    """Return the weights of a case, and its tokens with all that the objective probes and derives."""
    student, teacher = dists(objective, case)
    tokens = Tokens(
        sequence=case.sequence,
        log_prob_target=None if teacher is None else teacher.log_prob_target,
        teacher_entropy=None if teacher is None else teacher.entropy,
        sampled=case.sampled,
        target=case.target,
        number=case.number,
    )
    with torch.no_grad():
        if objective.probes:
            tokens = tokens.knowing(objective.probe(student, teacher, tokens))
        return step_weights(objective, tokens)


def dists(objective: Objective, case: Case, window: slice = slice(None)) -> tuple[Dist, Dist | None]:
    """Return both models' distributions; no teacher for an objective that reads none."""
    target = case.target[window]
    taught = Dist(case.teacher.detach()[window], target) if objective.reads_teacher else None
    return Dist(case.student[window], target), taught


def terms(objective: Objective, case: Case, weights: StepWeights, window: slice = slice(None)) -> dict[str, Tensor]:
    """Return the terms of the tokens in `window`, as training makes them for a micro-batch."""
    return objective.terms(*dists(objective, case, window), weights.tokens.part(window))


def total(objective: Objective, case: Case, weights: StepWeights, window: slice = slice(None)) -> Tensor:
    """Return the share of the loss that the tokens in `window` have."""
    weighted = weigh(terms(objective, case, weights, window), weights, window)
    return torch.stack([value for name, value in weighted.items() if not name.startswith(WATCHED)]).sum()


def dense(objective: Objective, case: Case, left: bool = False, padding: float = 0.0) -> LossParts:
    """Return `kdbench.loss` of a case laid out as `[B, T, V]`, its pads masked; padded on the right, or on the left."""
    length = int(case.sequence.bincount().max())
    rows = case.sequence.unique()
    mask = torch.stack([torch.arange(length) < (case.sequence == row).sum() for row in rows])
    mask = mask.flip(1) if left else mask

    def spread(column: Tensor, fill: float) -> Tensor:
        blank = torch.full((*mask.shape, *column.shape[1:]), fill, dtype=column.dtype)
        return blank.masked_scatter(mask.reshape(*mask.shape, *[1] * (column.dim() - 1)), column)

    student, teacher = (spread(logits, padding) for logits in (case.student, case.teacher))
    taught = teacher if objective.reads_teacher else None
    return loss(objective, student, taught, spread(case.target, 0), mask, spread(case.sampled, True))


def slope(value: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """Return a function's value and its gradient; zeros where the gradient is cut."""
    leaf = at.detach().clone().requires_grad_()
    found = value(leaf)
    grad = torch.autograd.grad(found, leaf, allow_unused=True)[0] if found.requires_grad else None
    return found.detach(), torch.zeros_like(leaf) if grad is None else grad


def learn(objective: Objective, case: Case, **layout) -> tuple[Tensor, Tensor]:
    """Return `kdbench.loss` of a case and its gradient in the student's logits, `[N, V]`."""
    return slope(lambda student: dense(objective, replace(case, student=student), **layout).total, case.student)


def demand_finite(objective: Objective, case: Case, when: str, hint: str) -> None:
    """Raise `Broken` unless the loss of a case and its gradient are finite."""
    value, grad = learn(objective, case)
    demand(value.isfinite(), f"{when} the loss should be finite, found {value.item()}; {hint}")
    bad = int((~grad.isfinite()).sum())
    demand(not bad, f"{when} the gradient should be finite, found {bad} of {grad.numel()} entries that are not; {hint}")


def demand_slope(value: Callable[[Tensor], Tensor], at: Tensor, what: str) -> None:
    """Raise `Broken` unless the gradient is that of central differences, coordinate by coordinate."""
    grad, step = slope(value, at)[1], 1e-6
    with torch.no_grad():
        nudges = step * torch.eye(at.numel(), dtype=at.dtype).reshape(-1, *at.shape)
        measured = torch.stack([(value(at + nudge) - value(at - nudge)) / (2 * step) for nudge in nudges])
    hint = "look for a detach(), a no_grad(), a cast to lower precision, or a backward pass of your own"
    agree(grad, measured.reshape(at.shape), f"{what} (expected: finite differences)", hint, 1e-6)
