"""What a peer's settings mean here: every entry is a valid specification, and is the function that the peer computes.

The peers' formulas are written out again below, in float64, from their documentation and source.

python -m pytest tests/test_conventions.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product

import pytest
import torch
from torch import Tensor

import kdbench
from kdbench.conventions import (
    BOTH,
    FACTOR,
    GRADIENT,
    NO,
    TABLE,
    as_text,
    explain,
    known,
    parse_settings,
)
from kdbench.errors import ConfigError


def extremes(knob) -> list:
    """Return the ends of what a setting accepts, and its default."""
    if isinstance(knob.default, bool):
        return [True, False]
    if knob.choices:
        return list(knob.choices)
    ends = [bound for bound in (knob.low, knob.high) if abs(bound) < float("inf")]
    inside = [bound + step if knob.open_ else bound for bound, step in zip(ends, (0.01, -0.01), strict=False)]
    return [knob.default, *inside, *([] if len(ends) == 2 else [3])]


@pytest.mark.parametrize("name", known())
def test_every_entry_is_a_valid_specification_or_says_why_there_is_none(name):
    found = explain(name)
    for spec in (found.spec, found.nearest):
        if spec is not None:
            made = kdbench.objective(spec)
            assert kdbench.objective(made.spec()) == made
            assert json.loads(json.dumps(spec)) == spec
    assert (found.spec is None) == (found.same == NO)
    assert found.same in (BOTH, GRADIENT, FACTOR, NO)
    assert found.differs or found.same == BOTH
    assert all(line.strip() == line and line.endswith(".") for line in found.differs)
    assert set(found.defaults) == set(TABLE[name].knobs) and found.given == {}


@pytest.mark.parametrize("name", known())
def test_settings_at_the_ends_of_their_range_give_valid_specifications(name):
    knobs = TABLE[name].knobs
    choices = [extremes(knob) for knob in knobs.values()]
    for values in list(product(*choices))[:400]:
        found = explain(name, dict(zip(knobs, values, strict=True)))
        assert found.spec is not None or found.differs
        if found.spec is not None:
            kdbench.objective(found.spec)


@pytest.mark.parametrize("name", known())
def test_a_setting_left_at_its_default_is_the_same_as_one_given(name):
    found = explain(name)
    again = explain(name, found.defaults)
    assert (again.spec, again.same, again.differs) == (found.spec, found.same, found.differs)
    assert again.defaults == {}


@pytest.mark.parametrize(
    ("name", "settings", "spec"),
    [
        ("kdflow:jsd", {"jsd_beta": 0.1}, {"name": "jsd", "beta": 0.9}),
        ("trl:gkd", {"beta": 0.1, "temperature": 1.0}, {"name": "gkd", "beta": 0.1, "lam": 0.5}),
        ("trl:gkd", {"beta": 0.1, "lmbda": 0}, {"name": "gkd", "beta": 0.1, "lam": 0}),
        ("distillm:jsd", {"lam": 0.9}, {"name": "jsd", "beta": 0.1}),
        ("distillm2:gkd", {"alpha": 0.9}, {"name": "jsd", "beta": 0.9}),
        ("taid:gkd", {}, {"name": "jsd", "beta": 0.1}),
        ("abkd:jsd", {}, {"name": "jsd", "beta": 0.9}),
        ("liger:jsd", {"beta": 0.1}, {"name": "jsd", "beta": 0.1}),
        ("ms-swift", {"beta": 0.1, "lmbda": 0.0, "temperature": 1.0}, {"name": "gkd", "beta": 0.1, "lam": 0.0}),
        ("atkd-release:jsd", {}, {"name": "jeffreys", "lam": 0.9}),
        ("torchtune:symmetric_kl", {"sym_kd_ratio": 0.3}, {"name": "jeffreys", "lam": 0.3}),
        ("distillm:symmetric_kl", {"lam": 0.9}, {"name": "jeffreys", "lam": 0.1}),
        ("torchtune:forward_kl", {"kd_ratio": 0.25}, {"name": "kl", "ce": 0.75}),
        ("modelopt:logits", {"temperature": 2.0}, {"name": "kl", "tau": 2.0, "tau_sq": True}),
        ("modelopt:megatron", {"temperature": 2.0}, {"name": "kl", "tau": 2.0}),
        ("modelopt:megatron", {"top_k": 8}, {"name": "kl", "support": "topk_both", "support_size": 8}),
        ("distillkit:kl", {"top_k": 8}, {"name": "kl", "support": "topk", "support_size": 8}),
        ("atkd-release:atkd", {}, {"name": "atkd@release"}),
        ("atkd-release:atkd-reverse", {"alpha": 0.4}, {"name": "reverse_kl+atkd@release", "lam": 0.4}),
    ],
)
def test_the_same_word_is_translated_to_its_sense_here(name, settings, spec):
    assert explain(name, settings).spec == spec


def log_softmaxes(student: Tensor, teacher: Tensor, tau: float = 1.0) -> tuple[Tensor, Tensor]:
    return (teacher / tau).log_softmax(-1), (student / tau).log_softmax(-1)


def kl(a: Tensor, b: Tensor) -> Tensor:
    return (a.exp() * (a - b)).sum(-1)


def mixture(a: Tensor, b: Tensor, share_a: float) -> Tensor:
    return (share_a * a.exp() + (1 - share_a) * b.exp()).log()


def jsd_with_student_share(student, teacher, b, tau=1.0):
    p, q = log_softmaxes(student, teacher, tau)
    return b * kl(q, mixture(q, p, b)) + (1 - b) * kl(p, mixture(q, p, b))


def soft_ce(student, teacher, tau=1.0):
    p, q = log_softmaxes(student, teacher, tau)
    return -(p.exp() * q).sum(-1)


def top_k(student, teacher, k, whole_student):
    p, q = log_softmaxes(student, teacher)
    kept, index = p.topk(k, -1)
    chosen = q.gather(-1, index)
    return kl(kept.log_softmax(-1), chosen if whole_student else chosen.log_softmax(-1))


def axolotl(student, teacher, target):
    """At τ = 2 the value is τ² times the divergence, but the gradient is that of the divergence."""
    p, q = log_softmaxes(student, teacher, 2.0)
    kept, index = p.topk(5, -1)
    hard = -student.log_softmax(-1).gather(-1, target[:, None])[:, 0]
    soft = kl(kept.log_softmax(-1), q.gather(-1, index))
    return 0.9 * (soft + 3 * soft.detach()) + 0.1 * hard


def half_cross_entropy(student, teacher, target):
    hard = -student.log_softmax(-1).gather(-1, target[:, None])[:, 0]
    return 0.5 * kl(*log_softmaxes(student, teacher, 2.0)) + 0.5 * hard


def alpha_beta_as_released(student, teacher, beta):
    p, q = log_softmaxes(student, teacher)
    return ((beta * q).exp() * (beta * q - beta * p) - (beta * q).exp() + (beta * p).exp()).sum(-1) / beta


def skewed_forward(s, t, alpha):
    p, q = log_softmaxes(s, t)
    return kl(p, mixture(p, q, alpha))


def skewed_reverse(s, t, alpha):
    p, q = log_softmaxes(s, t)
    return kl(q, mixture(q, p, alpha))


PEERS = [
    ("kdflow:jsd", {"jsd_beta": 0.1, "kd_temperature": 2.0}, lambda s, t, y: jsd_with_student_share(s, t, 0.1, 2.0)),
    ("distillm:jsd", {}, lambda s, t, y: jsd_with_student_share(s, t, 0.9)),
    ("taid:gkd", {}, lambda s, t, y: jsd_with_student_share(s, t, 0.9)),
    ("abkd:jsd", {}, lambda s, t, y: jsd_with_student_share(s, t, 0.1)),
    ("distillm2:gkd", {}, lambda s, t, y: jsd_with_student_share(s, t, 0.1)),
    ("trl:gkd", {"beta": 0.9}, lambda s, t, y: jsd_with_student_share(s, t, 0.1)),
    ("distillm:fkl", {}, lambda s, t, y: soft_ce(s, t)),
    ("torchtune:forward_kl", {}, lambda s, t, y: soft_ce(s, t)),
    ("distillm:symmetric_kl", {}, lambda s, t, y: 0.1 * soft_ce(s, t) + 0.9 * kl(*log_softmaxes(s, t)[::-1])),
    ("distillm:sfkl", {}, lambda s, t, y: skewed_forward(s, t, 0.1) + 1.0),
    ("distillm:srkl", {}, lambda s, t, y: skewed_reverse(s, t, 0.1)),
    ("modelopt:logits", {"temperature": 2.0}, lambda s, t, y: 4 * kl(*log_softmaxes(s, t, 2.0))),
    ("modelopt:megatron", {"temperature": 2.0}, lambda s, t, y: kl(*log_softmaxes(s, t, 2.0))),
    ("modelopt:megatron", {"reverse": True}, lambda s, t, y: kl(*log_softmaxes(s, t)[::-1])),
    ("modelopt:megatron", {"top_k": 5}, lambda s, t, y: top_k(s, t, 5, whole_student=False)),
    ("distillkit:kl", {"top_k": 5}, lambda s, t, y: top_k(s, t, 5, whole_student=True)),
    ("nemo-rl", {"kl_type": "forward", "topk_logits_k": 5}, lambda s, t, y: top_k(s, t, 5, whole_student=False)),
    ("axolotl", {"kd_temperature": 2.0, "kd_online_topk": 5}, axolotl),
    ("abkd:ab", {"ab_alpha": 0.0, "ab_beta": 0.5}, lambda s, t, y: alpha_beta_as_released(s, t, 0.5)),
    ("atkd-release:jsd", {}, lambda s, t, y: 0.9 * kl(*log_softmaxes(s, t)) + 0.1 * kl(*log_softmaxes(s, t)[::-1])),
    ("ms-swift", {"use_liger_kernel": True, "beta": 0.0, "temperature": 2.0}, half_cross_entropy),
]


def value_and_gradient(loss, student: Tensor) -> tuple[Tensor, Tensor]:
    logits = student.clone().requires_grad_()
    value = loss(logits)
    return value.detach(), torch.autograd.grad(value, logits)[0]


@pytest.mark.parametrize(("name", "settings", "formula"), PEERS, ids=[f"{one[0]} {one[1]}" for one in PEERS])
def test_the_specification_is_the_peer_s_function(name, settings, formula):
    rng = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(9, 13, generator=rng, dtype=torch.float64) for _ in range(2))
    target = torch.randint(0, 13, (9,), generator=rng)
    found = explain(name, settings)
    theirs = value_and_gradient(lambda s: formula(s, teacher, target).mean(), student)
    ours = value_and_gradient(lambda s: kdbench.loss(found.spec, s, teacher, target).total, student)
    scale = (theirs[1] * ours[1]).sum() / ours[1].square().sum()
    torch.testing.assert_close(theirs[1], scale * ours[1], rtol=1e-9, atol=1e-12)
    assert (abs(scale - 1) < 1e-9) == (found.same != FACTOR)
    assert (abs(theirs[0] - ours[0]) < 1e-10) == (found.same == BOTH)


def test_verl_s_truncated_divergence_can_be_negative_and_has_no_specification():
    p, q = (torch.tensor(one, dtype=torch.float64) for one in ([[0.5, 0.3, 0.2]], [[0.6, 0.39, 0.01]]))
    assert (p * (p / q).log())[:, :2].sum() < 0
    assert explain("verl:forward_kl_topk").spec is None


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("kdflow:jds", {}, "Did you mean 'kdflow:jsd'"),
        ("tlr:gkd", {}, "Did you mean 'trl:gkd'"),
        ("nobody:kl", {}, "Known: "),
        ("kdflow:jsd", {"jsd_betta": 0.1}, "unknown setting 'jsd_betta'. Did you mean 'jsd_beta'"),
        ("kdflow:jsd", {"jsd_beta": 1.0}, r"jsd_beta: expected a number in \(0, 1\), found 1.0"),
        ("trl:gkd", {"beta": 1.1}, r"beta: expected a number in \[0, 1\], found 1.1"),
        ("trl:gkd", {"beta": float("nan")}, "beta: expected a number"),
        ("trl:gkd", {"beta": True}, "beta: expected a number"),
        ("trl:gkd", {"beta": "high"}, "beta: expected a number"),
        ("trl:gkd", {"temperature": 0}, "temperature: expected a number above 0"),
        ("trl:gkd", {"seq_kd": 1}, "seq_kd: expected true or false"),
        ("trl:iw_opd", {"loss_top_k": 1.5}, "loss_top_k: expected a whole number of at least 0"),
        ("modelopt:logits", {"reduction": "sum"}, "reduction: expected one of none, mean, batchmean"),
        ("liger:tvd", {"beta": 0.1}, "unknown setting 'beta'. It has none"),
        ("trl:gkd", {"beta": 2, "lambda": 1}, "beta: .*; unknown setting 'lambda'"),
    ],
)
def test_unknown_names_and_values_out_of_range_are_refused(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        explain(name, settings)


def test_words_of_the_command_line_become_values():
    words = ["beta=0.1", "loss_top_k=64", "seq_kd=True", "off=false", "topk=none", "reduction=mean", " lr = 1e-3 "]
    expected = {"beta": 0.1, "loss_top_k": 64, "seq_kd": True, "off": False, "topk": None, "reduction": "mean"}
    assert parse_settings(words) == expected | {"lr": 1e-3}
    assert parse_settings([]) == {}
    assert explain("modelopt:logits", parse_settings(["reduction=none"])).given == {"reduction": "none"}


@pytest.mark.parametrize("words", [["beta"], ["=0.1"], ["beta="], ["beta=0.1", "beta=0.2"]])
def test_words_that_are_no_settings_are_refused(words):
    with pytest.raises(ConfigError, match=r"NAME=VALUE|twice"):
        parse_settings(words)


@pytest.mark.parametrize("name", known())
def test_the_printed_line_is_yaml_for_the_specification(name):
    from ruamel.yaml import YAML

    found = explain(name)
    text = as_text(found)
    printed = [YAML(typ="safe").load(line)[0] for line in text.splitlines() if line.startswith("  - {")]
    assert printed == [spec for spec in (found.spec, found.nearest) if spec]
    assert text.startswith(f"{name}: ") and "None" not in text
    assert all(len(line) <= 120 for line in text.splitlines()[1:] if not line.startswith(("  given", "  its")))


def test_a_trainer_with_one_function_needs_no_second_name():
    assert explain("nemo-rl").name == "nemo-rl:kl"
    assert explain("abkd").name == "abkd:ab"


def test_nothing_heavy_is_imported():
    code = "import sys, kdbench.conventions; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
