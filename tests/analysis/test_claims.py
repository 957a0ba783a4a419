"""Claims held against results: every rule of the verdict, every kind of claim, and what cannot be tested.

python -m pytest tests/analysis/test_claims.py
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdbench.analysis.claim_estimates import Estimate
from kdbench.analysis.claims import judge, verdict
from kdbench.suite.claims import Claim

SIZES = {"small": 1e6, "mid": 2e6, "large": 4e6, "twin": 4e6}
SETTINGS = {"alpha": 0.05, "margin": 0.01, "sizes": SIZES}


def claim(**more):
    return Claim(**{"source": "paper", "sentence": "a beats b", "contrast": ("a", "b")} | more)


def scores(levels, seeds=3, items=300, spread=0.02, student="s", task="x", rng=0):
    """Graded scores: `levels` {(objective, teacher): mean}; noise of each item and seed of its own."""
    rng = np.random.default_rng(rng)
    rows = []
    for (objective, teacher), level in levels.items():
        for seed in range(seeds):
            values = level + spread * rng.standard_normal(items)
            rows += [(objective, student, teacher, seed, task, item, v) for item, v in enumerate(values)]
    return pd.DataFrame(rows, columns=["objective", "student", "teacher", "seed", "task", "item", "score"])


def one(found):
    assert len(found) == 1
    return found[0]


# --- the rule ---------------------------------------------------------------------------------------------------------

SEEN = Estimate(0.02, 0.01, 0.035, 0.01, 0.015, 3, 300, "a − b")


@pytest.mark.parametrize(
    ("change", "claimed", "word"),
    [
        ({}, 0.03, "replicated"),  # above 0, the claim inside
        ({}, 0.005, "replicated"),  # above 0, the interval lies above the claim
        ({}, None, "replicated"),  # above 0, no size claimed
        ({}, 0.04, "smaller"),  # above 0, below the claim
        ({"high": 0.009, "low": 0.001, "value": 0.005}, 0.03, "smaller"),  # above 0, though less than matters
        ({"rises": ("small to mid",)}, 0.03, "smaller"),  # a drop that is not monotone
        ({"low": -0.01, "p": 0.2}, 0.04, "smaller"),  # 0 inside, the claim outside, the margin inside
        ({"low": -0.01, "p": 0.2}, 0.03, "inconclusive"),  # 0 and the claim inside
        ({"low": -0.01, "p": 0.2}, None, "inconclusive"),  # 0 and more than the margin inside
        ({"low": -0.01, "p": 0.2, "high": 0.008}, 0.005, "inconclusive"),  # a claim below the margin, inside
        ({"low": -0.02, "p": 0.2, "high": 0.008}, 0.03, "contradicted"),  # neither the claim nor what matters
        ({"low": -0.02, "p": 0.2, "high": 0.008}, None, "contradicted"),  # nothing that matters
        ({"value": -0.02, "low": -0.03, "high": -0.01}, 0.03, "contradicted"),  # the other way
        ({"p": 0.06}, 0.03, "inconclusive"),  # test and interval disagree: not significant
        ({"p": math.nan, "n_seeds": 1}, 0.03, "inconclusive"),  # one seed
    ],
)
def test_the_verdict_holds_the_interval_against_zero_the_claim_and_the_margin(change, claimed, word):
    assert verdict(replace(SEEN, **change), claimed, alpha=0.05, margin=0.01) == word


# --- kinds ------------------------------------------------------------------------------------------------------------


def test_a_gain_of_the_claimed_size_replicates_it():
    found = one(judge([claim(points=3)], scores({("a", "mid"): 0.531, ("b", "mid"): 0.5}), **SETTINGS))
    assert found.verdict == "replicated" and found.estimate == pytest.approx(0.031, abs=0.003)
    assert found.powered is True and found.mde < 0.03
    assert found.interval[0] < found.estimate < found.interval[1] and found.p < 0.05
    assert found.sentence.startswith("“a beats b” (paper): replicated. Here a − b at s ← mid is +3.")
    assert "holds the claimed +3.00" in found.sentence and "could be expected to tell +3.00 from 0" in found.sentence


def test_a_small_gain_is_smaller_and_noise_without_power_is_inconclusive():
    small = scores({("a", "mid"): 0.511, ("b", "mid"): 0.5})
    assert one(judge([claim(points=3)], small, **SETTINGS)).verdict == "smaller"
    noise = scores({("a", "mid"): 0.5, ("b", "mid"): 0.5}, items=30, spread=0.4, rng=2)
    found = one(judge([claim(points=3)], noise, **SETTINGS))
    assert found.verdict == "inconclusive" and found.powered is False
    assert "neither 0 nor the claimed +3.00 can be excluded" in found.sentence and "could not be" in found.sentence


def test_a_loss_contradicts_and_so_does_a_precise_nothing():
    loss = scores({("a", "mid"): 0.48, ("b", "mid"): 0.5})
    found = one(judge([claim(points=3)], loss, **SETTINGS))
    assert found.verdict == "contradicted" and "significantly the other way" in found.sentence
    nothing = one(judge([claim(points=3)], scores({("a", "mid"): 0.5, ("b", "mid"): 0.5}), **SETTINGS))
    assert nothing.verdict == "contradicted" and "below the margin of 1.00" in nothing.sentence


def test_the_mean_of_several_contrasts_is_the_mean_of_their_differences():
    levels = {("a", "mid"): 0.53, ("b", "mid"): 0.5, ("c", "mid"): 0.55, ("d", "mid"): 0.54}
    frame = scores(levels)
    found = one(judge([claim(contrast=None, contrasts=[("a", "b"), ("c", "d")])], frame, **SETTINGS))
    means = frame.groupby("objective").score.mean()
    assert found.estimate == pytest.approx((means.a - means.b + means.c - means.d) / 2)
    assert "a − b and c − d over all pairs" in found.sentence


def seeds_only(differences):
    """One item a task, so that every difference is a paired t-test over seeds."""
    parts = []
    for teacher, values in differences.items():
        for seed, value in enumerate(values):
            parts += [("a", "s", teacher, seed, "x", 0, 0.5 + value), ("b", "s", teacher, seed, "x", 0, 0.5)]
    return pd.DataFrame(parts, columns=["objective", "student", "teacher", "seed", "task", "item", "score"])


def test_up_to_is_the_largest_difference_with_an_interval_that_knows_how_many_stood_for_choice():
    rng = np.random.default_rng(0)
    levels = {"small": 0.0, "mid": 0.05, "large": 0.02}
    values = {name: level + 0.01 * rng.standard_normal(5) for name, level in levels.items()}
    found = one(judge([claim(kind="up_to", points=5)], seeds_only(values), **SETTINGS))
    tests = [stats.ttest_1samp(some, 0) for some in values.values()]
    single, bonferroni = ([t.confidence_interval(1 - 0.05 / k) for t in tests] for k in (1, 3))
    (low, high), p = found.interval, min(test.pvalue for test in tests)
    assert found.estimate == pytest.approx(values["mid"].mean())
    assert max(b.low for b in bonferroni) * 0.98 < low < max(b.low for b in single)
    assert max(b.high for b in single) < high < max(b.high for b in bonferroni) * 1.02
    assert p <= found.p < 3 * p + 0.001
    assert found.verdict == "replicated" and "the largest of 3 differences, a − b at s ← mid," in found.sentence


def test_up_to_may_choose_among_contrasts_averaged_over_models_which_few_seeds_can_decide():
    levels = {(arm, teacher): 0.5 + 0.03 * (arm == "a") for arm in "abc" for teacher in ("small", "mid", "large")}
    told = claim(contrast=None, contrasts=[("a", "b"), ("c", "b")], kind="up_to", points=3, each="contrast")
    frame = scores(levels)
    found = one(judge([told], frame, **SETTINGS))
    means = frame.groupby("objective").score.mean()
    assert found.estimate == pytest.approx(means.a - means.b) and found.verdict == "replicated"
    assert "the largest of 2 differences, a − b at all pairs," in found.sentence
    assert found.mde < one(judge([told.model_copy(update={"each": "pair"})], frame, **SETTINGS)).mde


def test_the_best_of_many_nulls_does_not_replicate_what_its_own_test_would():
    rng = np.random.default_rng(1)
    nulls = {f"t{i}": 0.01 * rng.standard_normal(5) for i in range(40)}
    assert min(stats.ttest_1samp(some, 0).pvalue for some in nulls.values()) < 0.05
    found = one(judge([claim(kind="up_to")], seeds_only(nulls), **SETTINGS))
    assert found.verdict != "replicated" and found.p > 0.05


def drop(levels, **more):
    frame = scores({("b", teacher): level for teacher, level in levels.items()})
    return one(judge([claim(contrast=None, arm="b", kind="monotone_drop", **more)], frame, **SETTINGS))


def test_a_drop_is_what_is_lost_from_the_smallest_teacher_to_the_largest():
    found = drop({"large": 0.4873, "small": 0.5, "mid": 0.495}, points=1.27)
    assert found.verdict == "replicated" and found.estimate == pytest.approx(0.0127, abs=0.002)
    assert "the drop of b from teacher small to large is +1." in found.sentence
    assert drop({"small": 0.5, "mid": 0.505, "large": 0.51}, points=1.27).verdict == "contradicted"


def test_a_drop_that_rises_on_the_way_is_not_the_monotone_one_that_was_claimed():
    found = drop({"small": 0.5, "mid": 0.52, "large": 0.4873}, points=1.27)
    assert found.verdict == "smaller" and "from small to mid the score rises" in found.sentence
    scoped = drop({"small": 0.5, "mid": 0.52, "large": 0.4873}, points=1.27, scope={"teacher": ["mid", "large"]})
    assert scoped.verdict == "replicated" and scoped.estimate == pytest.approx(0.0327, abs=0.003)


def test_a_drop_needs_teachers_of_known_and_different_sizes():
    assert "with 1 teacher(s)" in drop({"small": 0.5}).sentence
    assert "the size of odd is not known" in drop({"small": 0.5, "odd": 0.4}).sentence
    found = drop({"small": 0.5, "large": 0.4, "twin": 0.4})
    assert not found.tested and "large and twin are of one size" in found.sentence


def test_a_drop_is_repaired_by_how_much_less_the_objective_loses():
    levels = {("a", "small"): 0.5, ("a", "large"): 0.5, ("b", "small"): 0.5, ("b", "large"): 0.47}
    frame = scores(levels)
    found = one(judge([claim(kind="repaired_drop")], frame, **SETTINGS))
    means = frame.groupby(["objective", "teacher"]).score.mean()
    lost = {arm: means[arm, "small"] - means[arm, "large"] for arm in "ab"}
    assert found.verdict == "replicated" and found.estimate == pytest.approx(lost["b"] - lost["a"])
    assert "what a loses less than b from teacher small to large is +" in found.sentence


# --- scope, mechanism, deviations -------------------------------------------------------------------------------------


def test_scope_and_tasks_choose_what_a_claim_speaks_of():
    frame = pd.concat([
        scores({("a", "small"): 0.6, ("b", "small"): 0.5, ("a", "large"): 0.5, ("b", "large"): 0.5}),
        scores({("a", "small"): 0.9, ("b", "small"): 0.5, ("a", "large"): 0.5, ("b", "large"): 0.5}, task="y"),
    ])  # fmt: skip

    def estimate(**more):
        return one(judge([claim(**more)], frame, **SETTINGS, tasks=["x"])).estimate

    assert estimate() == pytest.approx(0.05, abs=0.005)
    assert estimate(scope={"teacher": ["small"]}) == pytest.approx(0.1, abs=0.005)
    assert estimate(scope={"teacher": ["small"]}, tasks=["y"]) == pytest.approx(0.4, abs=0.005)


def test_another_metric_is_read_from_its_own_scores_in_its_own_unit():
    frame = scores({("a", "mid"): -4.0, ("b", "mid"): -4.5}, task="perplexity")
    of_nats = claim(metric="word_log_likelihood", points=0.5)
    found = one(judge([of_nats], {"word_log_likelihood": frame}, **SETTINGS))
    assert found.verdict == "replicated" and "+0.50 nats a word" in found.sentence
    assert "no scores of word_log_likelihood are at hand" in one(judge([of_nats], frame, **SETTINGS)).sentence


CAUSE = {"says": "large teachers are sure", "needs": {"uncertainty_below": 0.5}}


@pytest.mark.parametrize(
    ("uncertainty", "present", "words"),
    [
        ({"small": 0.9, "large": 0.2}, True, "is present here: large teachers are sure; the largest teacher's median"),
        ({"small": 0.2, "large": 0.9}, False, "is not present here"),
        ({"small": 0.2}, None, "no median UNC is at hand of large"),
        (None, None, "is not known"),
    ],
)
def test_a_finding_says_whether_the_mechanism_is_present_at_the_largest_teacher(uncertainty, present, words):
    frame = scores({(arm, teacher): 0.5 for arm in "ab" for teacher in ("small", "large")})
    told = claim(mechanism=CAUSE, deviations=("other data",))
    found = one(judge([told], frame, **SETTINGS, uncertainty=uncertainty))
    assert found.present is present and words in found.mechanism and found.mechanism in found.sentence
    assert found.deviations == ("other data",)


def test_the_mechanism_may_be_present_at_one_of_two_equally_large_teachers():
    frame = scores({(arm, teacher): 0.5 for arm in "ab" for teacher in ("twin", "large")})
    found = one(judge([claim(mechanism=CAUSE)], frame, **SETTINGS, uncertainty={"large": 0.2, "twin": 0.9}))
    assert found.present is None and "is present in part" in found.mechanism


# --- what cannot be tested --------------------------------------------------------------------------------------------


def test_a_claim_without_results_is_inconclusive_and_says_why_while_others_are_judged():
    frame = scores({("a", "mid"): 0.53, ("b", "mid"): 0.5})
    first, second = judge([claim(contrast=("a", "c")), claim()], frame, **SETTINGS)
    assert not first.tested and first.verdict == "inconclusive" and "there are no results of c" in first.sentence
    assert second.tested and second.verdict == "replicated"


@pytest.mark.parametrize("kind", ["mean", "up_to"])
def test_one_seed_decides_about_no_claim(kind):
    frame = scores({("a", "mid"): 0.6, ("b", "mid"): 0.5}, seeds=1)
    found = one(judge([claim(kind=kind, points=3)], frame, **SETTINGS))
    assert found.verdict == "inconclusive" and "one seed cannot decide" in found.sentence


def test_what_was_left_out_is_told():
    frame = scores({("a", "mid"): 0.53, ("b", "mid"): 0.5}, seeds=4)
    frame = frame[~((frame.objective == "a") & (frame.seed == 3))]
    assert "seeds on one side only were left out: 3" in "\n".join(one(judge([claim()], frame, **SETTINGS)).notes)


def test_a_finding_is_plain_json():
    frame = scores({("a", "mid"): 0.6, ("b", "mid"): 0.5}, seeds=1)
    found = [one.to_json() for one in judge([claim(points=3), claim(contrast=("a", "c"))], frame, **SETTINGS)]
    text = json.loads(json.dumps(found, allow_nan=False))
    assert text[0]["p"] is None and text[0]["claim"]["points"] == 3 and text[1]["interval"] == [None, None]
