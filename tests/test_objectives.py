"""The objectives are the published functions: frozen numbers, torch's own KL, float64 gradients, and their identities.

python -m pytest tests/test_objectives.py
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kdbench
from kdbench.api import Dist, Measured, Step, Tokens
from kdbench.errors import ConfigError
from kdbench.registry import objectives
from kdbench.testing import check

TEACHER = torch.tensor(
    [[2, 1, 0, -1], [0, 3, 1, 0], [1, 1, 2, 0], [4, 0, 0, 1], [0.5, -0.5, 1, 2]], dtype=torch.float64
)
STUDENT = torch.tensor([[1, 1, 0.5, 0], [0.5, 2, 0, 1], [2, 0, 1, 0], [3, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.float64)
TARGET = torch.tensor([0, 1, 0, 0, 2])
SPLIT = [
    *("kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd", "jeffreys", "ab", "dkd"),
    *("imitkd", "f_distill", "gkd", "distillm", "skd"),
]
EXACT = [
    *("kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "dkd", "imitkd", "gkd", "distillm", "skd"),
    *({"name": "jsd", "beta": beta, "normalised": scaled} for beta in (0.0, 0.1, 0.9, 1.0) for scaled in (False, True)),
    *({"name": "f_distill", "variant": variant} for variant in ("kl", "rkl", "js")),
    *({"name": "kl", "tau": 2.0, "tau_sq": True}, {"name": "gkd", "beta": 0.1}, {"name": "skd", "beta": 1.0}),
]


def random_case(seed: int, n: int = 7, v: int = 11, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(n, v, generator=rng, dtype=dtype) for _ in range(2))
    return student, teacher, torch.randint(0, v, (n,), generator=rng)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("kl", (0.21813953 + 0.19390146 + 0.40173498 + 0.07753505 + 0.13157972) / 5),
        ("reverse_kl", (0.23958247 + 0.28506091 + 0.43589758 + 0.13138764 + 0.14273681) / 5),
        ({"name": "jsd", "beta": 0.1}, 0.018489994312),
        ("jsd", 0.053626107205),
        ({"name": "jsd", "beta": 0.9}, 0.021326621869),
        ("skew_kl", 0.167326499546),
        ("skew_reverse_kl", 0.184959310764),
        ("tvd", 0.268346452910),
        ("ab", 0.274096013924),
        ("akl", 0.228016437261),
    ],
)
def test_divergences_equal_the_frozen_numbers(spec, expected):
    assert kdbench.loss(spec, STUDENT, TEACHER, TARGET).total.item() == pytest.approx(expected, abs=5e-9)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("atkd", 0.294850425292),
        ("kl+atkd", 0.294850425292),
        ("reverse_kl+atkd", 0.319745077668),
        ({"name": "atkd", "grouping": "token_mean"}, 0.161886158531),
    ],
)
def test_atkd_equals_the_official_function_to_ten_digits(spec, expected):
    assert kdbench.loss(spec, STUDENT, TEACHER, TARGET).total.item() == pytest.approx(expected, abs=1e-10)


def test_kl_agrees_with_torch():
    student, teacher, target = random_case(0)
    expected = torch.nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    assert torch.allclose(kdbench.loss("kl", student, teacher, target).total, expected.mean(), rtol=1e-14)


def test_sft_agrees_with_torch():
    student, _, target = random_case(1)
    expected = torch.nn.functional.cross_entropy(student, target)
    assert torch.allclose(kdbench.loss("sft", student, None, target).total, expected, rtol=1e-14)


@pytest.mark.parametrize("spec", EXACT, ids=str)
def test_the_split_adds_up_to_the_divergence(spec):
    student, teacher, target = random_case(3)
    objective = kdbench.objective(spec)
    q, p = Dist(student, target), Dist(teacher, target)
    tokens = Tokens(torch.zeros_like(target), p.log_prob_target, sampled=target % 2 == 0, target=target)
    split = objective.split(q, p, tokens)
    whole = sum(objective.terms(q, p, tokens).values())
    assert torch.allclose(split.target + split.coefficient * split.diversity, whole, rtol=1e-12)


@pytest.mark.parametrize(("n", "easy"), [(1, 0), (2, 0), (3, 1), (4, 1), (10, 4), (11, 5)])
def test_atkd_splits_at_the_lower_median(n, easy):
    tokens = Tokens(torch.zeros(n, dtype=torch.long), torch.linspace(-3, -0.1, n, dtype=torch.float64))
    weights = kdbench.objective("atkd").weights(tokens)
    assert int((weights["tkd"] == 0).sum()) == easy
    assert torch.allclose(weights["dkd"].sum(), torch.tensor(1.0, dtype=torch.float64))


def test_atkd_with_every_token_hard_is_the_mean_of_both_parts():
    spec = {"name": "atkd", "hard_fraction": 1.0, "lam": 0.0}
    tkd = (0.19667864 + 0.12027916 + 0.35850613 + 0.04856700 + 0.04946003) / 5
    dkd = (0.06026890 + 0.38702951 + 0.05380818 + 0.36417533 + 0.10526540) / 5
    assert kdbench.loss(spec, STUDENT, TEACHER, TARGET).total.item() == pytest.approx(tkd + dkd, abs=1e-8)


def test_atkd_with_every_token_easy_teaches_diversity_alone():
    spec = {"name": "atkd", "hard_fraction": 0.0}
    dkd = (0.06026890 + 0.38702951 + 0.05380818 + 0.36417533 + 0.10526540) / 5
    assert kdbench.loss(spec, STUDENT, TEACHER, TARGET).total.item() == pytest.approx(dkd, abs=1e-8)


def test_atkd_survives_ties_that_make_the_released_code_crash():
    teacher = torch.zeros(6, 5, dtype=torch.float64)
    student, _, target = random_case(9, n=6, v=5)
    assert torch.isfinite(kdbench.loss("atkd", student, teacher, target).total)


def test_atkd_ranks_within_each_sequence_when_told_to():
    student, teacher, target = random_case(10, n=12)
    spec = {"name": "atkd", "scope": "sequence"}
    rows = [part.reshape(3, 4, *part.shape[1:]) for part in (student, teacher, target)]
    together = kdbench.loss(spec, *rows)
    hard = [int((_unc(t, y) >= _unc(t, y).sort().values[1]).sum()) for t, y in zip(rows[1], rows[2], strict=True)]
    assert hard == [3, 3, 3]
    assert not torch.allclose(together.total, kdbench.loss("atkd", *rows).total)


def _unc(logits, target):
    return 1 - logits.softmax(-1).gather(-1, target[:, None])[:, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_logits_are_raised_to_fp32(dtype):
    student, teacher, target = random_case(12)
    total = kdbench.loss("kl", student.to(dtype), teacher.to(dtype), target).total
    expected = kdbench.loss("kl", student.to(dtype).double(), teacher.to(dtype).double(), target).total
    assert total.dtype == torch.float32 and torch.allclose(total.double(), expected, rtol=1e-5)


def test_temperature_and_its_square_are_what_they_say():
    student, teacher, target = random_case(13)
    plain = kdbench.loss("kl", student / 2, teacher / 2, target).total
    assert torch.allclose(kdbench.loss({"name": "kl", "tau": 2}, student, teacher, target).total, plain)
    squared = {"name": "kl", "tau": 2, "tau_sq": True}
    assert torch.allclose(kdbench.loss(squared, student, teacher, target).total, 4 * plain)


def test_terms_add_up_to_the_total():
    parts = kdbench.loss("atkd", STUDENT, TEACHER, TARGET)
    assert set(parts.terms) == {"tkd", "dkd"}
    assert torch.allclose(sum(parts.terms.values()), parts.total)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("klx", "Did you mean 'kl'"),
        ({"name": "kl", "tua": 2}, "Did you mean 'tau'"),
        ({"name": "kl", "tau": 0}, "greater than 0"),
        ({"name": "atkd", "hard_fraction": 1.5}, "less than or equal to 1"),
        ("sft+atkd", "cannot be decoupled"),
        ("atkd+kl", "wraps nothing"),
        ({"name": "kl+atkd", "base": "kl"}, "twice"),
        ({"tau": 2}, "a name or a mapping"),
        ("", "unknown objective"),
    ],
)
def test_a_wrong_specification_says_what_is_wrong(spec, message):
    with pytest.raises(ConfigError, match=message.replace("'", "."), check=None):
        kdbench.objective(spec)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ConfigError, match="teacher_logits"):
        kdbench.loss("kl", STUDENT, TEACHER[:, :3], TARGET)
    with pytest.raises(ConfigError, match="needs teacher_logits"):
        kdbench.loss("kl", STUDENT, None, TARGET)
    with pytest.raises(ConfigError, match="targets"):
        kdbench.loss("kl", STUDENT, TEACHER, TARGET[:3])
    with pytest.raises(ConfigError, match="mask"):
        kdbench.loss("kl", STUDENT, TEACHER, TARGET, torch.ones(3))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), beta=st.floats(0.01, 0.99))
def test_jsd_is_symmetric_and_bounded(seed, beta):
    student, teacher, target = random_case(seed)
    there = kdbench.loss({"name": "jsd", "beta": beta}, student, teacher, target).total
    back = kdbench.loss({"name": "jsd", "beta": 1 - beta}, teacher, student, target).total
    both = sum(kdbench.loss(name, student, teacher, target).total for name in ("kl", "reverse_kl"))
    entropy = -(beta * math.log(beta) + (1 - beta) * math.log(1 - beta))
    assert torch.allclose(there, back, atol=1e-12)
    assert 0 <= there <= min(entropy, beta * (1 - beta) * both) + 1e-12


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.floats(0.01, 0.99))
def test_skewed_divergences_mirror_each_other_and_are_bounded(seed, alpha):
    student, teacher, target = random_case(seed)
    forward = kdbench.loss({"name": "skew_kl", "alpha": alpha}, student, teacher, target).total
    mirrored = kdbench.loss({"name": "skew_reverse_kl", "alpha": alpha}, teacher, student, target).total
    plain = kdbench.loss("kl", student, teacher, target).total
    assert torch.allclose(forward, mirrored, atol=1e-12)
    assert 0 <= forward <= min(-math.log(alpha), (1 - alpha) * plain) + 1e-12


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_total_variation_obeys_pinsker_and_its_split_bounds_it(seed):
    student, teacher, target = random_case(seed, n=1)
    tvd = kdbench.loss("tvd", student, teacher, target).total
    for name in ("kl", "reverse_kl"):
        assert 2 * tvd**2 <= kdbench.loss(name, student, teacher, target).total + 1e-12
    tokens = Tokens(torch.zeros_like(target), target=target)
    split = kdbench.objective("tvd").split(Dist(student, target), Dist(teacher, target), tokens)
    assert split.target[0] - 1e-12 <= tvd <= split.target[0] + split.coefficient[0] * split.diversity[0] + 1e-12


def test_limits_reach_the_divergence_that_they_name():
    student, teacher, target = random_case(14)

    def value(spec):
        return kdbench.loss(spec, student, teacher, target).total

    assert torch.allclose(value({"name": "skew_kl", "alpha": 0.0}), value("kl"))
    assert torch.allclose(value({"name": "skew_reverse_kl", "alpha": 0.0}), value("reverse_kl"))
    assert torch.allclose(value({"name": "jsd", "beta": 0.0}), value("kl"))
    assert torch.allclose(value({"name": "jsd", "beta": 1.0}), value("reverse_kl"))
    assert torch.allclose(value({"name": "jsd", "beta": 1e-7, "normalised": True}), value("kl"), rtol=1e-3)
    assert torch.allclose(value({"name": "jsd", "beta": 1 - 1e-7, "normalised": True}), value("reverse_kl"), rtol=1e-3)
    assert torch.allclose(value({"name": "jeffreys", "lam": 1.0}), value("kl"))
    assert torch.allclose(value({"name": "jeffreys", "lam": 0.0}), value("reverse_kl"))


# --- the closed forms of the gradients, [N, V] at the logits of single tokens ----------------------------------------


def _closed_form(name, p, q, target):
    """Return the gradient at the student's logits as `objectives.md` states it, from probabilities in float64."""
    if name == "kl":
        return q - p
    if name == "reverse_kl":
        return q * ((q / p).log() - (q * (q / p).log()).sum(-1, keepdim=True))
    if name == "jsd":
        gap = (q / (0.3 * p + 0.7 * q)).log()
        return 0.7 * q * (gap - (q * gap).sum(-1, keepdim=True))
    if name == "skew_kl":
        ratio = 0.9 * p / (0.1 * p + 0.9 * q)
        return -q * (ratio - (q * ratio).sum(-1, keepdim=True))
    if name == "skew_reverse_kl":
        mixture = 0.9 * p + 0.1 * q
        slope = (q / mixture).log() + 1 - 0.1 * q / mixture
        return q * (slope - (q * slope).sum(-1, keepdim=True))
    if name == "detached":
        slope = (q / (0.9 * p + 0.1 * q)).log()
        return q * (slope - (q * slope).sum(-1, keepdim=True))
    assert name == "tvd"
    sign = (q - p).sign()
    return 0.5 * q * (sign - (q * sign).sum(-1, keepdim=True))


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("kl", "kl"),
        ("reverse_kl", "reverse_kl"),
        ("jsd", {"name": "jsd", "beta": 0.3}),
        ("skew_kl", "skew_kl"),
        ("skew_reverse_kl", "skew_reverse_kl"),
        ("detached", {"name": "skew_reverse_kl", "detach_mixture": True}),
        ("tvd", "tvd"),
        ("reverse_kl", "csd"),  # the student's weights on both sides
        ("kl", {"name": "taid", "t_start": 1.0}),
    ],
)
def test_gradients_are_the_closed_forms(name, spec):
    student, teacher, target = random_case(20)
    student.requires_grad_()
    (7 * kdbench.loss(spec, student, teacher, target).total).backward()
    expected = _closed_form(name, teacher.softmax(-1), student.detach().softmax(-1), target)
    assert torch.allclose(student.grad, expected, atol=1e-12)


