"""torchdistill's KDLoss is forward KL with τ² and a share of cross-entropy, and drops τ² when that share is 0.

python -m pytest tests/reference/test_torchdistill.py
"""

from __future__ import annotations

import pytest
import torch

import kdbench
from kdbench.conventions import explain
from tests.reference import assert_equal, imported, value_and_gradient

KDLoss = imported("torchdistill", "torchdistill.losses.mid_level").KDLoss
EXACT = 1e-12  # float64 on both sides


def both(settings):
    """Return value and gradient of theirs and of ours on `[N, V]` logits; nothing can be ignored there."""
    rng = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(9, 13, generator=rng, dtype=torch.float64) for _ in range(2))
    target = torch.randint(0, 13, (9,), generator=rng)
    function = KDLoss("m", "output", "m", "output", **settings)

    def loss(logits):
        return function({"m": {"output": logits}}, {"m": {"output": teacher}}, target)

    spec = explain("torchdistill:kd", settings).spec
    ours = value_and_gradient(lambda logits: kdbench.loss(spec, logits, teacher, target).total, student)
    return value_and_gradient(loss, student), ours, spec


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_it_is_forward_kl_times_the_temperature_squared_and_a_share_of_cross_entropy(temperature, alpha):
    theirs, ours, spec = both({"temperature": temperature, "alpha": alpha})
    assert spec == {"name": "kl", "ce": alpha} | ({"tau": temperature, "tau_sq": True} if temperature != 1 else {})
    assert_equal(theirs, ours, EXACT)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_without_cross_entropy_the_square_is_gone(temperature):
    theirs, ours, spec = both({"temperature": temperature, "alpha": 0.0})
    assert not spec.get("tau_sq")
    assert_equal(theirs, ours, EXACT)


def test_a_weight_of_its_own_only_scales_the_loss():
    settings = {"temperature": 2.0, "alpha": 0.5, "beta": 1.5}
    theirs, ours, spec = both(settings)
    assert explain("torchdistill:kd", settings).same == "up to a constant factor" and spec["ce"] == 0.25
    assert_equal(theirs, tuple(2 * one for one in ours), EXACT)
