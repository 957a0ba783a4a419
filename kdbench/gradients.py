"""Divergences between a teacher's and a student's logits whose gradient is written down instead of traced.

Each is an autograd function of the student's logits `[N, V]`, the teacher's being constants, in as few passes over
`[N, V]` as it takes: a softmax a side, the value, the slope. Formulas: ATKD's paper and GKD's, Eq. 1; that they equal
autograd's is a property test. Classes that a model excludes (logit −inf) count nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdbench.compiling import compiling

EXCLUDED = -1e30  # a logit of a class that a view leaves out: exp is 0, and differences stay finite


def applies(teacher_logits: Tensor, student_logits: Tensor) -> bool:
    """Whether the closed forms may be used: nothing asks for the teacher's gradient, and no compiler is at work.

    A compiler fuses the formulas' own passes, and cannot trace a function that looks at values.
    """
    return not compiling() and not (teacher_logits.requires_grad and torch.is_grad_enabled())


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return softmax `[N, V]` and logsumexp `[N]`, with one exp a class."""
    probs = logits.softmax(-1)
    return probs, logits.amax(-1) - probs.amax(-1).log()  # a max with its index takes as long as the softmax


def _dot(weights: Tensor, values: Tensor) -> Tensor:
    """Σ weights · values, `[N]`, where 0 · ∞ is 0; `values` are overwritten."""
    return _share_of(weights, values)[1]