@pytest.mark.parametrize("base", ["kl", "reverse_kl"])
def test_the_gradients_of_both_parts_are_the_closed_forms(base):
    student, teacher, target = random_case(21)
    student.requires_grad_()
    q, p = Dist(student, target), Dist(teacher, target)
    split = kdbench.objective(base).split(q, p, Tokens(torch.zeros_like(target), target=target))
    (of_target,) = torch.autograd.grad(split.target.sum(), student, retain_graph=True)
    (of_diversity,) = torch.autograd.grad(split.diversity.sum(), student)
    one_hot = torch.nn.functional.one_hot(target, 11).double()
    p, q = teacher.softmax(-1), student.detach().softmax(-1)
    p_g, q_g = ((dist * one_hot).sum(-1, keepdim=True) for dist in (p, q))
    p_hat, q_hat = p * (1 - one_hot) / (1 - p_g), q * (1 - one_hot) / (1 - q_g)
    if base == "kl":
        expected = (q_g - p_g) * (one_hot - q_hat), q_hat - p_hat
    else:
        gap = torch.where(one_hot > 0, 0.0, (q_hat / p_hat).log())
        slope = q_g * (1 - q_g) * (torch.logit(q_g) - torch.logit(p_g))
        expected = slope * (one_hot - q_hat), q_hat * (gap - (q_hat * gap).sum(-1, keepdim=True))
    assert torch.allclose(of_target, expected[0], atol=1e-12)
    assert torch.allclose(of_diversity, expected[1], atol=1e-12)
    assert of_diversity.gather(-1, target[:, None]).abs().max() == 0


