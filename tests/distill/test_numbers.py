"""Numbers at the edge: gradients that are not finite, losses that explode, teachers that exclude classes, bfloat16.

python -m pytest tests/distill/test_numbers.py
"""

from __future__ import annotations

import math

import pytest
import torch

from kdbench.api import Objective, Source
from kdbench.distill import checkpoint, jumps, train
from kdbench.distill.loss import TeacherStates, fused_loss, loss
from kdbench.errors import Diverged
from kdbench.registry import objective, objectives
from tests.distill.conftest import VOCABULARY, tiny
from tests.distill.test_loss import SPECS, gradients, weights_of
from tests.distill.test_train import PLAN, learn, live, weights

# --- a finite loss with a gradient that is not finite ----------------------------------------------------------------


class Poison(torch.autograd.Function):
    """The identity, whose slope is NaN when the switch is on."""

    on = False

    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, slope):
        return slope * (float("nan") if Poison.on else 1.0)


class Poisoned(Objective):
    """Cross-entropy, poisoned from the fourth step on."""

    name = "poisoned"
    source = Source("none", 2026)
    needs_teacher = False

    def at(self, step):
        Poison.on = step.index == 3
        return self

    def terms(self, student, teacher, tokens):
        return {"ce": Poison.apply(-student.log_prob_target)}


@pytest.mark.fault("E2", "a NaN gradient of a finite loss: the step is not applied, step and last loss are said")
def test_a_gradient_that_is_not_finite_ends_as_diverged_and_is_not_applied(blocks, tmp_path):
    model, told = tiny(0), []
    options = {"seed": 0, "vocabulary": VOCABULARY, "precision": "float32", "folder": tmp_path}
    with pytest.raises(Diverged, match="gradient norm nan: not finite") as error:
        train.train(model, Poisoned(), blocks, None, PLAN, on_step=told.append, **options)
    assert error.value.step == 4 and error.value.last_loss == told[-1]["loss"]
    assert len(told) == 3 and error.value.history == told
    saved = checkpoint.load(tmp_path)
    assert saved.step == 3 == PLAN.checkpoint_steps
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, saved.tensors[f"model/{name}"]), "the fourth step has left no trace"


# --- a loss that explodes and stays finite ---------------------------------------------------------------------------


@pytest.mark.fault("E3", "a learning rate of 1000: the loss explodes and stays finite, and the result says so")
def test_a_loss_that_explodes_and_stays_finite_is_flagged(blocks, tmp_path):
    wild = train.Plan(**{**PLAN.__dict__, "lr": 1e3})
    history = learn(tiny(0), "sft", blocks, None, tmp_path / "a", plan=wild)
    assert all(math.isfinite(record["loss"]) for record in history)
    told = jumps.facts(history)["loss_jumps"]
    assert told["loss"] > 5 * told["median"] and told["first_step"] > 1 and told["largest"] >= told["loss"]
    assert f"the loss jumped to {told['loss']:,.4g} at step {told['first_step']}" in jumps.in_words(told)
    assert jumps.facts(learn(tiny(0), "sft", blocks, None, tmp_path / "b")) == {}


def history_of(losses):
    return [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]


@pytest.mark.parametrize(
    ("losses", "first"),
    [
        ([6.0, 5.0, 4.0, 3.0, 2.0], None),
        ([6.0, 900.0, 1200.0], 2),
        ([2.0] * 100 + [9.9] + [2.0] * 10, None),
        ([2.0] * 100 + [10.1] + [2.0] * 10, 101),
        ([0.0, 0.1, 0.3, 0.6, 0.9], None),  # begins at 0 by design, as TAID does
        ([0.01] * 20 + [0.9], None),
        ([-0.4, 0.4] * 20 + [2.1], 41),
        ([-3.0] * 20 + [9.1], 21),
        ([5.0], None),
        ([], None),
    ],
)
def test_a_jump_is_four_usual_sizes_and_a_nat_above_the_median(losses, first):
    found = jumps.facts(history_of(losses)).get(jumps.RECORDED, {})
    assert found.get("first_step") == first


# --- classes that a teacher excludes ---------------------------------------------------------------------------------

EXACT = {
    "kl": lambda p, q: (p * (p / q).log()).nan_to_num(0.0),
    "jsd": lambda p, q: sum((a * (2 * a / (p + q)).log()).nan_to_num(0.0) / 2 for a in (p, q)),
    "tvd": lambda p, q: (p - q).abs() / 2,
}
DIFFERENCES = {"csd", "minillm"}  # of infinities: not a number, as the formula says
EVERY = [*objectives(), *(f"{base}+atkd" for base in ("reverse_kl", "jsd", "tvd", "ab", "f_distill"))]


def excluding(far: float, targets_too: bool):
    """Student's and teacher's logits `[24, 13]` and targets; two fifths of the teacher's classes at `far`."""
    rng = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(24, 13, generator=rng, dtype=torch.float64) for _ in range(2))
    target = torch.randint(0, 13, (24,), generator=rng)
    excluded = torch.rand(24, 13, generator=rng) < 0.4
    excluded[:, 12] = False
    if not targets_too:
        excluded.scatter_(1, target[:, None], False)
    return student, (2 * teacher).masked_fill(excluded, far), target


