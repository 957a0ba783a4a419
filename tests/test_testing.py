"""The conformance suite lets a right objective pass, and tells a wrong one what its mistake is.

python -m pytest tests/test_testing.py
"""

from __future__ import annotations

import itertools
import random
from typing import ClassVar

import numpy
import pytest
import torch
from pydantic import ConfigDict, field_validator

from kdbench.api import Field, Objective, Source, Split, Wrapper
from kdbench.divergences import kl
from kdbench.errors import ConfigError
from kdbench.testing import CHECKS, Broken, check, exemptions, load, parametrize_with_checks

PLUGIN = '''
from kdbench.api import Field, Objective, Source
from kdbench.divergences import kl


class Half(Objective):
    """A mixture of both directions of the KL divergence."""

    name = "half"
    source = Source(title="my notes", year=2026)
    share: float = Field(0.5, ge=0, le=1)

    def terms(self, student, teacher, tokens):
        forward = kl(teacher.log_probs, student.log_probs)
        reverse = kl(student.log_probs, teacher.log_probs)
        return {"half": self.share * forward + (1 - self.share) * reverse}
'''


class Plain(Objective):
    """Forward KL: what the plugins below would be without their mistake."""

    name = "plain"
    source = Source(title="notes", year=2026)

    def terms(self, student, teacher, tokens):
        return {"kl": self.measure(student, teacher, tokens)}

    def measure(self, student, teacher, tokens):
        return kl(teacher.log_probs, student.log_probs)


class WrongSign(Plain):
    """Minus KL."""

    def measure(self, student, teacher, tokens):
        return -kl(teacher.log_probs, student.log_probs)


class CrossEntropyForKL(Plain):
    """The teacher's entropy is forgotten."""

    def measure(self, student, teacher, tokens):
        return -(teacher.probs * student.log_probs).sum(-1)


class SometimesNegative(Plain):
    """Log-ratio at the target alone: 0 at equality, of either sign elsewhere."""

    def measure(self, student, teacher, tokens):
        return teacher.log_prob_target - student.log_prob_target


class DividesByTheChunk(Plain):
    """A mean hides in the term."""

    def measure(self, student, teacher, tokens):
        return kl(teacher.log_probs, student.log_probs) / len(tokens)


class SpreadsTheMean(Plain):
    """Every token has the mean of its chunk."""

    def measure(self, student, teacher, tokens):
        return kl(teacher.log_probs, student.log_probs).mean().expand(len(tokens))


class RanksInItsProbe(Plain):
    """What needs all tokens stands in probe, which sees a chunk, instead of in derive."""

    def probe(self, student, teacher, tokens):
        return {"rank": student.entropy.argsort().argsort().double()}

    def weights(self, tokens):
        return {"kl": tokens.known["rank"] / tokens.known["rank"].sum().clamp(min=1)}


class SoftmaxOverTokens(Plain):
    """Softmax over dimension 0."""

    def measure(self, student, teacher, tokens):
        return (student.logits.softmax(0) - teacher.logits.softmax(0)).square().sum(-1)


class ReturnsAScalar(Plain):
    """The mean over tokens is taken by the term."""

    def measure(self, student, teacher, tokens):
        return kl(teacher.log_probs, student.log_probs).mean()


class MeanOverTheVocabulary(Plain):
    """Divides by V, as reduction='mean' does."""

    def measure(self, student, teacher, tokens):
        return kl(teacher.log_probs, student.log_probs) / student.logits.shape[-1]


class ZeroTimesInfinity(Plain):
    """KL as in the textbook: NaN where both models exclude a class."""

    def measure(self, student, teacher, tokens):
        return (teacher.probs * (teacher.log_probs - student.log_probs)).sum(-1)


class RoundsToOne(Plain):
    """log(1 − p) by log1p(−p), which is −inf for a sure model."""

    def measure(self, student, teacher, tokens):
        left = [torch.log1p(-dist.log_prob_target.exp()) for dist in (student, teacher)]
        return (left[0] - left[1]).square()