# --- limits, symmetries and identities -------------------------------------------------------------------------------


def value(spec, student, teacher, target, **options):
    return kdbench.loss(spec, student, teacher, target, **options).total


def slope(spec, student, teacher, target, **options):
    leaf = student.clone().requires_grad_()
    return torch.autograd.grad(value(spec, leaf, teacher, target, **options), leaf)[0]


def test_the_alpha_beta_divergence_reaches_its_limits_and_is_symmetric():
    student, teacher, target = case = random_case(22)
    p, q = teacher.softmax(-1), student.softmax(-1)

    def ab(alpha, beta):
        return value({"name": "ab", "alpha": alpha, "beta": beta}, *case)

    assert torch.allclose(ab(1.0, 0.0), value("kl", *case)) and torch.allclose(ab(0.0, 1.0), value("reverse_kl", *case))
    assert torch.allclose(ab(0.5, 0.5), 4 * (1 - (p * q).sqrt().sum(-1)).mean())
    assert torch.allclose(ab(1.0, 1.0), 0.5 * (p - q).square().sum(-1).mean())
    assert torch.allclose(ab(0.3, 0.8), value({"name": "ab", "alpha": 0.8, "beta": 0.3}, teacher, student, target))
    assert torch.allclose(ab(0.4, 1e-7), ab(0.4, 0.0), rtol=1e-5)  # 1/α², not the 1/α of the released code
    assert torch.allclose(ab(1e-7, 0.4), ab(0.0, 0.4), rtol=1e-5)


