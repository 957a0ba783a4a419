"""Divergences between a student's and a teacher's next-token distribution, in nats, one number a token.

Everything is written on log-probabilities and keeps the convention 0 · log 0 = 0, so that classes which a model
excludes (logit −inf) give neither NaN values nor NaN gradients. Shapes: `N` tokens, `V` vocabulary.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

NEG_INF = float("-inf")
EXCLUDED = -1e30  # log-probability of a class that a view leaves out: exp is 0, and differences stay finite


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) = Σ p (log p − log q) of two log-distributions `[N, K]`; returns `[N]`. Differentiable in both."""
    return _KL.apply(log_p, log_q)


def log_mixture(log_a: Tensor, log_b: Tensor, share: float | Tensor) -> Tensor:
    """log(share · a + (1 − share) · b) of two log-distributions; a share of 0 or 1 gives one of them.

    Where both are −inf the mixture is −inf too, with gradient 0 instead of NaN.
    """
    if not isinstance(share, Tensor) and share in (0.0, 1.0):
        return log_a if share else log_b
    share = torch.as_tensor(share, dtype=log_a.dtype, device=log_a.device)
    neither = (log_a == NEG_INF) & (log_b == NEG_INF)
    if bool(neither.any()):
        mixed = log_mixture(log_a.masked_fill(neither, 0.0), log_b.masked_fill(neither, 0.0), share)
        return mixed.masked_fill(neither, NEG_INF)
    return torch.logaddexp(log_a + share.log(), log_b + torch.log1p(-share))


class _KL(torch.autograd.Function):
    """Fewer passes than autograd would make; classes with p = 0 give 0, also where both logs are −inf."""

    @staticmethod
    def forward(ctx, log_p, log_q):
        p, difference = log_p.exp(), log_p - log_q
        divergence = torch.linalg.vecdot(p, difference)
        if not bool(divergence.isfinite().all()):
            difference = difference.masked_fill(log_p == NEG_INF, 0.0)
            divergence = torch.linalg.vecdot(p, difference)
        ctx.save_for_backward(p, difference if ctx.needs_input_grad[0] else None)
        return divergence

    @staticmethod
    def backward(ctx, slope):
        p, difference = ctx.saved_tensors
        grad_p = (difference + 1).mul_(p).mul_(slope[:, None]) if ctx.needs_input_grad[0] else None
        return grad_p, p * -slope[:, None] if ctx.needs_input_grad[1] else None


class Dist:
    """The next-token distributions of some tokens: softmax of logits `[N, V]`, each view made when asked.

    Args:
        logits: `[N, V]`; half precisions are raised to fp32.
        target: `[N]`, the token that really follows, on which `log_prob_target` and the split views rest.
    """

    def __init__(self, logits: Tensor, target: Tensor, tau: float = 1.0):
        logits = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
        self.logits = logits / tau if tau != 1.0 else logits
        self.target = target

    def tempered(self, tau: float) -> Dist:
        """Return softmax(logits / tau)."""
        return self if tau == 1.0 else Dist(self.logits, self.target, tau)

    @cached_property
    def log_probs(self) -> Tensor:
        """log softmax, `[N, V]`."""
        return self.logits.log_softmax(-1)

    @cached_property
    def probs(self) -> Tensor:
        """softmax, `[N, V]`."""
        return self.log_probs.exp()

    @cached_property
    def _target_logit(self) -> Tensor:
        return self.logits.gather(-1, self.target[:, None])[:, 0]

    @cached_property
    def log_prob_target(self) -> Tensor:
        """log p(target), `[N]`."""
        return self.log_probs.gather(-1, self.target[:, None])[:, 0]

    @cached_property
    def _others(self) -> tuple[Tensor, Tensor]:
        return _Others.apply(self.logits, self.target)

    @cached_property
    def log_binary(self) -> Tensor:
        """(log p(target), log(1 − p(target))), `[N, 2]`; the latter exact also where 1 − p would round to 0."""
        parts = torch.stack((self._target_logit, self._others[1]), -1)
        return parts - parts.logsumexp(-1, keepdim=True)

    @property
    def log_probs_others(self) -> Tensor:
        """log of the distribution renormalised over the V−1 other classes, `[N, V]`; `EXCLUDED` at the target."""
        return self._others[0]

    @cached_property
    def entropy(self) -> Tensor:
        """−Σ p log p, `[N]`."""
        return -kl(self.log_probs, torch.zeros_like(self.log_probs))


class _Others(torch.autograd.Function):
    """log-softmax and log-norm over the classes that are not the target, in as few passes over `[N, V]` as it takes."""

    @staticmethod
    def forward(ctx, logits, target):
        others = logits.scatter(-1, target[:, None], EXCLUDED)
        log_probs = others.log_softmax(-1).scatter_(-1, target[:, None], EXCLUDED)
        top, index = others.max(-1, keepdim=True)
        log_norm = (top - log_probs.gather(-1, index))[:, 0]
        ctx.save_for_backward(log_probs, target)
        return log_probs, log_norm

    @staticmethod
    def backward(ctx, slope, slope_norm):
        log_probs, target = ctx.saved_tensors
        kept = slope.scatter(-1, target[:, None], 0.0)
        grad = log_probs.exp().mul_((slope_norm - kept.sum(-1))[:, None]).add_(kept)
        return grad, None
