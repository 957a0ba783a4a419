"""torchtune's KL losses: reverse KL is ours; "forward KL" has forward KL's gradient, and the cross-entropy's value.

The file is loaded by its path, since importing the package needs torchao. It computes in float32 whatever comes in.

python -m pytest tests/reference/test_torchtune.py
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import kdbench
from kdbench.conventions import explain
from tests.reference import IGNORED, assert_equal, case, targets, value_and_gradient

FLOAT32 = 3e-6


def _load():
    found = importlib.util.find_spec("torchtune")
    if found is None or not found.submodule_search_locations:
        pytest.skip("torchtune is not installed", allow_module_level=True)
    path = Path(found.submodule_search_locations[0]) / "modules" / "loss" / "kd_losses.py"
    spec = importlib.util.spec_from_file_location("torchtune_kd_losses", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


losses = _load()


def both(function, spec):
    """Return value and gradient of theirs and of ours, with some labels ignored."""
    student, teacher, labels = case()
    target, mask = targets(labels)
    theirs = value_and_gradient(lambda logits: function(logits, teacher, labels), student)
    return theirs, value_and_gradient(lambda logits: kdbench.loss(spec, logits, teacher, target, mask).total, student)


def teacher_entropy():
    _, teacher, labels = case()
    log_probs = teacher[labels != IGNORED].log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1).mean()


def test_the_forward_loss_has_our_gradient_and_is_larger_by_the_teacher_s_entropy():
    found = explain("torchtune:forward_kl")
    theirs, ours = both(losses.ForwardKLLoss(IGNORED), found.spec)
    assert found.same == "gradient only"
    assert_equal(theirs[1:], ours[1:], FLOAT32)
    assert theirs[0] > ours[0] + 0.5
    assert_equal((theirs[0] - teacher_entropy(),), ours[:1], FLOAT32)


def test_the_reverse_loss_is_ours():
    assert_equal(*both(losses.ReverseKLLoss(IGNORED), explain("torchtune:reverse_kl").spec), FLOAT32)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_symmetric_loss_weighs_the_forward_part_by_its_ratio(ratio):
    found = explain("torchtune:symmetric_kl", {"sym_kd_ratio": ratio})
    theirs, ours = both(losses.SymmetricKLLoss(ratio, IGNORED), found.spec)
    assert found.same == ("gradient only" if ratio else "value and gradient")
    assert_equal(theirs[1:], ours[1:], FLOAT32)
    assert_equal((theirs[0] - ratio * teacher_entropy(),), ours[:1], FLOAT32)


def test_the_chunked_forms_are_the_same_functions():
    student, teacher, labels = case()
    for chunked, plain in (
        (losses.ForwardKLWithChunkedOutputLoss(5, IGNORED), losses.ForwardKLLoss(IGNORED)),
        (losses.ReverseKLWithChunkedOutputLoss(5, IGNORED), losses.ReverseKLLoss(IGNORED)),
        (losses.SymmetricKLWithChunkedOutputLoss(5, 0.3, IGNORED), losses.SymmetricKLLoss(0.3, IGNORED)),
    ):
        parts = [list(one.chunk(5, dim=1)) for one in (student, teacher)]
        torch.testing.assert_close(chunked(*parts, labels), plain(student, teacher, labels), rtol=FLOAT32, atol=0)
