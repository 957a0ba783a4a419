"""Divergences between a student's and a teacher's next-token distribution, in nats, one number a token.

Everything is written on log-probabilities and keeps the convention 0 · log 0 = 0, so that classes which a model
excludes (logit −inf) give neither NaN values nor NaN gradients. Shapes: `N` tokens, `V` vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdbench import gradients
from kdbench.compiling import compiling, once
from kdbench.gradients import EXCLUDED

NEG_INF = float("-inf")
SUPPORTS = ("full", "topk", "topk_both", "topk+tail", "sampled")


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) = Σ p (log p − log q) of two log-distributions `[N, K]`; returns `[N]`. Differentiable in both."""
    if not compiling():
        return _KL.apply(log_p, log_q)
    difference = (log_p - log_q).masked_fill(log_p == NEG_INF, 0.0)
    return (log_p.exp() * difference).sum(-1)


def log_mixture(log_a: Tensor, log_b: Tensor, share: float | Tensor) -> Tensor:
    """log(share · a + (1 − share) · b) of two log-distributions; a share of 0 or 1 gives one of them.

    Where both are −inf the mixture is −inf too, with gradient 0 instead of NaN.
    """
    if not isinstance(share, Tensor) and share in (0.0, 1.0):
        return log_a if share else log_b
    share = torch.as_tensor(share, dtype=log_a.dtype, device=log_a.device)
    neither = (log_a == NEG_INF) & (log_b == NEG_INF)
    masked = compiling() or bool(neither.any())
    if masked:
        log_a, log_b = log_a.masked_fill(neither, 0.0), log_b.masked_fill(neither, 0.0)
    mixed = torch.logaddexp(log_a + share.log(), log_b + torch.log1p(-share))
    return mixed.masked_fill(neither, NEG_INF) if masked else mixed


def kl_of(p: Dist, q: Dist) -> Tensor:
    """KL(p‖q) of two models' distributions, `[N]`; in closed form where one of them is constant."""
    if gradients.applies(p.logits, q.logits):
        return gradients.ForwardKL.apply(p.logits, q.logits)
    if gradients.applies(q.logits, p.logits):
        return gradients.ReverseKL.apply(q.logits, p.logits)
    return kl(p.log_probs, q.log_probs)


def jsd_of(p: Dist, q: Dist, beta: float) -> Tensor:
    """The generalised JSD D_β of `jsd`, of a teacher's and a student's distribution; in closed form."""
    if beta in (0, 1):
        return kl_of(q, p) if beta else kl_of(p, q)
    if gradients.applies(p.logits, q.logits):
        return gradients.GeneralisedJSD.apply(p.logits, q.logits, beta)
    return jsd(p.log_probs, q.log_probs, beta)


def jsd_factor(beta: float, normalised: bool) -> float:
    """What D_β is multiplied by: 1 / (β (1 − β)) where it is normalised, and 1 at the ends, which are KLs."""
    return 1 / (beta * (1 - beta)) if normalised and beta not in (0, 1) else 1.0


