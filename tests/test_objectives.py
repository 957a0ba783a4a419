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
from kdbench.errors import ConfigError
from kdbench.registry import objectives

TEACHER = torch.tensor(
    [[2, 1, 0, -1], [0, 3, 1, 0], [1, 1, 2, 0], [4, 0, 0, 1], [0.5, -0.5, 1, 2]], dtype=torch.float64
)
STUDENT = torch.tensor([[1, 1, 0.5, 0], [0.5, 2, 0, 1], [2, 0, 1, 0], [3, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.float64)
TARGET = torch.tensor([0, 1, 0, 0, 2])
BASES = ["kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd", "jeffreys"]
EXACT = [
    *(name for name in BASES if name not in ("tvd", "jeffreys")),
    *({"name": "jsd", "beta": beta, "normalised": scaled} for beta in (0.0, 0.1, 0.9, 1.0) for scaled in (False, True)),
]
WITH_TEACHER = [*BASES, *(f"{name}+atkd" for name in BASES)]
EVERY = ["sft", *WITH_TEACHER]


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


# ATKD round JSD holds the weight of its inner mixture constant by definition, which finite differences cannot know.
@pytest.mark.parametrize("spec", [spec for spec in EVERY if spec != "jsd+atkd"])
def test_gradients_agree_with_finite_differences(spec):
    student, teacher, target = random_case(2)
    assert torch.autograd.gradcheck(lambda z: kdbench.loss(spec, z, teacher, target).total, student.requires_grad_())


@pytest.mark.parametrize("spec", EXACT, ids=str)
def test_the_split_adds_up_to_the_divergence(spec):
    student, teacher, target = random_case(3)
    objective = kdbench.objective(spec)
    from kdbench.api import Dist

    q, p = Dist(student, target), Dist(teacher, target)
    split = objective.split(q, p, target)
    whole = sum(objective.terms(q, p, target).values())
    assert torch.allclose(split.target + split.coefficient * split.diversity, whole, rtol=1e-12)


@pytest.mark.parametrize("spec", WITH_TEACHER)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_student_equal_to_its_teacher_has_loss_and_gradient_zero(spec, seed):
    _, teacher, target = random_case(seed)
    student = teacher.clone().requires_grad_()
    total = kdbench.loss(spec, student, teacher, target).total
    total.backward()
    assert abs(total.item()) < 1e-12
    if not spec.startswith("tvd"):  # which has a kink there
        assert student.grad.abs().max() < 1e-12


@pytest.mark.parametrize("spec", EVERY)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.floats(-50, 50))
def test_a_constant_added_to_logits_changes_nothing(spec, seed, shift):
    student, teacher, target = random_case(seed)
    one = kdbench.loss(spec, student, teacher, target).total
    two = kdbench.loss(spec, student + shift, teacher - shift, target).total
    assert torch.allclose(one, two, atol=1e-10)


@pytest.mark.parametrize("spec", EVERY)
def test_masked_tokens_and_token_order_do_not_matter(spec):
    student, teacher, target = random_case(4, n=12)
    mask = torch.tensor([True] * 9 + [False] * 3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    plain = kdbench.loss(spec, student[:9], teacher[:9], target[:9])
    masked = kdbench.loss(spec, student[order], teacher[order], target[order], mask[order])
    assert masked.tokens == 9
    assert torch.allclose(plain.total, masked.total, atol=1e-12)


@pytest.mark.parametrize("spec", EVERY)
def test_no_valid_token_gives_zero_with_a_gradient(spec):
    student, teacher, target = random_case(5)
    student.requires_grad_()
    parts = kdbench.loss(spec, student, teacher, target, torch.zeros_like(target, dtype=torch.bool))
    parts.total.backward()
    assert parts.total.item() == 0 and parts.tokens == 0 and not student.grad.any()


@pytest.mark.parametrize("spec", EVERY)
def test_one_valid_token_gives_a_finite_loss(spec):
    student, teacher, target = random_case(6, n=1)
    assert torch.isfinite(kdbench.loss(spec, student, teacher, target).total)


@pytest.mark.parametrize("spec", WITH_TEACHER)
def test_classes_that_both_models_exclude_count_nothing(spec):
    student, teacher, target = random_case(7)
    target = target.clamp(max=8)
    excluded = torch.zeros(7, 2, dtype=torch.float64) - float("inf")
    wide_student = torch.cat([student, excluded], -1).requires_grad_()
    wide = kdbench.loss(spec, wide_student, torch.cat([teacher, excluded], -1), target).total
    wide.backward()
    assert torch.allclose(wide, kdbench.loss(spec, student, teacher, target).total, atol=1e-12)
    assert torch.isfinite(wide_student.grad).all()


@pytest.mark.parametrize("spec", WITH_TEACHER)
def test_a_saturated_student_or_teacher_gives_finite_numbers(spec):
    student, teacher, target = random_case(8, dtype=torch.float32)
    for saturated_student, saturated_teacher in ((1e4, 1), (1, 1e4), (1e4, 1e4)):
        z = (student * saturated_student).requires_grad_()
        total = kdbench.loss(spec, z, teacher * saturated_teacher, target).total
        total.backward()
        assert torch.isfinite(total) and torch.isfinite(z.grad).all()


@pytest.mark.parametrize(("n", "easy"), [(1, 0), (2, 0), (3, 1), (4, 1), (10, 4), (11, 5)])
def test_atkd_splits_at_the_lower_median(n, easy):
    from kdbench.api import Tokens

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


@pytest.mark.parametrize("spec", EVERY)
def test_inputs_and_the_global_rng_are_left_alone(spec):
    student, teacher, target = random_case(11)
    copies = student.clone(), teacher.clone(), target.clone()
    state = torch.get_rng_state()
    kdbench.loss(spec, student, teacher, target)
    assert all(torch.equal(a, b) for a, b in zip((student, teacher, target), copies, strict=True))
    assert torch.equal(state, torch.get_rng_state())


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


def test_every_objective_names_its_source():
    for name, member in objectives().items():
        assert member.source.title and member.source.year > 1900, name
        assert member.__doc__, name


@pytest.mark.parametrize("spec", [*EVERY, {"name": "atkd", "hard_fraction": 0.7}])
def test_a_specification_comes_back_as_the_same_objective(spec):
    made = kdbench.objective(spec)
    assert kdbench.objective(made.spec()) == made


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
    from kdbench.api import Dist

    split = kdbench.objective("tvd").split(Dist(student, target), Dist(teacher, target), target)
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


@pytest.mark.parametrize("spec", BASES)
def test_the_gradient_of_a_divergence_sums_to_zero_over_the_vocabulary(spec):
    student, teacher, target = random_case(15)
    student.requires_grad_()
    kdbench.loss(spec, student, teacher, target).total.backward()
    assert student.grad.sum(-1).abs().max() < 1e-14
