"""What must hold of any objective's numbers, one check a rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from kdbench.api import WATCHED, Objective
from kdbench.checks.cases import (
    Case,
    a_case,
    agree,
    demand,
    demand_slope,
    dense,
    dists,
    learn,
    prepare,
    rule,
    slope,
    terms,
    total,
)
from kdbench.distill.loss import LIVE_TENSORS, TeacherStates, fused_loss
from kdbench.seeding import generator


@rule
def terms_and_weights_give_one_number_a_token(objective: Objective) -> None:
    """Terms and weights are `[N]`, a weight belongs to a term, and one term at least is no watched one."""
    case = a_case()
    weights = prepare(objective, case)
    found, count = terms(objective, case, weights), len(case.target)
    demand(any(not name.startswith(WATCHED) for name in found), f"terms() should give a term, found {sorted(found)}")
    for name, values in found.items():
        hint = "sum over the vocabulary (-1) alone, and leave the mean over tokens to the weights"
        demand(values.shape == (count,), f"term {name!r} should be [{count}], found {list(values.shape)}; {hint}")
    strangers = sorted(set(weights.named) - set(found) - {"*"})
    demand(not strangers, f"weights() should name terms of {sorted(found)}, found {strangers}")
    bad = [name for name, values in weights.named.items() if not values.isfinite().all()]
    demand(not bad, f"weights should be finite, found others in {bad}; a group of tokens may be empty")


@rule
def both_models_matter(objective: Objective) -> None:
    """The student has a gradient; and another teacher makes another loss, if the objective reads one."""
    case = a_case()
    value, grad = learn(objective, case)
    demand(grad.any(), "the gradient in the student's logits should not be 0 everywhere; look for a detach()")
    if not objective.reads_teacher or getattr(objective, "ce", 0) == 1:
        return
    other = dense(objective, replace(case, teacher=a_case(seed=1).teacher)).total
    hint = "compare with the teacher, or declare needs_signal = False"
    demand(other != value, f"another teacher should make another loss, found {value.item():.6g} with both; {hint}")


@rule
def zero_when_student_equals_teacher(objective: Objective) -> None:
    """A divergence is 0 at equality; a term named `ce` is no divergence and is left out."""
    if not objective.reads_teacher:
        return
    case = a_case()
    parts = dense(objective, replace(case, student=case.teacher))
    for name, value in parts.terms.items():
        hint = "a cross-entropy is no divergence: subtract the teacher's entropy, or name the term 'ce'"
        if name != "ce":
            agree(value, torch.zeros(()), f"term {name!r} of a student equal to its teacher", hint)


@rule
def never_negative(objective: Objective) -> None:
    """No token has a negative loss, far from equality or near it."""
    for case in (a_case(seed) for seed in range(4)):
        for nearness in (1.0, 0.01):
            near = replace(case, student=case.teacher + nearness * (case.student - case.teacher))
            weights, tokens = prepare(objective, near), len(near.target)
            found = {k: v for k, v in terms(objective, near, weights).items() if not k.startswith(WATCHED)}
            share = weights.named.get("*", torch.full((tokens,), 1 / tokens))
            least = sum(weights.named.get(name, share) * values for name, values in found.items()).min().item()
            hint = "look for a wrong sign, a forgotten part, or distributions that do not sum to 1"
            demand(least >= -1e-10, f"a token's loss should not be negative, found {least:.6g}; {hint}")


@rule
def gradient_agrees_with_finite_differences(objective: Objective) -> None:
    """Autograd's slope of the loss is the true one; weights and what was probed are held."""
    case = a_case(lengths=(2, 3), vocabulary=5)
    weights = prepare(objective, case)
    demand_slope(lambda student: total(objective, replace(case, student=student), weights), case.student, "gradient")


@rule
def split_gradient_agrees_with_finite_differences(objective: Objective) -> None:
    """The same of the parts that a wrapper takes of it; an exemption holds for the wrapper's gradient too."""
    if not objective.can_split:
        return
    case = a_case(lengths=(2, 3), vocabulary=5)
    tokens = prepare(objective, case).tokens

    def value(student: Tensor) -> Tensor:
        split = objective.split(*dists(objective, replace(case, student=student)), tokens)
        return (split.target + 2 * split.diversity).mean()

    demand_slope(value, case.student, "gradient of target + 2 · diversity")


