"""The fused loss is the dense loss: value and gradient, for every objective, however it is cut.

python -m pytest tests/distill/test_loss.py
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.api import Dist, Tokens
from kdbench.distill.loss import LIVE_TENSORS, TeacherStates, fused_loss, fused_probe, loss, step_weights
from kdbench.errors import ConfigError
from kdbench.registry import objective, objectives

SPECS = [
    *objectives(),
    *(f"{base}+atkd" for base in ("reverse_kl", "jsd", "tvd", "ab", "f_distill")),
    *({"name": "kl", "support": kind, "support_size": 4} for kind in ("topk", "topk_both", "topk+tail", "sampled")),
]


def case(seed: int, n: int, v: int = 13, h: int = 5, ht: int = 7):
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, h, generator=rng, dtype=torch.float64).requires_grad_()
    head = torch.randn(v, h, generator=rng, dtype=torch.float64).requires_grad_()
    taught = TeacherStates(*(torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in ((n, ht), (v, ht))))
    return hidden, head, taught, torch.randint(0, v, (n,), generator=rng)


def sampled(n):
    """Half of the tokens, as if the student had written them."""
    return torch.arange(n) % 2 == 0


def weights_of(chosen, taught, target, hidden, head):
    dist = Dist(taught.hidden @ taught.head.t(), target)
    rows = torch.zeros_like(target)
    tokens = Tokens(rows, dist.log_prob_target, dist.entropy, sampled(len(target)), target)
    states = taught if chosen.reads_teacher else None
    return step_weights(chosen, tokens.knowing(fused_probe(chosen, hidden.detach(), head.detach(), states, tokens)))


def gradients(total, *leaves):
    return torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 40), chunk=st.integers(1, 50))
def test_fused_equals_dense_in_value_and_gradient(spec, seed, n, chunk):
    chosen = objective(spec)
    hidden, head, taught, target = case(seed, n)
    states = taught if chosen.reads_teacher else None
    weights = weights_of(chosen, taught, target, hidden, head)
    fused = fused_loss(chosen, hidden, head, states, target, weights, chunk_bytes=chunk * LIVE_TENSORS * 4 * 13)
    teacher_logits = taught.hidden @ taught.head.t() if chosen.reads_teacher else None
    dense = loss(chosen, hidden @ head.t(), teacher_logits, target, sampled=sampled(n))
    assert torch.allclose(fused.total, dense.total, rtol=1e-12, atol=1e-14)
    for one, two in zip(gradients(fused.total, hidden, head), gradients(dense.total, hidden, head), strict=True):
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-13)
    assert all(torch.allclose(fused.terms[name], value) for name, value in dense.terms.items())
    assert all(torch.allclose(fused.watched[name], value) for name, value in dense.watched.items())


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_gradient_scales_with_what_comes_from_behind(spec):
    chosen = objective(spec)
    hidden, head, taught, target = case(0, 9)
    states = taught if chosen.reads_teacher else None
    total = fused_loss(chosen, hidden, head, states, target, weights_of(chosen, taught, target, hidden, head)).total
    plain = gradients(total, hidden, head)
    again = fused_loss(chosen, hidden, head, states, target, weights_of(chosen, taught, target, hidden, head)).total
    assert all(torch.allclose(3 * a, b) for a, b in zip(plain, gradients(3 * again, hidden, head), strict=True))


def test_a_frozen_head_still_lets_the_gradient_through():
    chosen = objective("kl")
    hidden, head, taught, target = case(1, 9)
    weights = weights_of(chosen, taught, target, hidden, head)
    (free,) = gradients(fused_loss(chosen, hidden, head, taught, target, weights).total, hidden)
    (frozen,) = gradients(fused_loss(chosen, hidden, head.detach(), taught, target, weights).total, hidden)
    assert torch.equal(free, frozen)


def test_parts_of_a_batch_add_up_to_the_whole():
    chosen = objective("atkd")
    hidden, head, taught, target = case(2, 20)
    weights = weights_of(chosen, taught, target, hidden, head)
    whole = fused_loss(chosen, hidden, head, taught, target, weights).total
    pieces = [
        fused_loss(
            chosen, hidden[a:b], head, TeacherStates(taught.hidden[a:b], taught.head), target[a:b], weights, start=a
        ).total
        for a, b in ((0, 3), (3, 11), (11, 20))
    ]
    assert torch.allclose(sum(pieces), whole)


def test_no_tokens_give_zero_with_a_graph():
    chosen = objective("kl")
    hidden, head, taught, target = case(3, 4)
    weights = weights_of(chosen, taught, target, hidden, head)
    none = slice(0, 0)
    part = fused_loss(
        chosen, hidden[none], head, TeacherStates(taught.hidden[none], taught.head), target[none], weights
    )
    assert part.total.item() == 0
    part.total.backward()


def test_a_plugin_that_hides_a_mean_is_told_so():
    class Hidden(type(objective("kl"))):
        name = "hidden_mean"

        def terms(self, student, teacher, tokens):
            return {"kl": super().terms(student, teacher, tokens)["kl"].mean()}

    hidden, head, taught, target = case(4, 6)
    with pytest.raises(ConfigError, match="one number a token"):
        loss(Hidden(), hidden @ head.t(), taught.hidden @ taught.head.t(), target)


def test_a_plugin_whose_weights_name_no_term_is_told_so():
    class Wrong(type(objective("kl"))):
        name = "wrong_name"

        def weights(self, tokens):
            return {"lk": torch.ones(len(tokens))}

    hidden, head, taught, target = case(5, 6)
    with pytest.raises(ConfigError, match="lk"):
        loss(Wrong(), hidden @ head.t(), taught.hidden @ taught.head.t(), target)