class LosesDigits(Plain):
    """log of a ratio of rounded sums."""

    def measure(self, student, teacher, tokens):
        both = (teacher.probs + 1e4) - 1e4, (student.probs + 1e4) - 1e4
        return (both[0] - both[1]).square().sum(-1)


class TorchNoise(Plain):
    """Draws from torch's global generator."""

    def measure(self, student, teacher, tokens):
        return kl(teacher.log_probs, student.log_probs) * torch.rand(len(tokens), dtype=torch.float64)


class NumpyNoise(Plain):
    """Draws from numpy's global generator."""

    def measure(self, student, teacher, tokens):
        return kl(teacher.log_probs, student.log_probs) * numpy.random.rand()


class ReadsPythonsRandomness(Plain):
    """Reads the global state of `random` without moving it."""

    def measure(self, student, teacher, tokens):
        return kl(teacher.log_probs, student.log_probs) * (1 + random.getstate()[1][1] / 2**32)


class Counts(Plain):
    """Keeps a count between calls."""

    calls: ClassVar = itertools.count(1)

    def measure(self, student, teacher, tokens):
        return kl(teacher.log_probs, student.log_probs) / next(self.calls)


class ChangesItsInput(Plain):
    """Clamps the teacher's logits in place."""

    def measure(self, student, teacher, tokens):
        teacher.logits.clamp_(-2, 2)
        return kl(teacher.logits.log_softmax(-1), student.log_probs)


class ChangesAView(Plain):
    """Fills a cached view of the teacher's in place."""

    def measure(self, student, teacher, tokens):
        value = kl(teacher.log_probs, student.log_probs)
        teacher.log_probs.mul_(2)
        return value


class HoldsHalfConstant(Plain):
    """Detaches the student in one of two parts."""

    def measure(self, student, teacher, tokens):
        return kl(teacher.log_probs, student.log_probs) + kl(student.log_probs.detach(), teacher.log_probs)


class LearnsNothing(Plain):
    """Detaches the student altogether."""

    def measure(self, student, teacher, tokens):
        return kl(teacher.log_probs, student.log_probs.detach())


class IgnoresTheTeacher(Plain):
    """Compares the student with itself."""

    def measure(self, student, teacher, tokens):
        return -student.log_prob_target


class NeedsWhatItDenies(Plain):
    """Says that it reads no teacher, and does."""

    needs_signal = False


class RawLogits(Plain):
    """Squared distance of logits, which no softmax has made comparable."""

    def measure(self, student, teacher, tokens):
        return (student.logits - teacher.logits).square().sum(-1)


class CastsToFloat32(Plain):
    """Float64 goes in, fp32 comes out."""

    def measure(self, student, teacher, tokens):
        return kl(teacher.log_probs.float(), student.log_probs.float())


class ComputesInHalf(Plain):
    """Computes in fp16 and hides it."""

    def measure(self, student, teacher, tokens):
        gaps = (teacher.probs.half() - student.probs.half()).to(student.logits.dtype)
        return gaps.square().sum(-1)


class DropsTheLastToken(Plain):
    """The last token of the batch has no weight."""

    def weights(self, tokens):
        weight = torch.ones(len(tokens), dtype=torch.float64)
        weight[-1] = 0
        return {"kl": weight / weight.sum().clamp(min=1)}


class PrefersEarlySequences(Plain):
    """A sequence counts the less the later it stands in the batch."""

    def weights(self, tokens):
        weight = 1.0 / (1 + tokens.sequence.double())
        return {"kl": weight / weight.sum()}


class SumsOverTokens(Plain):
    """Weights of 1, so that the loss grows with the batch."""

    def weights(self, tokens):
        return {"kl": torch.ones(len(tokens), dtype=torch.float64)}


class NeedsBothKindsOfText(Plain):
    """0/0 where no token was sampled."""

    def weights(self, tokens):
        mine = tokens.from_student
        return {"kl": 0.5 * mine / mine.sum() + 0.5 * ~mine / (~mine).sum()}