def test_todi_has_the_value_of_both_directions_and_another_gradient():
    case = random_case(23)
    assert torch.allclose(value("todi", *case), value("kl", *case) + value("reverse_kl", *case))
    assert not torch.allclose(slope("todi", *case), slope("kl", *case) + slope("reverse_kl", *case), atol=1e-3)


def test_csd_is_half_the_variance_of_the_logit_gap():
    student, teacher, target = random_case(24)
    q, gap = student.softmax(-1), student - teacher
    variance = (q * gap.square()).sum(-1) - (q * gap).sum(-1).square()
    assert torch.allclose(value("csd", student, teacher, target), 0.5 * variance.mean())


def test_csd_with_other_weights_has_the_mean_of_both_published_gradients():
    student, teacher, target = random_case(25)
    spec = {"name": "csd", "first": "uniform", "second": "teacher"}
    gap, u, p = student - teacher, torch.full_like(student, 1 / 11), teacher.softmax(-1)
    expected = 0.5 * (u * (gap - (p * gap).sum(-1, keepdim=True)) + p * (gap - (u * gap).sum(-1, keepdim=True)))
    assert torch.allclose(7 * slope(spec, student, teacher, target), expected)


def test_taid_at_its_start_has_no_gradient_and_its_target_moves_to_the_teacher():
    case = random_case(26)
    assert slope({"name": "taid", "t_start": 0.0}, *case).abs().max() < 1e-12
    taid, state = kdbench.objective("taid"), {}
    seen = []
    for index in range(100):
        step = Step(index, 100, state)
        seen.append(taid.at(step).t_start)
        state = taid.observe(step, Measured(1.0 / (index + 1), {"target_ce": 1.0 / (index + 1)}))
    assert seen == sorted(seen) and seen[0] == 0.4 and seen[-1] > 0.95 and state["t"] <= 1


