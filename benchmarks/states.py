"""Random hidden states and heads, with logits of a spread that trained models have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.distill.teacher import LOGIT_ROWS
from kdbench.divergences import Dist

SPREAD = 2.0  # standard deviation of the logits


@dataclass
class States:
    """What a loss head is given; the student's two tensors want gradients."""

    student_hidden: Tensor
    student_head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor
    targets: Tensor
    log_prob_target: Tensor


def draw(tokens: int, vocabulary: int, student: int, teacher: int, device: str) -> States:
    """Draw the states of `tokens` positions; the same ones at every call."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(rows: int, width: int, scale: float = 1.0) -> Tensor:
        return torch.randn(rows, width, generator=generator, device=device).mul_(scale)

    heads = {width: normal(vocabulary, width, SPREAD / width**0.5) for width in {student, teacher}}
    student_head = heads[student].clone() if student == teacher else heads[student]
    teacher_hidden = normal(tokens, teacher)
    targets = torch.randint(vocabulary, (tokens,), generator=generator, device=device)
    known = [
        Dist(teacher_hidden[rows] @ heads[teacher].t(), targets[rows]).log_prob_target
        for rows in (slice(begin, begin + LOGIT_ROWS) for begin in range(0, tokens, LOGIT_ROWS))
    ]
    return States(
        normal(tokens, student).requires_grad_(),
        student_head.requires_grad_(),
        teacher_hidden,
        heads[teacher],
        targets,
        torch.cat(known),
    )
