"""TRL's generalised JSD, dense, on a top-k, and chunked, is the specification that `kdbench.conventions` names.

python -m pytest tests/reference/test_trl.py
"""

from __future__ import annotations

import pytest
import torch

import kdbench
from kdbench.conventions import TABLE, explain
from kdbench.distill.loss import TeacherStates, Tokens, fused_loss, step_weights
from tests.reference import IGNORED, LENGTH, VOCABULARY, assert_equal, case, imported, targets, value_and_gradient

gkd = imported("trl", "trl.experimental.gkd")
iw_opd = imported("trl", "trl.experimental.iw_opd")
chunked = imported("trl", "trl.kernels.chunked_divergence")
trl = imported("trl")
dense_jsd = gkd.GKDTrainer.generalized_jsd_loss
sparse_jsd = iw_opd.IWOPDTrainer.generalized_jsd_loss
BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
EXACT = 1e-12  # float64 on both sides


def ours(spec, student, teacher, labels):
    target, mask = targets(labels)
    return value_and_gradient(lambda logits: kdbench.loss(spec, logits, teacher, target, mask).total, student)


@pytest.mark.parametrize(
    ("name", "config"),
    [("trl:gkd", "GKDConfig"), ("trl:iw_opd", "IWOPDConfig"), ("trl:distillation", "DistillationConfig")],
)
def test_the_table_has_trl_s_own_defaults(name, config):
    found = next(getattr(module, config) for module in (gkd, iw_opd, trl) if hasattr(module, config))
    fields = found.__dataclass_fields__
    first = {"distillation_objective": "iw_opd"}
    assert {key: fields[key].default for key in TABLE[name].knobs} == {
        key: first.get(key, knob.default) for key, knob in TABLE[name].knobs.items()
    }


@pytest.mark.parametrize("beta", BETAS)
def test_the_gkd_trainer_s_divergence_is_ours(beta):
    student, teacher, labels = case()
    theirs = value_and_gradient(lambda logits: dense_jsd(logits, teacher, labels, beta=beta), student)
    assert_equal(theirs, ours({"name": "jsd", "beta": beta}, student, teacher, labels), EXACT)
    assert_equal(theirs, ours(explain("trl:gkd", {"beta": beta}).spec, student, teacher, labels), EXACT)


@pytest.mark.parametrize("beta", BETAS)
def test_the_distillation_trainer_s_temperature_has_no_square(beta):
    student, teacher, labels = case()
    spec = explain("trl:distillation", {"beta": beta, "temperature": 2.0}).spec
    theirs = value_and_gradient(lambda logits: dense_jsd(logits, teacher, labels, beta, temperature=2.0), student)
    assert_equal(theirs, ours(spec, student, teacher, labels), EXACT)


def test_without_labels_trl_divides_by_the_batch_size_and_not_by_tokens():
    student, teacher, _ = case()
    target = torch.zeros(student.shape[:2], dtype=torch.long)
    theirs = dense_jsd(student, teacher, beta=0.5)
    torch.testing.assert_close(theirs, LENGTH * kdbench.loss("jsd", student, teacher, target).total, rtol=EXACT, atol=0)


def test_with_the_number_of_tokens_trl_divides_by_that():
    student, teacher, labels = case()
    value, _ = ours("jsd", student, teacher, labels)
    theirs = dense_jsd(student, teacher, labels, num_items_in_batch=100)
    torch.testing.assert_close(theirs, value * (labels != IGNORED).sum() / 100, rtol=EXACT, atol=0)


def test_nothing_but_ignored_tokens_gives_zero_on_both_sides():
    student, teacher, labels = case()
    labels.fill_(IGNORED)
    theirs = value_and_gradient(lambda logits: dense_jsd(logits, teacher, labels), student)
    assert_equal(theirs, ours("jsd", student, teacher, labels), 0.0)


@pytest.mark.parametrize("lmbda", [0.0, 1.0])
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("k", [1, 4, VOCABULARY - 1, VOCABULARY])
def test_forward_kl_on_the_teacher_s_top_k_is_ours_with_and_without_the_tail(k, temperature, tail, lmbda):
    student, teacher, labels = case()
    settings = {"loss_top_k": k, "loss_add_tail": tail, "temperature": temperature, "lmbda": lmbda, "beta": 0.0}
    spec = explain("trl:iw_opd", {"distillation_objective": "jsd", **settings}).spec
    assert spec["support"] == ("topk+tail" if tail else "topk_both")
    theirs = value_and_gradient(
        lambda logits: sparse_jsd(logits, teacher, labels, 0.0, temperature, top_k=k, add_tail=tail), student
    )
    assert_equal(theirs, ours(spec, student, teacher, labels), 1e-10)  # theirs takes 1 − Σ p for the tail


@pytest.mark.parametrize(("beta", "name"), [(0.5, "jsd"), (1.0, "reverse_kl")])
def test_on_a_support_of_the_student_s_the_other_betas_are_another_function(beta, name):
    """Reverse KL keeps the student's top-k and JSD the union: no specification here, and a lower bound of the whole."""
    student, teacher, labels = case()
    assert explain("trl:iw_opd", {"distillation_objective": "jsd", "beta": beta, "loss_top_k": 4}).spec is None
    whole, _ = ours(name, student, teacher, labels)
    assert 0 < sparse_jsd(student, teacher, labels, beta, top_k=4) < whole - 0.01
    torch.testing.assert_close(sparse_jsd(student, teacher, labels, beta, top_k=0), whole, rtol=EXACT, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", BETAS)
def test_the_chunked_kernel_s_value_and_gradients_are_those_of_our_fused_loss(beta, temperature):
    rng = torch.Generator().manual_seed(1)
    n, v = 23, 40
    hidden, teacher_hidden = torch.randn(n, 8, generator=rng), torch.randn(n, 12, generator=rng)
    head, teacher_head = torch.randn(v, 8, generator=rng), torch.randn(v, 12, generator=rng)
    leaves = [one.clone().requires_grad_() for one in (hidden, head)]
    sides = (*leaves, None, teacher_hidden, teacher_head, None)
    divergence, _ = chunked.ChunkedDivergenceFunction.apply(*sides, beta, temperature, 1.0, None, 1.0, None)
    theirs = (divergence.mean().detach(), *torch.autograd.grad(divergence.mean(), leaves))

    chosen = kdbench.objective({"name": "jsd", "beta": beta, "tau": temperature})
    weights = step_weights(chosen, Tokens(sequence=torch.zeros(n, dtype=torch.long)))
    again = [one.clone().requires_grad_() for one in (hidden, head)]
    states = TeacherStates(teacher_hidden, teacher_head)
    total = fused_loss(chosen, *again, states, torch.zeros(n, dtype=torch.long), weights, memory=12 * 4 * v * 5).total
    assert_equal(theirs, (total.detach(), *torch.autograd.grad(total, again)), 1e-5)  # float32 on both sides