def test_akl_weighs_both_directions_by_where_the_gap_lies():
    p = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
    target = torch.tensor([0])
    same_head = torch.tensor([[0.6, 0.1, 0.3]], dtype=torch.float64)  # all of the gap lies in the tail
    assert torch.allclose(
        value("akl", same_head.log(), p.log(), target), value("reverse_kl", same_head.log(), p.log(), target)
    )


def test_dkd_with_the_teachers_own_weight_is_forward_kl():
    student, teacher, target = (part[:1] for part in random_case(27))
    uncertainty = 1 - teacher.softmax(-1)[0, target[0]].item()
    spec = {"name": "dkd", "alpha": 1.0, "beta": uncertainty}
    assert torch.allclose(value(spec, student, teacher, target), value("kl", student, teacher, target))
    warm = kdbench.objective({"name": "dkd", "warmup": 0.5})
    assert [round(warm.at(Step(i, 8)).beta, 3) for i in range(5)] == [0.125, 0.25, 0.375, 0.5, 0.5]


@pytest.mark.parametrize("spec", ["kl", "skew_kl", "imitkd"])
def test_a_sparse_teacher_reaches_the_full_one_where_it_keeps_every_class(spec):
    case = random_case(28)
    for support, size in (("topk", 11), ("topk_both", 11), ("topk+tail", 10), ("topk+tail", 11)):
        sparse = {"name": spec, "support": support, "support_size": size}
        assert torch.allclose(value(sparse, *case), value(spec, *case))
        assert torch.allclose(slope(sparse, *case), slope(spec, *case), atol=1e-12)


def test_the_gradients_of_sparse_teachers_are_what_they_are_said_to_be():
    student, teacher, target = random_case(29)
    p, q = teacher.softmax(-1), student.softmax(-1)
    top, index = p.topk(3, -1)
    kept = torch.zeros_like(p).scatter(-1, index, top / top.sum(-1, keepdim=True))
    assert torch.allclose(
        7 * slope({"name": "kl", "support": "topk", "support_size": 3}, student, teacher, target), q - kept
    )
    tail = {"name": "kl", "support": "topk+tail", "support_size": 3}
    parts = kdbench.loss(tail, student, teacher, target)
    assert parts.total < value("kl", student, teacher, target)
    assert torch.allclose(parts.watched["retained_mass"], top.sum(-1).mean())


