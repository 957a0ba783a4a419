"""What an objective must leave alone, and what it must survive: RNGs, inputs, excluded classes, empty batches."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy
import torch

from kdbench.api import WATCHED, Objective
from kdbench.checks.cases import (
    a_case,
    agree,
    demand,
    demand_finite,
    dense,
    dists,
    learn,
    prepare,
    rule,
    slope,
    terms,
)
from kdbench.distill.loss import loss
from kdbench.seeding import fenced


@rule
def inputs_are_left_alone(objective: Objective) -> None:
    """Neither logits, nor the views of `Dist`, nor what is known of tokens are changed in place."""
    case = a_case()
    tokens, pair = prepare(objective, case).tokens, dists(objective, case)
    seen = {f"tokens.{k}": v for k, v in vars(tokens).items() if isinstance(v, torch.Tensor)}
    seen |= {f"tokens.known[{name!r}]": value for name, value in tokens.known.items()}
    for side, dist in zip(("student", "teacher"), pair, strict=True):
        views = () if dist is None else ("logits", "target", "log_probs", "probs", "log_prob_target", "log_binary")
        seen |= {f"{side}.{view}": getattr(dist, view) for view in views}
    copies = {name: tensor.clone() for name, tensor in seen.items()}
    with torch.no_grad():
        for call in (objective.probe, objective.terms):
            call(*pair, tokens)
        for call in (objective.derive, objective.weights):
            call(tokens)
        if objective.can_split:
            objective.split(*pair, tokens)
    changed = [name for name, tensor in seen.items() if not torch.equal(tensor, copies[name])]
    hint = "look for a method ending in _"
    demand(not changed, f"inputs should be left alone, found {', '.join(changed)} changed; {hint}")


@rule
def the_global_rng_is_left_alone(objective: Objective) -> None:
    """Global randomness of torch, numpy and Python is neither advanced nor read; `tokens.uniform` is there for that."""
    totals, hint = [], "draw from tokens.uniform()"
    for seed in (1, 2):
        with fenced(seed, "conformance"):
            before = _rng_states()
            totals.append(dense(objective, a_case()).total.item())
            moved = [name for name, state in _rng_states().items() if state != before[name]]
        demand(not moved, f"global randomness should be left alone, found that of {', '.join(moved)} moved; {hint}")
    numbers = f"found {totals[0]:.9g} and {totals[1]:.9g}"
    demand(totals[0] == totals[1], f"the loss should be the same under two global seeds, {numbers}; {hint}")


def _rng_states() -> dict[str, Any]:
    _, keys, *rest = numpy.random.get_state()
    own, of_torch = random.getstate(), torch.get_rng_state().numpy().tobytes()
    return {"torch": of_torch, "numpy": (keys.tobytes(), *rest), "Python's random": own}


@rule
def the_same_call_gives_the_same_number(objective: Objective) -> None:
    """Three calls, another batch in between, give one loss to the last bit."""
    one, _, two, three = (dense(objective, a_case(seed)).total.item() for seed in (0, 1, 0, 0))
    hint = "look for randomness or the clock, and for what terms() keeps between calls"
    demand(one == two == three, f"one call should give one number, found {one!r}, {two!r} and {three!r}; {hint}")


@rule
def no_gradient_reaches_the_teacher(objective: Objective) -> None:
    """The teacher's logits have no gradient."""
    if not objective.reads_teacher:
        return
    case = a_case()
    grad = slope(lambda teacher: dense(objective, replace(case, teacher=teacher)).total, case.teacher)[1]
    demand(not grad.any(), "the teacher should have no gradient, found one")


@rule
def excluded_classes_count_nothing(objective: Objective) -> None:
    """Two more classes with logit −inf in both models change nothing."""
    case = a_case()
    never = torch.full((len(case.target), 2), -math.inf, dtype=torch.float64)
    wider = {side: torch.cat([getattr(case, side), never], -1) for side in ("student", "teacher")}
    (value, grad), (expected, narrow) = learn(objective, replace(case, **wider)), learn(objective, case)
    hint = "keep 0 · log 0 = 0 (kdbench.divergences.kl does), and take no mean over the vocabulary"
    agree(value, expected, "loss with two classes that both models exclude", hint)
    agree(grad, torch.cat([narrow, never.exp()], -1), "gradient with two classes that both models exclude", hint)


@rule
def a_class_that_one_model_excludes_gives_no_nan(objective: Objective) -> None:
    """Where one model alone excludes a class a term may be infinite, never NaN; finite terms have a finite slope."""
    case = a_case()
    excluded = torch.nn.functional.one_hot((case.target + 1) % case.student.shape[1], case.student.shape[1]).bool()
    for side in ("student", "teacher"):
        if side == "teacher" and not objective.reads_teacher:
            continue
        partial = replace(case, **{side: getattr(case, side).masked_fill(excluded, -math.inf)})
        weights = prepare(objective, partial)
        found, hint = terms(objective, partial, weights), "0 · inf hides in terms()"
        values = torch.stack([value for name, value in found.items() if not name.startswith(WATCHED)])
        demand(not values.isnan().any(), f"terms should not be NaN where the {side} alone excludes a class; {hint}")
        if values.isfinite().all():
            demand_finite(objective, partial, f"where the {side} alone excludes a class", hint)


@rule
def saturated_models_give_finite_numbers(objective: Objective) -> None:
    """Fp32 logits ten thousand times as large, in one model or in both."""
    case = a_case().to(torch.float32)
    for sure in (("student",), ("teacher",), ("student", "teacher")):
        saturated = replace(case, **{side: 1e4 * getattr(case, side) for side in sure})
        hint = "write it on log-probabilities: log(p), log(1 − p) and ratios overflow (Dist.log_binary does not)"
        demand_finite(objective, saturated, f"with {' and '.join(sure)} sure of one class", hint)


@rule
def one_valid_token_is_enough(objective: Objective) -> None:
    """A batch of a single token, from the student or not, has a finite loss."""
    for sampled in (False, True):
        case = replace(a_case(lengths=(1,)), sampled=torch.tensor([sampled]))
        demand_finite(objective, case, f"for one token (sampled={sampled})", "a group of tokens may be empty: 0/0")


@rule
def text_of_one_kind_is_enough(objective: Objective) -> None:
    """A batch without the student's text, or of it alone, has a finite loss."""
    for sampled in (False, True):
        uniform = replace(a_case(), sampled=torch.full((12,), sampled))
        demand_finite(objective, uniform, f"where sampled={sampled} everywhere", "a group of tokens may be empty: 0/0")


@rule
def no_valid_token_gives_zero(objective: Objective) -> None:
    """With every token masked the loss is 0, and so is its gradient."""
    case, taught = a_case(), a_case().teacher if objective.reads_teacher else None
    nothing = torch.zeros_like(case.sampled)
    value, grad = slope(lambda z: loss(objective, z, taught, case.target, nothing, case.sampled).total, case.student)
    demand(value == 0, f"the loss should be 0 with every token masked, found {value.item():.6g}")
    demand(not grad.any(), "the gradient should be 0 with every token masked, found others")
