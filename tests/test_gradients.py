"""The written-down gradients are autograd's, in value and slope, also where numbers are extreme.

python -m pytest tests/test_gradients.py
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench import gradients
from kdbench.divergences import Dist, jsd, jsd_of, kl, kl_of, kl_parts


def traced_parts(p, q):
    return kl(p.log_binary, q.log_binary), kl(p.log_probs_others, q.log_probs_others), p.log_binary[:, 1].exp()


FORMS = {
    "kl": (lambda p, q: (kl_of(p, q),), lambda p, q: (kl(p.log_probs, q.log_probs),)),
    "reverse_kl": (lambda p, q: (kl_of(q, p),), lambda p, q: (kl(q.log_probs, p.log_probs),)),
    "jsd": (lambda p, q: (jsd_of(p, q, 0.3),), lambda p, q: (jsd(p.log_probs, q.log_probs, 0.3),)),
    "parts": (lambda p, q: kl_parts(p, q), traced_parts),
    "reverse_parts": (lambda p, q: kl_parts(q, p), lambda p, q: traced_parts(q, p)),
}


def case(seed, scale=2.0, n=6, v=9, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(n, v, generator=rng, dtype=dtype) for _ in range(2))
    return student.requires_grad_(), teacher, torch.randint(0, v, (n,), generator=rng), rng


def value_and_slope(form, student, teacher, target, weights):
    student = student.detach().requires_grad_()
    found = form(Dist(teacher, target), Dist(student, target))
    total = sum((weight * value).sum() for weight, value in zip(weights, found, strict=False) if value.requires_grad)
    return found, torch.autograd.grad(total, student)[0]


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 10))
def test_value_and_slope_are_autograds(name, seed, scale):
    student, teacher, target, rng = case(seed, scale)
    weights = torch.randn(3, 6, generator=rng, dtype=torch.float64)
    written, traced = (value_and_slope(form, student, teacher, target, weights) for form in FORMS[name])
    for one, two in zip(written[0], traced[0], strict=True):
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-12)
    assert torch.allclose(written[1], traced[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", FORMS)
def test_excluded_classes_and_saturated_models_give_what_autograd_gives(name):
    for seed, (mine, theirs) in enumerate([(1, 1), (1e3, 1), (1, 1e3), (1e3, 1e3)]):
        student, teacher, target, _ = case(seed, v=9)
        target = target.clamp(max=6)
        hidden = torch.zeros(6, 2, dtype=torch.float64) - float("inf")
        student = torch.cat([student.detach()[:, :7] * mine, hidden], -1)
        teacher = torch.cat([teacher[:, :7] * theirs, hidden], -1)
        weights = torch.ones(3, 6, dtype=torch.float64)
        written, traced = (value_and_slope(form, student, teacher, target, weights) for form in FORMS[name])
        assert torch.isfinite(written[1]).all()
        assert torch.allclose(written[1], traced[1], rtol=1e-8, atol=1e-9)
        for one, two in zip(written[0], traced[0], strict=True):
            assert torch.allclose(one, two, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", FORMS)
def test_float32_keeps_its_digits(name):
    student, teacher, target, _ = case(3, v=2000)
    weights = torch.ones(3, 6, dtype=torch.float64)
    form = FORMS[name][0]
    exact = value_and_slope(form, student, teacher, target, weights)
    single = value_and_slope(form, student.detach().float(), teacher.float(), target, weights.float())
    for one, two in zip(single[0], exact[0], strict=True):
        assert one.dtype == torch.float32 and torch.allclose(one.double(), two, rtol=1e-5, atol=1e-6)
    assert torch.allclose(single[1].double(), exact[1], rtol=1e-4, atol=1e-7)


def test_a_teacher_that_learns_too_is_traced():
    student, teacher, target, _ = case(4)
    teacher.requires_grad_()
    kl_of(Dist(teacher, target), Dist(student, target)).sum().backward()
    assert teacher.grad.abs().max() > 0 and not gradients.applies(teacher, student)