def test_a_sampled_teacher_is_right_on_average_in_value_and_gradient():
    student, teacher, target = (part[:1].expand(20_000, *part.shape[1:]) for part in random_case(30))
    spec = {"name": "kl", "support": "sampled", "support_size": 8}
    assert value(spec, student, teacher, target).item() == pytest.approx(
        value("kl", student, teacher, target).item(), rel=0.01
    )
    found = slope(spec, student, teacher, target).sum(0)
    assert torch.allclose(found, student[0].softmax(-1) - teacher[0].softmax(-1), atol=0.005)


# --- whose text a token comes from -----------------------------------------------------------------------------------

HALF = torch.tensor([True, False, True, True, False, False, False])


def _means(spec, student, teacher, target):
    """Return a divergence's mean over the student's tokens and over the others."""
    mine = value(spec, student[HALF], teacher[HALF], target[HALF])
    return mine, value(spec, student[~HALF], teacher[~HALF], target[~HALF])


def test_f_distill_takes_each_half_on_its_own_text():
    case = random_case(31)
    tvd = _means("tvd", *case)
    assert torch.allclose(value("f_distill", *case, sampled=HALF), 0.5 * tvd[0] + 0.5 * tvd[1])
    js = {"name": "f_distill", "variant": "js", "beta": 0.3}
    on_mine = _means({"name": "skew_reverse_kl", "alpha": 0.3}, *case)[0]
    on_theirs = _means({"name": "skew_kl", "alpha": 0.7}, *case)[1]
    assert torch.allclose(value(js, *case, sampled=HALF), 0.3 * on_mine + 0.7 * on_theirs)


def test_distillm2_weighs_sequences_not_tokens():
    student, teacher, target = (part[:6].reshape(3, 2, *part.shape[1:]) for part in random_case(32))
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    mine = torch.tensor([[True, True], [True, True], [False, False]])
    found = value("distillm2", student, teacher, target, mask=mask, sampled=mine)
    rows = [(student[i][mask[i]], teacher[i][mask[i]], target[i][mask[i]]) for i in range(3)]
    of_student = (value("skew_reverse_kl", *rows[0]) + value("skew_reverse_kl", *rows[1])) / 2
    assert torch.allclose(found, of_student + value("skew_kl", *rows[2]))


def test_opd_has_the_gradient_of_reverse_kl_on_average_with_and_without_baseline():
    """E_{y~q}[(log q − log p) ∇ log q] = ∇ KL(q‖p): the expectation is taken exactly, over every token."""
    student, teacher, _ = (part[:1] for part in random_case(33))
    every = torch.arange(11)
    q = student.softmax(-1)[0]
    for spec in ("opd", {"name": "opd", "baseline": "value"}):
        found = sum(q[y] * slope(spec, student, teacher, every[y : y + 1], sampled=torch.tensor([True])) for y in every)
        assert torch.allclose(found, slope("reverse_kl", student, teacher, every[:1]), atol=1e-12)


def test_minillm_pays_a_token_for_what_comes_after_it():
    """The advantage against a plain double loop over Σ γ^(t'−t) r_t' / (tokens left), whitened."""
    student, teacher, target = (part[:6].reshape(2, 3, *part.shape[1:]) for part in random_case(34))
    made = kdbench.objective("minillm")
    flat = [part.reshape(6, *part.shape[2:]) for part in (student, teacher, target)]
    q, p = Dist(flat[0], flat[2]), Dist(flat[1], flat[2])
    tokens = Tokens(torch.tensor([0, 0, 0, 1, 1, 1]), p.log_prob_target, sampled=torch.ones(6).bool(), target=flat[2])
    tokens = tokens.knowing(made.probe(q, p, tokens))
    reward = ((p.log_prob_target - q.log_prob_target) / 0.5).reshape(2, 3)
    plain = [[sum(0.95 ** (k - t) * reward[s, k] for k in range(t, 3)) / (3 - t) for t in range(3)] for s in range(2)]
    plain = torch.tensor(plain, dtype=torch.float64).flatten()
    whitened = (plain - plain.mean()) / (plain.var(correction=0) + 1e-8).sqrt()
    assert torch.allclose(made.derive(tokens)["advantage"], whitened)


