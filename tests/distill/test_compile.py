"""An objective's terms by `torch.compile`: the loss and gradient of the terms as they are written.

The tracer and its backward pass run here for every objective; the kernels of the default back end take a C++ compiler
minutes, and on a GPU have not been run by us.
"""

from __future__ import annotations

import pytest
import torch

from kdbench.distill import loss as fused
from kdbench.distill.linear import linear_loss
from tests.distill.test_loss import SPECS, case, sampled


@pytest.fixture
def backend(monkeypatch, request):
    monkeypatch.setattr(fused, "BACKEND", request.param)
    fused.terms_compiled_for.cache_clear()
    yield request.param
    fused.terms_compiled_for.cache_clear()
    torch.compiler.reset()


def both(spec):
    """(value, gradients) as written and compiled, over chunks of two sizes."""
    found = []
    for compiled in (False, True):
        hidden, head, taught, target = case(3, 11)
        sides = (taught.hidden, taught.head)
        parts = linear_loss(
            spec, hidden, head, *sides, target, sampled=sampled(11), memory=4 * 12 * 4 * 13, compiled=compiled
        )
        parts.total.backward()
        found.append((parts.total.detach(), hidden.grad, head.grad))
    return found


AT_EVERY_COMMIT = ("kl", "atkd")  # tracing takes seconds each


@pytest.mark.parametrize("backend", ["aot_eager"], indirect=True)
@pytest.mark.parametrize(
    "spec", [pytest.param(one, id=str(one), marks=[] if one in AT_EVERY_COMMIT else pytest.mark.slow) for one in SPECS]
)
def test_compiled_terms_give_the_same_loss_and_gradient(spec, backend):
    written, compiled = both(spec)
    for ours, theirs in zip(written, compiled, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["inductor"], indirect=True)
@pytest.mark.parametrize("spec", ["kl", "atkd"])
def test_compiled_kernels_give_the_same_loss_and_gradient(spec, backend):
    written, compiled = both(spec)
    for ours, theirs in zip(written, compiled, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