@rule
def gradient_sums_to_zero_over_the_vocabulary(objective: Objective) -> None:
    """Logits enter through a softmax alone, so that a token's gradient sums to 0."""
    grad = learn(objective, a_case())[1]
    hint = "use log_probs or probs instead of raw logits"
    agree(grad.sum(-1), torch.zeros(grad.shape[0]), "sum of a token's gradient", hint)


@rule
def a_constant_added_to_logits_changes_nothing(objective: Objective) -> None:
    """A constant for each token, in both models, leaves the loss alone."""
    case = a_case()
    shift = 10 * torch.randn(2, len(case.target), 1, generator=generator(0, "shift"), dtype=torch.float64)
    shifted = dense(objective, replace(case, student=case.student + shift[0], teacher=case.teacher + shift[1])).total
    hint = "use log_probs or probs instead of raw logits, and softmax over the last dimension"
    agree(shifted, dense(objective, case).total, "loss with a constant added to each token's logits", hint)


@rule
def token_order_does_not_matter(objective: Objective) -> None:
    """Tokens of a sequence in another order, each with all that is known of it, make the same loss."""
    case = a_case()
    shuffled = case.sequence + torch.rand(len(case.target), generator=generator(0, "order"))
    demand_same(objective, case, case.take(shuffled.argsort()), "the tokens of a sequence")


@rule
def sequence_order_does_not_matter(objective: Objective) -> None:
    """Sequences in another order make the same loss."""
    case = a_case()
    moved = case.take(torch.cat([(case.sequence == row).nonzero()[:, 0] for row in (2, 0, 1)]))
    demand_same(objective, case, replace(moved, sequence=(moved.sequence + 1) % 3), "the sequences")


def demand_same(objective: Objective, one: Case, other: Case, what: str) -> None:
    """Raise `Broken` unless two orders of the same tokens have one loss."""
    expected, found = (total(objective, case, prepare(objective, case)) for case in (one, other))
    hint = "weights may not depend on the place at which a token stands in the batch"
    agree(found, expected, f"loss with {what} in another order", hint)


@rule
def padding_side_does_not_matter(objective: Objective) -> None:
    """Pads on the left, on the right, or none at all: one loss."""
    case = a_case()
    right = dense(objective, case).total
    agree(dense(objective, case, left=True).total, right, "loss padded on the left", "only valid tokens may count")
    plain = total(objective, case, prepare(objective, case))
    agree(right, plain, "loss padded on the right", "only valid tokens may count")


@rule
def masked_tokens_do_not_matter(objective: Objective) -> None:
    """What stands at a masked position, even NaN, changes neither value nor gradient."""
    case = a_case()
    (value, grad), (clean, expected) = (learn(objective, case, padding=pad) for pad in (float("nan"), 0.0))
    agree(value, clean, "loss with NaN at masked positions", "only valid tokens may count")
    agree(grad, expected, "gradient with NaN at masked positions", "only valid tokens may count")


@rule
def a_term_knows_its_own_token_alone(objective: Objective) -> None:
    """A token's terms, and what is probed of it, are the same without the others, which only `derive` may know."""
    case = a_case()
    tokens, single = prepare(objective, case).tokens, [slice(at, at + 1) for at in range(len(case.target))]
    for call in (objective.probe, objective.terms):
        alone = [call(*dists(objective, case, one), tokens.part(one)) for one in single]
        for name, values in call(*dists(objective, case), tokens).items():
            expected = torch.cat([one[name].reshape(-1) for one in alone])
            hint = "look for a mean over tokens or a softmax over dimension 0, and leave means to the weights"
            agree(values, expected, f"{name!r} of a token among others (expected: alone)", hint)


@rule
def micro_batches_add_up_to_the_whole(objective: Objective) -> None:
    """The batch in uneven parts, with the weights of the whole, has the loss and the gradient of the whole."""
    case = a_case()
    weights, cuts = prepare(objective, case), (0, 1, 5, 6, len(case.target))
    windows = [slice(begin, end) for begin, end in pairwise(cuts)]

    def made_of(parts: list[slice]) -> Callable[[Tensor], Tensor]:
        return lambda student: sum(total(objective, replace(case, student=student), weights, part) for part in parts)

    whole, parts = slope(made_of([slice(None)]), case.student), slope(made_of(windows), case.student)
    hint = "a mean hides in terms(): return one number a token, and divide by nothing that depends on the part"
    agree(parts[0], whole[0], "sum of the micro-batches' losses (expected: the whole)", hint)
    agree(parts[1], whole[1], "gradient of the micro-batches (expected: of the whole)", hint)