class WeighsAnUnknownTerm(Plain):
    """Weights for a term of another name."""

    def weights(self, tokens):
        return {"lk": torch.ones(len(tokens))}


class BypassesItsBound(Plain):
    """A bound is declared, and a validator lets everything pass."""

    share: float = Field(0.5, ge=0, le=1)

    @field_validator("share", mode="wrap")
    @classmethod
    def _anything(cls, value, handler):
        return value


class DividesByItsBound(Plain):
    """0 is allowed, and divided by."""

    share: float = Field(0.5, ge=0, le=1)

    def measure(self, student, teacher, tokens):
        return kl(teacher.log_probs, student.log_probs) / torch.tensor(self.share, dtype=torch.float64)


class AcceptsTypos(Plain):
    """Ignores unknown hyper-parameters."""

    model_config = ConfigDict(extra="ignore")


class ForgetsItsSetting(Plain):
    """Its specification leaves a hyper-parameter out."""

    share: float = 0.5

    def spec(self):
        return {"name": self.name}


class StateOfNaN(Plain):
    """Keeps NaN."""

    def observe(self, step, measured):
        return {"average": float("nan")}


class StateOfTensors(Plain):
    """Keeps a tensor."""

    def observe(self, step, measured):
        return {"average": torch.tensor(1.0)}


class ChangesTheOldState(Plain):
    """Counts in the state it was given."""

    def observe(self, step, measured):
        step.state["steps"] = step.state.get("steps", 0) + 1
        return step.state


class WrongSplit(Plain):
    """The split's gradient is cut."""

    def split(self, student, teacher, tokens):
        part = kl(teacher.log_binary, student.log_binary)
        return Split(part, kl(teacher.log_probs_others, student.log_probs_others.detach()), part)


class NoSource(Plain):
    """A title is missing."""

    source = Source(title=" ", year=2026)


class NoMeaning(Plain):
    pass


BUGS = [
    (WrongSign, "never_negative"),
    (CrossEntropyForKL, "zero_when_student_equals_teacher"),
    (SometimesNegative, "never_negative"),
    (DividesByTheChunk, "micro_batches_add_up_to_the_whole"),
    (DividesByTheChunk, "fused_equals_dense"),
    (SpreadsTheMean, "a_term_knows_its_own_token_alone"),
    (RanksInItsProbe, "a_term_knows_its_own_token_alone"),
    (SoftmaxOverTokens, "a_term_knows_its_own_token_alone"),
    (SoftmaxOverTokens, "gradient_sums_to_zero_over_the_vocabulary"),
    (ReturnsAScalar, "terms_and_weights_give_one_number_a_token"),
    (MeanOverTheVocabulary, "excluded_classes_count_nothing"),
    (ZeroTimesInfinity, "excluded_classes_count_nothing"),
    (ZeroTimesInfinity, "a_class_that_one_model_excludes_gives_no_nan"),
    (RoundsToOne, "saturated_models_give_finite_numbers"),
    (LosesDigits, "fp32_agrees_with_float64"),
    (TorchNoise, "the_global_rng_is_left_alone"),
    (TorchNoise, "the_same_call_gives_the_same_number"),
    (NumpyNoise, "the_global_rng_is_left_alone"),
    (ReadsPythonsRandomness, "the_global_rng_is_left_alone"),
    (Counts, "the_same_call_gives_the_same_number"),
    (ChangesItsInput, "inputs_are_left_alone"),
    (ChangesAView, "inputs_are_left_alone"),
    (HoldsHalfConstant, "gradient_agrees_with_finite_differences"),
    (LearnsNothing, "both_models_matter"),
    (IgnoresTheTeacher, "both_models_matter"),
    (NeedsWhatItDenies, "both_models_matter"),
    (RawLogits, "a_constant_added_to_logits_changes_nothing"),
    (RawLogits, "gradient_sums_to_zero_over_the_vocabulary"),
    (CastsToFloat32, "terms_keep_the_precision_of_the_logits"),
    (CastsToFloat32, "gradient_agrees_with_finite_differences"),
    (ComputesInHalf, "gradient_agrees_with_finite_differences"),
    (DropsTheLastToken, "token_order_does_not_matter"),
    (PrefersEarlySequences, "sequence_order_does_not_matter"),
    (SumsOverTokens, "twice_the_batch_has_the_same_weight"),
    (NeedsBothKindsOfText, "text_of_one_kind_is_enough"),
    (NeedsBothKindsOfText, "one_valid_token_is_enough"),
    (WeighsAnUnknownTerm, "terms_and_weights_give_one_number_a_token"),
    (BypassesItsBound, "hyper_parameters_out_of_bounds_are_refused"),
    (DividesByItsBound, "hyper_parameters_at_their_bounds_give_finite_numbers"),
    (AcceptsTypos, "hyper_parameters_out_of_bounds_are_refused"),
    (StateOfNaN, "the_state_is_plain_and_finite"),
    (StateOfTensors, "the_state_is_plain_and_finite"),
    (ChangesTheOldState, "the_state_is_plain_and_finite"),
    (WrongSplit, "split_gradient_agrees_with_finite_differences"),
    (NoSource, "source_and_meaning_are_stated"),
    (NoMeaning, "source_and_meaning_are_stated"),
]