def test_minillm_stops_at_the_clip():
    student, teacher, target = random_case(35)
    made, everywhere = kdbench.objective({"name": "minillm", "lm_weight": 0.0}), torch.ones(7).bool()
    q, p = Dist(student, target), Dist(teacher, target)
    tokens = Tokens(torch.zeros(7, dtype=torch.long), p.log_prob_target, sampled=everywhere, target=target)
    known = {"log_q": q.log_prob_target - 5, "importance": torch.ones(7).double(), "advantage": torch.ones(7).double()}
    student.requires_grad_()
    far = made.terms(Dist(student, target), p, tokens.knowing(known))["policy"]
    assert torch.equal(far.detach(), torch.full_like(far, -1.2))
    assert not torch.autograd.grad(far.sum(), student)[0].any()


def test_distillm_turns_to_student_text_where_the_held_out_loss_rises():
    made, state = kdbench.objective({"name": "distillm", "validations": 4}), {}
    losses = iter([3.0, 2.9, 3.1, 3.15, 3.25])
    for index in range(40):
        state = dict(made.observe(Step(index, 40, state), Measured(1.0, {}, lambda: next(losses))))
    assert state["phi"] == pytest.approx(0.2) and next(losses, None) is None
    now = made.at(Step(30, 40, state)).trajectories
    assert now.chance == pytest.approx(0.2) and now.fresh == pytest.approx(0.25)


def test_imitkd_goes_from_the_data_to_the_student():
    paper = kdbench.objective("imitkd@paper")
    shares = [paper.at(Step(index, 100)).trajectories.chance for index in (0, 50, 99)]
    assert shares[0] == 0 and shares == sorted(shares) and shares[-1] > 0.99
    assert paper.trajectories.reads_fixed and not kdbench.objective("imitkd").trajectories.reads_fixed
    student, teacher, target = random_case(36)
    expected = torch.nn.functional.cross_entropy(student, teacher.argmax(-1))
    assert torch.allclose(value("imitkd@paper", student, teacher, target), expected)


# --- which tokens count ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [spec for spec in SPLIT if spec not in ("tvd", "jeffreys", "ab", "f_distill")])
def test_atkd_with_every_factor_kept_and_no_groups_is_its_base(base):
    case = random_case(40)
    spec = {"name": f"{base}+atkd", "keep_unc": True, "tkd_on": "all", "dkd_on": "all", "grouping": "none"}
    assert torch.allclose(value(spec, *case, sampled=HALF), value(base, *case, sampled=HALF))
    assert torch.allclose(slope(spec, *case, sampled=HALF), slope(base, *case, sampled=HALF), atol=1e-12) or base in (
        "jsd", "gkd",  # the inner weight is held constant by definition
    )  # fmt: skip


@pytest.mark.parametrize("base", SPLIT)
def test_atkd_round_any_base_can_take_its_text_alone(base):
    case = random_case(41)
    assert torch.allclose(value({"name": f"{base}+atkd", "wrap": "data"}, *case), value("atkd", *case))


def test_the_teaching_modes_of_the_analysis_are_settings():
    case = random_case(42)

    def terms(**settings):
        return kdbench.loss({"name": "atkd", "grouping": "none", **settings}, *case).terms

    split = {on: terms(tkd_on=on, dkd_on=on) for on in ("hard", "easy", "all", "none")}
    for part in ("tkd", "dkd"):
        assert torch.allclose(split["hard"][part] + split["easy"][part], split["all"][part])
        assert split["none"][part] == 0 and split["hard"][part] > 0
    assert torch.allclose(sum(terms(tkd_on="all", keep_unc=True).values()), value("kl", *case))


@pytest.mark.parametrize("spec", ["gkd@atkd_release", "jeffreys@atkd_release"])
def test_the_jsd_of_atkds_released_code_is_a_weighted_sum_of_both_kls(spec):
    case = random_case(48)
    assert torch.allclose(value(spec, *case), 0.9 * value("kl", *case) + 0.1 * value("reverse_kl", *case))
    assert kdbench.objective(spec).label == spec
    with pytest.raises(ConfigError, match="goes with the JSD"):
        kdbench.objective({"name": "gkd", "form": "weighted_kl", "normalised": True})


def test_the_released_variant_is_the_mean_of_sequences_taken_alone():
    rows = [part[:6].reshape(2, 3, *part.shape[1:]) for part in random_case(43)]
    alone = [value("atkd", *(part[i] for part in rows)) for i in range(2)]
    assert torch.allclose(value("atkd@release", *rows), sum(alone) / 2)
    assert kdbench.objective("reverse_kl+atkd@release").label == "reverse_kl+atkd@release"