def _share_of(q: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Turn `values` into q ⊙ values in place, where 0 · ∞ is 0; return it with its sums `[N]`."""
    shares = values.mul_(q)
    sums = shares.sum(-1)
    if not bool(sums.isfinite().all()):
        sums = shares.masked_fill_(q == 0, 0.0).sum(-1)
    return shares, sums


def _centred(q: Tensor, shares: Tensor, sums: Tensor) -> Tensor:
    """Turn `shares` into shares − q · sums in place: the slope of Σ q ⊙ values, q a softmax."""
    return shares.addcmul_(q, sums[:, None], value=-1)


class ForwardKL(torch.autograd.Function):
    """KL(p‖q), `[N]`; slope q − p."""

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor) -> Tensor:
        p, norm_p = _softmax(teacher)
        gap = _dot(p, teacher - student)
        q, norm_q = _softmax(student)
        ctx.save_for_backward(q.sub_(p))
        return gap - (norm_p - norm_q)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[None, Tensor]:
        (slope,) = ctx.saved_tensors
        return None, slope * weight[:, None]


class ReverseKL(torch.autograd.Function):
    """KL(q‖p), `[N]`; slope q ⊙ (log(q/p) − KL)."""

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor) -> Tensor:
        norm_p = teacher.logsumexp(-1)  # before the others need their room
        q, norm_q = _softmax(student)
        gap = torch.sub(student, teacher).sub_((norm_q - norm_p)[:, None])
        shares, value = _share_of(q, gap)
        ctx.save_for_backward(_centred(q, shares, value))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[None, Tensor]:
        (slope,) = ctx.saved_tensors
        return None, slope * weight[:, None]


class GeneralisedJSD(torch.autograd.Function):
    """β KL(p‖m) + (1 − β) KL(q‖m), m = β p + (1 − β) q, 0 < β < 1; slope (1 − β) q ⊙ (log(q/m) − KL(q‖m))."""

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor, beta: float) -> Tensor:
        p, norm_p = _softmax(teacher)
        q, norm_q = _softmax(student)
        log_m = (beta * p).add_(q, alpha=1 - beta).clamp_(min=torch.finfo(p.dtype).tiny).log_()
        of_p = _dot(p, torch.sub(teacher, log_m)) - norm_p
        shares, of_q = _share_of(q, log_m.neg_().add_(student).sub_(norm_q[:, None]))
        ctx.beta = beta
        ctx.save_for_backward(_centred(q, shares, of_q))
        return beta * of_p + (1 - beta) * of_q

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[None, Tensor, None]:
        (slope,) = ctx.saved_tensors
        return None, slope * ((1 - ctx.beta) * weight)[:, None], None


class _Decoupled:
    """One model's side of a split at the target: p̂ over the other classes, and the binary (p_g, 1 − p_g) in logs.

    `others` is p without the target's class, `[N, V]`, and p̂ = scale · others: the scale is one number a row, so that
    no pass over `[N, V]` is spent on it. A row whose target has all the mass that numbers can hold is made again
    without the target.
    """

    def __init__(self, logits: Tensor, target: Tensor):
        index = target[:, None]
        self.others, norm = _softmax(logits)
        rest = self.others.scatter_(-1, index, 0.0).sum(-1)
        own = logits.gather(-1, index)[:, 0]
        if bool((rest < _least_rest(logits)).any()):
            self.others, self.norm = _softmax(logits.scatter(-1, index, EXCLUDED))
            self.others.scatter_(-1, index, 0.0)
            self.scale = torch.ones_like(rest)
        else:
            self.norm, self.scale = norm + rest.log(), 1 / rest
        whole = torch.logaddexp(own, self.norm)
        self.log_target, self.log_others = own - whole, self.norm - whole


def _least_rest(logits: Tensor) -> float:
    """The least mass of the other classes in which what underflows is still below rounding."""
    kind = torch.finfo(logits.dtype)
    return logits.shape[-1] * kind.tiny / kind.eps


def _binary_kl(a: _Decoupled, b: _Decoupled) -> Tensor:
    def part(log_a: Tensor, log_b: Tensor) -> Tensor:
        mass = log_a.exp()
        return torch.where(mass > 0, mass * (log_a - log_b), 0.0)

    return part(a.log_target, b.log_target) + part(a.log_others, b.log_others)


class ForwardParts(torch.autograd.Function):
    """KL(p_b‖q_b), KL(p̂‖q̂) and 1 − p_g, each `[N]`; slopes (q_g − p_g)(e_g − q̂) and q̂ − p̂."""

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p, q = _Decoupled(teacher, target), _Decoupled(student, target)
        diversity = p.scale * _dot(p.others, torch.sub(teacher, student)) - (p.norm - q.norm)
        coefficient = p.log_others.exp()
        ctx.mark_non_differentiable(coefficient)
        gap = q.log_target.exp() - p.log_target.exp()
        ctx.save_for_backward(p.others, p.scale, q.others, q.scale, gap, target)
        return _binary_kl(p, q), diversity, coefficient

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_target: Tensor, of_diversity: Tensor, _: Tensor) -> tuple[None, Tensor, None]:
        p, p_scale, q, q_scale, gap, target = ctx.saved_tensors
        along = of_target * gap
        slope = torch.mul(q, ((of_diversity - along) * q_scale)[:, None])
        slope.addcmul_(p, (of_diversity * p_scale)[:, None], value=-1)
        return None, slope.scatter_(-1, target[:, None], along[:, None]), None


class ReverseParts(torch.autograd.Function):
    """KL(q_b‖p_b), KL(q̂‖p̂) and 1 − q_g, each `[N]`.

    Slopes q_g u_q (logit q_g − logit p_g)(e_g − q̂), q̂ ⊙ (log(q̂/p̂) − KL(q̂‖p̂)), and −q_g u_q (e_g − q̂).
    """

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p, q = _Decoupled(teacher, target), _Decoupled(student, target)
        gap = torch.sub(student, teacher).sub_((q.norm - p.norm)[:, None])
        shares, sums = _share_of(q.others, gap)
        sums = q.scale * sums
        spread = (q.log_target + q.log_others).exp()
        odds = (q.log_target - q.log_others) - (p.log_target - p.log_others)
        along = torch.where(spread > 0, spread * odds, 0.0)
        ctx.save_for_backward(q.others, _centred(q.others, shares, sums), q.scale, spread, along, target)
        return _binary_kl(q, p), sums, q.log_others.exp()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_target: Tensor, of_diversity: Tensor, of_coefficient: Tensor
    ) -> tuple[None, Tensor, None]:
        q, centred, scale, spread, slope_along, target = ctx.saved_tensors
        along = of_target * slope_along - of_coefficient * spread
        slope = torch.mul(centred, (of_diversity * scale)[:, None]).addcmul_(q, (along * scale)[:, None], value=-1)
        return None, slope.scatter_(-1, target[:, None], along[:, None]), None