@rule
def twice_the_batch_has_the_same_weight(objective: Objective) -> None:
    """A batch held twice has about the weights' sum of one: the loss does not grow with the batch."""
    case = a_case()
    twice = case.take(torch.arange(len(case.target)).repeat(2))
    second = torch.arange(len(twice.target)) >= len(case.target)
    twice = replace(twice, sequence=twice.sequence + 3 * second, number=torch.arange(len(twice.target)))
    once, doubled = (prepare(objective, some).named for some in (case, twice))
    for name, row in once.items():
        one, two = row.double().abs().sum().item(), doubled[name].double().abs().sum().item()
        hint = "divide by the number of tokens that count"
        same = 0.7 * one <= two <= 1.4 * one
        demand(same, f"weights of {name!r} should sum to {one:.4g} for a batch held twice, found {two:.4g}; {hint}")


@rule
def fused_equals_dense(objective: Objective) -> None:
    """Chunk by chunk from hidden states, and micro-batch by micro-batch, as `kdbench.loss` on logits."""
    case, draws = a_case(), generator(0, "states")
    count, vocabulary = case.student.shape
    hidden, head, taught, taught_head = (
        torch.randn(rows, 4, generator=draws, dtype=torch.float64) for rows in (count, vocabulary) * 2
    )
    case = replace(case, student=hidden @ head.t(), teacher=taught @ taught_head.t())
    leaves = [leaf.clone().requires_grad_() for leaf in (hidden, head) * 2]
    expected = dense(objective, replace(case, student=leaves[0] @ leaves[1].t())).total
    weights, found = prepare(objective, case), torch.zeros((), dtype=torch.float64)
    for window in (slice(0, 7), slice(7, count)):
        states = TeacherStates(taught[window], taught_head) if objective.reads_teacher else None
        begin, memory = window.start, 3 * 4 * LIVE_TENSORS * vocabulary
        parts = fused_loss(objective, leaves[2][window], leaves[3], states, case.target[window], weights, begin, memory)
        found = found + parts.total
    hint = "terms() may not depend on what else is in the chunk, nor on the identity of its arguments"
    agree(found, expected, "fused loss (expected: dense)", hint)
    dense_grads, fused_grads = torch.autograd.grad(expected, leaves[:2]), torch.autograd.grad(found, leaves[2:])
    for name, one, other in zip(("hidden states", "head"), dense_grads, fused_grads, strict=True):
        agree(other, one, f"fused gradient in the {name} (expected: dense)", hint)


@rule
def terms_keep_the_precision_of_the_logits(objective: Objective) -> None:
    """Float64 in, float64 out; and nothing below fp32."""
    for dtype in (torch.float64, torch.float32):
        case = a_case().to(dtype)
        for name, values in terms(objective, case, prepare(objective, case)).items():
            least = torch.promote_types(values.dtype, dtype) == values.dtype
            demand(least, f"term {name!r} of {dtype} logits should be {dtype}, found {values.dtype}; look for a cast")


@rule
def fp32_agrees_with_float64(objective: Objective) -> None:
    """Value and gradient in fp32 are those of float64 to five digits."""
    case = a_case().to(torch.float32)
    found, expected = learn(objective, case), learn(objective, case.to(torch.float64))
    hint = "look for 1 − p, log(p) or a cast: write it on log-probabilities"
    agree(found[0], expected[0], "loss in fp32 (expected: float64)", hint, 2e-5)
    agree(found[1], expected[1], "gradient in fp32 (expected: float64)", hint, 2e-5)


@rule
def half_precision_logits_are_raised(objective: Objective) -> None:
    """Logits in bf16 or fp16 make the loss of the same logits in fp32."""
    for dtype in (torch.bfloat16, torch.float16):
        case = a_case().to(dtype)
        found, expected = dense(objective, case).total, dense(objective, case.to(torch.float32)).total
        demand(found.dtype == torch.float32, f"loss of {dtype} logits should be float32, found {found.dtype}")
        agree(found, expected, f"loss of {dtype} logits (expected: the same in fp32)", "do not cast back", 1e-6)
