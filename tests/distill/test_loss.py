"""The fused loss is the dense loss: value and gradient, for every objective, however it is cut.

python -m pytest tests/distill/test_loss.py
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.api import Dist, Tokens
from kdbench.distill import loss as loss_module
from kdbench.distill.linear import linear_loss
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
@given(seed=st.integers(0, 10_000), n=st.integers(1, 40), chunk=st.integers(1, 50), piece=st.integers(1, 60))
def test_fused_equals_dense_in_value_and_gradient(spec, seed, n, chunk, piece):
    chosen = objective(spec)
    hidden, head, taught, target = case(seed, n)
    states = taught if chosen.reads_teacher else None
    weights = weights_of(chosen, taught, target, hidden, head)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "PIECE_BYTES", piece * 4 * 13)
        fused = fused_loss(chosen, hidden, head, states, target, weights, memory=chunk * LIVE_TENSORS * 4 * 13)
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


@pytest.mark.fault("E5", "no valid token: 0, with a graph")
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


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_linear_loss_is_the_loss_on_the_logits(spec, monkeypatch):
    """Value, terms and gradients of `kdbench.loss`, with sequences, a mask, several chunks and pieces of them."""
    monkeypatch.setattr(loss_module, "PIECE_BYTES", 2 * 4 * 13)
    chosen = objective(spec)
    hidden, head, taught, target = case(6, 24)
    hidden, target = hidden.detach().reshape(4, 6, -1).requires_grad_(), target.reshape(4, 6)
    teacher = taught.hidden.reshape(4, 6, -1)
    mask, mine = torch.ones(4, 6, dtype=torch.bool), torch.zeros(4, 6, dtype=torch.bool)
    mask[0, 4:] = mask[2, :3] = False
    mine[::2] = True
    linear = linear_loss(
        spec, hidden, head, teacher, taught.head, target, mask, memory=5 * LIVE_TENSORS * 4 * 13, sampled=mine
    )
    dense = loss(spec, hidden @ head.t(), teacher @ taught.head.t(), target, mask, mine)
    assert torch.allclose(linear.total, dense.total, rtol=1e-12, atol=1e-14) and linear.tokens == dense.tokens == 19
    for one, two in zip(gradients(linear.total, hidden, head), gradients(dense.total, hidden, head), strict=True):
        assert torch.allclose(one, two, rtol=1e-9, atol=1e-12)
    assert chosen.label and linear.terms.keys() == dense.terms.keys()


@pytest.mark.fault("E5", "a batch of which every token is masked, by any objective: 0, with a graph")
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_linear_loss_of_no_token_is_zero_with_a_graph(spec):
    hidden, head, taught, target = case(9, 4)
    none = torch.zeros_like(target, dtype=torch.bool)
    parts = linear_loss(spec, hidden, head, taught.hidden, taught.head, target, none)
    parts.total.backward()
    assert parts.total.item() == 0 == parts.tokens and not hidden.grad.any() and not head.grad.any()


def test_a_tied_head_gets_both_gradients():
    embedding = torch.randn(13, 5, dtype=torch.float64, requires_grad=True)
    _, _, taught, target = case(7, 9)
    hidden = torch.tanh(embedding[target])
    linear_loss("kl", hidden, embedding, taught.hidden, taught.head, target).total.backward()
    tied, embedding.grad = embedding.grad.clone(), None
    hidden = torch.tanh(embedding[target])
    loss("kl", hidden @ embedding.t(), taught.hidden @ taught.head.t(), target).total.backward()
    assert torch.allclose(tied, embedding.grad)


def test_a_low_rank_adapter_on_a_frozen_head_learns():
    base = torch.randn(13, 5, dtype=torch.float64)
    a, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((13, 2), (2, 5)))
    hidden, _, taught, target = case(8, 9)
    linear_loss("reverse_kl", hidden, base + a @ b, taught.hidden, taught.head, target).total.backward()
    assert a.grad.abs().max() > 0 and b.grad.abs().max() > 0 and hidden.grad.abs().max() > 0


def test_half_precision_states_give_gradients_of_their_own_type():
    hidden, head, taught, target = case(9, 40)
    hidden, head = (part.detach().bfloat16().requires_grad_() for part in (hidden, head))
    parts = linear_loss("kl", hidden, head, taught.hidden.bfloat16(), taught.head.bfloat16(), target)
    parts.total.backward()
    assert hidden.grad.dtype == head.grad.dtype == torch.bfloat16 and torch.isfinite(head.grad).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_hidden": None}, "needs teacher_hidden"),
        ({"student_head": torch.zeros(13, 4)}, r"expected student_head \[V, 5\]"),
        ({"teacher_head": torch.zeros(12, 7)}, "one vocabulary"),
        ({"targets": torch.zeros(8, dtype=torch.long)}, "leading shape"),
        ({"mask": torch.zeros(8)}, "mask of shape"),
    ],
)
def test_shapes_of_the_linear_loss_that_do_not_fit_are_named(change, message):
    hidden, head, taught, target = case(10, 9)
    given = {"student_hidden": hidden, "student_head": head, "teacher_hidden": taught.hidden}
    given |= {"teacher_head": taught.head, "targets": target} | change
    with pytest.raises(ConfigError, match=message):
        linear_loss("kl", **given)
