"""Liger's fused linear JSD is our fused loss, in value and in both gradients. Its Triton kernels need a GPU.

python -m pytest tests/reference/test_liger.py
"""

from __future__ import annotations

import pytest
import torch

import kdbench
from kdbench.conventions import explain
from kdbench.distill.loss import TeacherStates, Tokens, fused_loss, step_weights
from tests.reference import IGNORED, assert_equal, imported

Loss = imported("liger_kernel", "liger_kernel.chunked_loss").LigerFusedLinearJSDLoss
N, V = 23, 19


def states(dtype: torch.dtype):
    """Return hidden states and heads of student and teacher, and labels of which some are ignored."""
    rng = torch.Generator().manual_seed(0)
    made = [torch.randn(n, h, generator=rng, dtype=dtype) for n, h in ((N, 6), (V, 6), (N, 9), (V, 9))]
    labels = torch.randint(0, V, (N,), generator=rng)
    labels[::4] = IGNORED
    return made, labels


def value_and_gradients(loss, made):
    leaves = [one.clone().requires_grad_() for one in made[:2]]
    value = loss(*leaves)
    return (value.detach(), *torch.autograd.grad(value, leaves))


def ours(spec, made, labels):
    chosen, valid = kdbench.objective(spec), labels != IGNORED
    teacher, target = TeacherStates(made[2][valid], made[3]), labels[valid]
    weights = step_weights(chosen, Tokens(sequence=torch.zeros_like(target)))
    memory = 12 * 4 * V * 5  # a few tokens a chunk

    def loss(hidden, head):
        return fused_loss(chosen, hidden[valid], head, teacher, target, weights, memory=memory).total

    return value_and_gradients(loss, made)


def liger(settings, made, labels):
    function = Loss(**settings, ignore_index=IGNORED, compiled=False, chunk_size=4)
    return value_and_gradients(lambda hidden, head: function(hidden, head, made[2], made[3], labels), made)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_soft_part_alone_is_the_jsd_with_the_teacher_weighed_by_beta(beta, temperature):
    made, labels = states(torch.float64)
    settings = {"beta": beta, "temperature": temperature, "weight_hard_loss": 0.0, "weight_soft_loss": 1.0}
    theirs = liger(settings, made, labels)
    found = ours(explain("liger:fused_linear_jsd", settings).spec, made, labels)
    assert_equal(theirs[:1], found[:1], 1e-6)  # Liger adds values up in float32, whatever comes in
    assert_equal(theirs[1:], found[1:], 1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_by_default_half_of_it_is_cross_entropy_at_temperature_one(temperature):
    made, labels = states(torch.float64)
    settings = {"temperature": temperature}
    spec = explain("liger:fused_linear_jsd", settings).spec
    assert spec["ce"] == 0.5
    assert_equal(liger(settings, made, labels), ours(spec, made, labels), 1e-6)  # its cross-entropy is in float32


def test_weights_that_do_not_add_up_to_one_only_scale_the_loss():
    made, labels = states(torch.float64)
    settings = {"weight_hard_loss": 1.0, "weight_soft_loss": 3.0}
    found = explain("liger:fused_linear_jsd", settings)
    assert found.same == "up to a constant factor"
    theirs = tuple(one / 4 for one in liger(settings, made, labels))
    assert_equal(theirs, ours(found.spec, made, labels), 1e-6)


def test_it_agrees_in_float32_too():
    made, labels = states(torch.float32)
    settings = {"beta": 0.1, "weight_hard_loss": 0.0, "weight_soft_loss": 1.0}
    spec = explain("liger:fused_linear_jsd", settings).spec
    assert_equal(liger(settings, made, labels), ours(spec, made, labels), 1e-5)