def failures(objective) -> dict[str, str]:
    return {result.check: result.message for result in check(objective) if result.status == "failed"}


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "half.py"
    path.write_text(PLUGIN)
    return path


def test_the_readme_s_plugin_passes_every_check(plugin):
    (half,) = load(plugin)
    results = check(half)
    assert [result.check for result in results] == list(CHECKS)
    assert {result.status for result in results} == {"passed"}, failures(half)


@pytest.mark.parametrize("spec", ["sft", "kl", "reverse_kl", "tvd", "atkd", "tvd+atkd", "reverse_kl+atkd"])
def test_right_objectives_pass_every_check(spec):
    assert not failures(spec)


def test_the_plugins_below_are_right_but_for_their_mistake():
    assert not failures(Plain)


@pytest.mark.parametrize(("plugin", "mistake"), BUGS, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.fault("E9", "planted mistakes")
@pytest.mark.fault("H5", "plugins that change what is not theirs")
def test_a_planted_mistake_fails_the_check_that_names_it(plugin, mistake):
    found = failures(plugin)
    assert mistake in found, found
    assert found[mistake] and "\n" not in found[mistake] and "Traceback" not in found[mistake]


def test_a_forgotten_setting_does_not_come_back():
    assert "the_specification_comes_back" in failures(ForgetsItsSetting(share=0.25))


def test_a_constraint_that_pydantic_does_not_know_is_named():
    with pytest.warns(DeprecationWarning, match="lte"):

        class Misspelt(Plain):
            """A misspelt bound."""

            share: float = Field(0.5, gt=0, lte=1)

    assert "lte" in failures(Misspelt)["hyper_parameters_out_of_bounds_are_refused"]


def test_a_message_says_what_was_expected_what_was_found_and_the_likely_mistake():
    message = failures(CrossEntropyForKL)["zero_when_student_equals_teacher"]
    assert "expected 0, found 1." in message and "subtract the teacher's entropy" in message


def test_every_check_is_a_sentence_and_says_what_it_demands():
    for name, function in CHECKS.items():
        assert name.count("_") >= 1 and function.__doc__ and function.__name__ == name


def test_a_plugin_that_raises_fails_with_file_and_line_and_no_traceback():
    class Raises(Plain):
        """Raises."""

        def measure(self, student, teacher, tokens):
            return student.no_such_view

    line = Raises.measure.__code__.co_firstlineno + 1
    found = failures(Raises)
    assert f"({__file__}:{line})" in found["never_negative"]
    assert found["never_negative"].startswith("AttributeError: ") and "\n" not in found["never_negative"]
    assert "source_and_meaning_are_stated" not in found


def test_an_error_of_many_lines_becomes_one_sentence():
    class Raises(Plain):
        """Raises."""

        def weights(self, tokens):
            raise RuntimeError("one\n  two")

    assert failures(Raises)["fused_equals_dense"].startswith("RuntimeError: one two (")


def test_an_exempt_check_is_reported_with_its_reason_and_never_run():
    class Honest(WrongSign):
        """Minus KL, on purpose."""

        exempt: ClassVar = {"never_negative": "it is a reward"}

    (result,) = [result for result in check(Honest) if result.check == "never_negative"]
    assert (result.status, result.message) == ("exempt", "it is a reward")
    assert not failures(Honest)


@pytest.mark.parametrize(
    ("exempt", "message"),
    [
        ({"never_negativ": "it is a reward"}, "Did you mean 'never_negative'"),
        ({"never_negative": " "}, "should say why"),
        (["never_negative"], "should map check to reason"),
        ({"exemptions_name_a_check_and_a_reason": "I would rather not"}, "no check that can be exempt"),
    ],
)
def test_an_exemption_without_a_check_or_a_reason_is_an_error_and_exempts_nothing(exempt, message):
    wrong = type("Wrong", (WrongSign,), {"__doc__": "Minus KL.", "__module__": __name__, "exempt": exempt})
    found = failures(wrong)
    assert message in found["exemptions_name_a_check_and_a_reason"]
    assert "never_negative" in found


def test_a_wrapper_inherits_what_its_base_is_exempt_from():
    class Around(Wrapper):
        """The base as it is."""

        name = "around"
        source = Source(title="notes", year=2026)

        def terms(self, student, teacher, tokens):
            return self.base.terms(student, teacher, tokens)

    class Held(WrongSplit):
        """A split that holds a part constant, and says so."""

        exempt: ClassVar = {"split_gradient_agrees_with_finite_differences": "half of it is held constant"}

    found = exemptions(Around(base=Held()))
    assert found["gradient_agrees_with_finite_differences"] == "half of it is held constant"
    assert "gradient_agrees_with_finite_differences" not in exemptions(Held())


def test_a_plugin_s_global_randomness_does_not_reach_ours():
    states = torch.get_rng_state(), random.getstate()
    failures(TorchNoise)
    CHECKS["the_global_rng_is_left_alone"](Plain())
    assert random.getstate() == states[1]


@parametrize_with_checks(["kl", Plain, {"name": "reverse_kl", "tau": 2.0}])
def test_parametrize_runs_every_check_on_every_objective(objective, check):
    check(objective)


def test_parametrize_gives_readable_names_and_skips_what_is_exempt():
    class Honest(WrongSign):
        """Minus KL, on purpose."""

        exempt: ClassVar = {"never_negative": "it is a reward"}

    rows = parametrize_with_checks([Honest]).args[1]
    skipped = [row for row in rows if row.marks]
    assert [row.id for row in skipped] == ["plain-never_negative"]
    assert "it is a reward" in skipped[0].marks[0].kwargs["reason"]
    assert len(rows) == len(CHECKS)


def test_a_check_by_itself_raises_broken():
    with pytest.raises(Broken, match="should not be negative"):
        CHECKS["never_negative"](WrongSign())


def test_load_makes_an_objective_of_a_name():
    assert [objective.label for objective in load("reverse_kl+atkd")] == ["reverse_kl+atkd"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "expected a plugin file, found none"),
        ("x = 1\n", "expected a class derived from Objective"),
        ("1 / 0\n", "ZeroDivisionError"),
        (PLUGIN.replace("Field(0.5, ", "Field("), "expected a valid default for every hyper-parameter"),
        (PLUGIN.replace("def terms", "def term"), "expected a method terms"),
    ],
)
def test_a_file_that_holds_no_objective_says_what_was_expected(tmp_path, text, message):
    path = tmp_path / "plugin.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(path)


def test_a_name_that_nobody_knows_is_an_error():
    with pytest.raises(ConfigError, match="Did you mean 'kl'"):
        check("klx")