def test_exact_ties_make_exactly_the_share_hard():
    teacher = torch.zeros(7, 5, dtype=torch.float64)
    _, _, target = random_case(44, n=7, v=5)
    tokens = Tokens(torch.zeros(7, dtype=torch.long), Dist(teacher, target).log_prob_target)
    exact, threshold = (kdbench.objective({"name": "atkd", "ties": ties}) for ties in ("exact", "threshold"))
    assert int((exact.weights(tokens)["tkd"] > 0).sum()) == 4
    assert int((threshold.weights(tokens)["tkd"] > 0).sum()) == 7


def test_sekd_learns_from_the_students_most_uncertain_tokens_of_each_sequence():
    rows = [part.reshape(2, 5, *part.shape[1:]) for part in random_case(45, n=10)]
    entropy = torch.distributions.Categorical(logits=rows[0]).entropy()
    chosen = torch.zeros(2, 5, dtype=torch.bool).scatter(1, entropy.topk(2, 1).indices, True)
    assert torch.allclose(value({"name": "kl+sekd", "keep": 0.4}, *rows), value("kl", *rows, mask=chosen))


def test_adakd_takes_the_hardest_tokens_each_at_its_own_temperature():
    student, teacher, target = random_case(46)
    difficulty = (0.5 * (student.softmax(-1).sqrt() - teacher.softmax(-1).sqrt()).square().sum(-1)).sqrt()
    kept = difficulty.topk(3).indices
    tau = torch.exp(-0.6 * torch.tanh(torch.log(difficulty / difficulty[kept].median())))[kept]
    expected = torch.stack([
        t**2 * value({"name": "reverse_kl", "tau": t.item()}, student[i : i + 1], teacher[i : i + 1], target[i : i + 1])
        for t, i in zip(tau, kept, strict=True)
    ]).mean()  # fmt: skip
    assert torch.allclose(value({"name": "adakd", "ratio": 0.5}, student, teacher, target), expected)


def test_adakd_narrows_while_the_loss_falls_and_widens_when_it_rises():
    made, state, seen = kdbench.objective({"name": "adakd", "decay": 0.0}), {}, []
    for index, loss in enumerate([1.0, 0.5, 0.25, 0.26, 0.5, 5.0]):
        state = dict(made.observe(Step(index, 10, state), Measured(loss)))
        seen.append(round(state["ratio"], 4))
    assert seen == [1.0, 0.9, 0.81, 0.81, 0.891, 0.9801]


def test_cross_entropy_is_mixed_in_by_its_share():
    case = random_case(47)
    mixed = {"name": "reverse_kl", "ce": 0.25}
    assert torch.allclose(value(mixed, *case), 0.75 * value("reverse_kl", *case) + 0.25 * value("sft", *case))
    wrapped = value({"name": "atkd", "base": {"name": "kl", "ce": 0.25}}, *case)
    assert torch.allclose(wrapped, 0.75 * value("atkd", *case) + 0.25 * value("sft", *case))


# --- the conformance suite over the whole registry -------------------------------------------------------------------

CONFORMING = [
    *objectives(),
    *(f"{base}+atkd" for base in SPLIT if base != "kl"),
    *("gkd@atkd_release", "jeffreys@atkd_release"),
    *("atkd@release", "atkd@sekd", "dkd@images", "dkd@atkd", "imitkd@paper", "reverse_kl+sekd", "jsd+adakd"),
    *({"name": "kl", "support": kind, "support_size": 4} for kind in ("topk", "topk_both", "topk+tail", "sampled")),
    *({"name": "f_distill", "variant": variant} for variant in ("kl", "rkl", "js")),
    *({"name": "jsd", "beta": beta} for beta in (0.0, 0.1, 1.0)),
    {"name": "kl", "tau": 2.0, "tau_sq": True, "ce": 0.3},
    {"name": "gkd+atkd", "wrap": "data"},
    {"name": "opd", "baseline": "value"},
]


@pytest.mark.parametrize("spec", CONFORMING, ids=str)
def test_an_objective_keeps_every_rule_of_the_contract(spec):
    broken = [f"{result.check}: {result.message}" for result in check(spec) if result.status == "failed"]
    assert not broken