def skew_kl(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """KL(p ‖ share · p + (1 − share) · q), `[N]` (DistiLLM); with p and q swapped it is the skewed reverse KL."""
    return kl(log_p, log_mixture(log_p, log_q, share))


def jsd(log_p: Tensor, log_q: Tensor, beta: float | Tensor) -> Tensor:
    """D_β = β KL(p‖m) + (1 − β) KL(q‖m), m = β p + (1 − β) q, `[N]`; D_0 := KL(p‖q) and D_1 := KL(q‖p) (GKD, Eq. 1).

    A tensor of weights `[N]` lies inside (0, 1), or is an end where both distributions have no other mass.
    """
    if isinstance(beta, float | int) and beta in (0, 1):
        return kl(log_q, log_p) if beta else kl(log_p, log_q)
    mixture = log_mixture(log_p, log_q, beta[:, None] if isinstance(beta, Tensor) else beta)
    return beta * kl(log_p, mixture) + (1 - beta) * kl(log_q, mixture)


def tvd(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Total variation distance ½ Σ |p − q|, `[N]`."""
    return 0.5 * (log_q.exp() - log_p.exp()).abs().sum(-1)


def alpha_beta(log_p: Tensor, log_q: Tensor, alpha: float, beta: float) -> Tensor:
    """The α-β divergence (Cichocki et al. 2011; ABKD), `[N]`, α, β > 0, with its limits where one of them is 0.

    −1/(αβ) Σ [p^α q^β − α/(α+β) p^(α+β) − β/(α+β) q^(α+β)]; (1, 0) is KL(p‖q), (0, 1) is KL(q‖p).
    """
    if alpha and beta:
        total = alpha + beta
        mixed = _power(log_p, alpha) * _power(log_q, beta)
        return (alpha * _power(log_p, total) + beta * _power(log_q, total) - total * mixed).sum(-1) / (
            alpha * beta * total
        )
    # β → 0: Σ [p^α (log p^α − log q^α) − p^α + q^α] / α², an unnormalised KL of the α-th powers; α → 0 mirrors it.
    a, b, power = (log_p, log_q, alpha) if alpha else (log_q, log_p, beta)
    powers = _power(a, power)
    ratio = (power * (a - b)).masked_fill(a == NEG_INF, 0.0)
    return (powers * ratio - powers + _power(b, power)).sum(-1) / power**2


def _power(log_dist: Tensor, exponent: float) -> Tensor:
    return (exponent * log_dist).exp()


# --- decoupled at the target: (target part, diversity part, coefficient), D = target + coefficient · diversity --------


def kl_parts(p: Dist, q: Dist) -> tuple[Tensor, Tensor, Tensor]:
    """KL(p‖q) = KL(p_b‖q_b) + u_p · KL(p̂‖q̂), exactly (ATKD, Eq. 3); in closed form where one side is constant."""
    if gradients.applies(p.logits, q.logits):
        return gradients.ForwardParts.apply(p.logits, q.logits, p.target)
    if gradients.applies(q.logits, p.logits):
        return gradients.ReverseParts.apply(q.logits, p.logits, p.target)
    return kl(p.log_binary, q.log_binary), kl(p.log_probs_others, q.log_probs_others), p.log_binary[:, 1].exp()


def skew_parts(p: Dist, q: Dist, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """KL(p‖M) = KL(p_b‖M_b) + u_p · KL(p̂‖M̂), exactly; M̂ is the mixture M renormalised over the other classes."""
    binary = log_mixture(p.log_binary, q.log_binary, share)
    others = (
        log_mixture(p.log_probs_others + p.log_binary[:, 1:], q.log_probs_others + q.log_binary[:, 1:], share)
        - binary[:, 1:]
    )
    return kl(p.log_binary, binary), kl(p.log_probs_others, others), p.log_binary[:, 1].exp()


def jsd_parts(p: Dist, q: Dist, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """D_β(p, q) = D_β(p_b, q_b) + ū · D_w(p̂, q̂), ū = β u_p + (1−β) u_q, w = β u_p / ū (held constant), exactly."""
    if beta in (0, 1):
        return kl_parts(q, p) if beta else kl_parts(p, q)
    log_u = log_mixture(p.log_binary[:, 1], q.log_binary[:, 1], beta)
    share = (math.log(beta) + p.log_binary[:, 1] - log_u).exp().detach()
    diversity = jsd(p.log_probs_others, q.log_probs_others, share)
    return jsd(p.log_binary, q.log_binary, beta), diversity, log_u.exp()


def tvd_parts(p: Dist, q: Dist) -> tuple[Tensor, Tensor, Tensor]:
    """By definition, not an identity: |p_g − q_g| and TVD(p̂, q̂); with min(u_p, u_q) they bound TVD from above."""
    least = p.log_binary[:, 1].minimum(q.log_binary[:, 1]).exp()
    return tvd(p.log_binary, q.log_binary), tvd(p.log_probs_others, q.log_probs_others), least


def alpha_beta_parts(p: Dist, q: Dist, alpha: float, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """By definition, not an identity: AB(p_b, q_b) and AB(p̂, q̂), coefficient u_p^α u_q^β (exact only for KL)."""
    coefficient = (alpha * p.log_binary[:, 1] + beta * q.log_binary[:, 1]).exp()
    return (
        alpha_beta(p.log_binary, q.log_binary, alpha, beta),
        alpha_beta(p.log_probs_others, q.log_probs_others, alpha, beta),
        coefficient,
    )


def narrowed_kl(
    log_p: Tensor, log_r: Tensor, support: str, size: int, drawn: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """KL(p‖r) where only some classes of p are kept, and the mass of p on them (None where all are).

    Args:
        log_p, log_r: log-distributions `[N, V]`; the gradient flows into `log_r` alone.
        support: `full`; `topk`: p renormalised over its `size` likeliest classes (gradient r − p_S: sharpens);
            `topk_both`: r renormalised over them too (mass outside is free); `topk+tail`: all other classes lumped into
            one, on both sides (a lower bound); `sampled`: the mean of log p − log r over classes drawn from p, which
            is KL(p‖r) on average, and 0 at equality.
        drawn: `[N, size]` int64, classes drawn from p, for `sampled`.

    Returns:
        `[N]` and `[N]`.
    """
    size = min(size, log_p.shape[-1])
    if support == "full":
        return kl(log_p, log_r), None
    log_p = log_p.detach()
    if support == "sampled":
        assert drawn is not None
        kept = torch.zeros_like(log_p, dtype=torch.bool).scatter_(-1, drawn, True)
        mass = log_p.exp().masked_fill(~kept, 0.0).sum(-1)
        return (log_p.gather(-1, drawn) - log_r.gather(-1, drawn)).mean(-1), mass
    top, index = log_p.topk(size, -1)
    log_mass = top.logsumexp(-1, keepdim=True)
    chosen = log_r.gather(-1, index)
    if support == "topk+tail":
        top = torch.cat([top, log_tail(log_p, index)], -1)
        return kl(top, torch.cat([chosen, log_tail(log_r, index)], -1)), log_mass[:, 0].exp()
    if support == "topk_both":
        chosen = chosen.log_softmax(-1)
    return kl(top - log_mass, chosen), log_mass[:, 0].exp()


def draw(log_p: Tensor, uniform: Tensor) -> Tensor:
    """Draw classes from log-distributions `[N, V]` by uniform numbers `[N, K]` in [0, 1); returns `[N, K]` int64."""
    cumulative = log_p.detach().double().exp().cumsum(-1)
    index = torch.searchsorted(cumulative, uniform.double() * cumulative[:, -1:], right=True)
    return index.clamp_(max=log_p.shape[-1] - 1)


def log_tail(log_dist: Tensor, index: Tensor) -> Tensor:
    """log of the mass outside `index`, `[N, 1]`; summed, since 1 − mass would lose all digits."""
    if index.shape[-1] == log_dist.shape[-1]:
        return torch.full_like(log_dist[:, :1], NEG_INF)
    return log_dist.scatter(-1, index, EXCLUDED).logsumexp(-1, keepdim=True)


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

    def __init__(self, logits: Tensor, target: Tensor):
        self.logits = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
        self.target = target

    def tempered(self, tau: float | Tensor) -> Dist:
        """Return softmax(logits / tau); `tau` one number, or one a token `[N]`."""
        if isinstance(tau, Tensor):
            return Dist(self.logits / tau[:, None].to(self.logits.dtype), self.target)
        return self if tau == 1.0 else Dist(self.logits / tau, self.target)

    @once
    def log_probs(self) -> Tensor:
        """log softmax, `[N, V]`."""
        return self.logits.log_softmax(-1)

    @once
    def probs(self) -> Tensor:
        """softmax, `[N, V]`."""
        return self.log_probs.exp()

    @once
    def _target_logit(self) -> Tensor:
        return self.logits.gather(-1, self.target[:, None])[:, 0]

    @once
    def log_prob_target(self) -> Tensor:
        """log p(target), `[N]`."""
        return self.log_probs.gather(-1, self.target[:, None])[:, 0]

    @once
    def _others(self) -> tuple[Tensor, Tensor]:
        return _Others.apply(self.logits, self.target)

    @once
    def log_binary(self) -> Tensor:
        """(log p(target), log(1 − p(target))), `[N, 2]`; the latter exact also where 1 − p would round to 0."""
        parts = torch.stack((self._target_logit, self._others[1]), -1)
        return parts - parts.logsumexp(-1, keepdim=True)

    @property
    def log_probs_others(self) -> Tensor:
        """log of the distribution renormalised over the V−1 other classes, `[N, V]`; `EXCLUDED` at the target."""
        return self._others[0]

    @once
    def entropy(self) -> Tensor:
        """−Σ p log p, `[N]`."""
        if compiling() or (self.log_probs.requires_grad and torch.is_grad_enabled()):
            return -kl(self.log_probs, torch.zeros_like(self.log_probs))
        shares = self.log_probs.exp().mul_(self.log_probs)  # two tensors of [N, V] instead of five
        sums = shares.sum(-1)
        if not bool(sums.isfinite().all()):
            sums = shares.masked_fill_(self.log_probs == NEG_INF, 0.0).sum(-1)
        return -sums


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