def value_and_slope(spec, student, teacher, target, dtype=torch.float64):
    chosen = objective(spec)
    logits = student.to(dtype).clone().requires_grad_()
    taught = teacher.to(dtype) if chosen.reads_teacher else None
    total = loss(chosen, logits, taught, target, sampled=torch.arange(len(target)) % 2 == 0).total
    return total.item(), gradients(total, logits)[0]


@pytest.mark.parametrize("targets_too", [False, True], ids=["", "targets-too"])
@pytest.mark.parametrize("spec", EVERY)
@pytest.mark.fault("E4", "a teacher's logits of −inf, with and without the target among them, over the registry")
def test_classes_that_a_teacher_excludes_count_as_the_float64_limit_says(spec, targets_too):
    """The limit: logits ever further down in float64. Where it is infinite, so is the loss, and a run says diverged."""
    far, further = (value_and_slope(spec, *excluding(logit, targets_too))[0] for logit in (-1e4, -1e5))
    found, slope = value_and_slope(spec, *excluding(-math.inf, targets_too), dtype=torch.float32)
    if further == pytest.approx(far, rel=1e-9):
        assert found == pytest.approx(far, rel=1e-5) and slope.isfinite().all()
    elif spec in DIFFERENCES:
        assert not math.isfinite(found)
    else:
        assert found > 1e20


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.fault("E4", "zero times log zero against the formula in float64")
def test_zero_times_log_zero_is_zero(name):
    student, teacher, target = excluding(-math.inf, True)
    expected = EXACT[name](teacher.softmax(-1), student.softmax(-1)).sum(-1).mean()
    assert value_and_slope(name, student, teacher, target, torch.float32)[0] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.fault("E4", "reverse KL against a teacher that excludes a class: infinite, so diverged, not NaN weights")
def test_an_infinite_loss_ends_as_diverged_and_leaves_the_student_as_it_was(teacher_model, blocks, tmp_path):
    teacher_model.get_output_embeddings().weight.data[7] = -math.inf * torch.ones(24)
    model, before = tiny(0), weights(tiny(0))
    with pytest.raises(Diverged, match="not finite"):
        learn(model, "reverse_kl", blocks, live(teacher_model, blocks), tmp_path)
    assert torch.equal(weights(model), before)


# --- bfloat16 against float32 ----------------------------------------------------------------------------------------


def states(dtype: torch.dtype):
    """Hidden states and heads of both models as a real pair has them, 96 tokens over 61 classes, in one precision."""
    rng = torch.Generator().manual_seed(3)
    hidden, head, taught, taught_head = (
        torch.randn(*shape, generator=rng) for shape in ((96, 32), (61, 32), (96, 48), (61, 48))
    )
    target = torch.randint(0, 61, (96,), generator=rng)
    pair = (hidden, 0.3 * head, taught, 0.3 * taught_head)
    return *(tensor.to(torch.bfloat16).to(dtype) for tensor in pair), target


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.fault("E10", "bfloat16 hidden states and heads against the same in float32, over the registry")
def test_bfloat16_heads_give_the_loss_and_the_gradient_of_float32(spec):
    """Stated tolerance: 2 % of the loss, and gradients at a cosine of .99 or more: logits keep eight bits."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        hidden, head, taught, taught_head, target = states(dtype)
        leaves = (hidden.requires_grad_(), head.requires_grad_())
        chosen, teacher = objective(spec), TeacherStates(taught, taught_head)
        given = weights_of(chosen, teacher, target, hidden, head)
        total = fused_loss(chosen, *leaves, teacher if chosen.reads_teacher else None, target, given).total
        assert total.dtype == torch.float32, "softmax and sums stay in float32"
        found[dtype] = (total.item(), *(grad.float().flatten() for grad in gradients(total, *leaves)))
    exact, half = found[torch.float32], found[torch.bfloat16]
    assert half[0] == pytest.approx(exact[0], rel=0.02)
    for one, other in zip(exact[1:], half[1:], strict=True):
        assert torch.cosine_similarity(one, other, dim=0) > 0.99


@pytest.mark.parametrize("spec", ["kl", "reverse_kl+atkd"])
@pytest.mark.fault("E10", "a whole training in both precisions")
def test_a_training_in_bfloat16_ends_near_that_in_float32(spec, teacher_model, blocks, tmp_path):
    """Stated tolerance: every step's loss within 3 %."""
    losses = {}
    for precision in ("float32", "bfloat16"):
        history = train.train(
            tiny(0), objective(spec), blocks, live(teacher_model, blocks), PLAN, seed=5, vocabulary=VOCABULARY,
            precision=precision, folder=tmp_path / precision,
        )  # fmt: skip
        losses[precision] = [record["loss"] for record in history]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.03)
    assert losses["bfloat16"] != losses["float32"]
