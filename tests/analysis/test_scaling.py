"""Scores and gains against sizes and UNC: the slope is least squares, its p a t-test over seeds, its words a warning.

python -m pytest tests/analysis/test_scaling.py
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdbench.analysis.scaling import along_uncertainty, interactions, sentences, teacher_trend
from kdbench.errors import ConfigError

SIZES = {"t1": 1e6, "t2": 2e6, "t3": 4e6, "t4": 16e6, "s1": 0.25e6, "s2": 1e6}
LOG = {name: math.log2(size) for name, size in SIZES.items()}
COLUMNS = ["objective", "student", "teacher", "seed", "task", "item", "score"]


def scores(level, arms=("kl",), students=("s1",), teachers=("t1", "t2", "t3", "t4"), seeds=3, items=40, noise=0.01):
    """`level(objective, student, teacher)` with noise of each item, shared by all, and of each answer."""
    rng = np.random.default_rng(0)
    luck = 0.1 * rng.standard_normal(items)
    rows = [
        (arm, student, teacher, seed, "x", item, level(arm, student, teacher) + value)
        for arm in arms
        for student in students
        for teacher in teachers
        for seed in range(seeds)
        for item, value in enumerate(luck + noise * rng.standard_normal(items))
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def gain(slope_teacher=0.0, slope_student=0.0, **more):
    """Scores where atkd − kl is a plane over both sizes."""

    def level(arm, student, teacher):
        rise = slope_teacher * (LOG[teacher] - LOG["t1"]) + slope_student * (LOG[student] - LOG["s1"])
        return 0.5 + (rise if arm == "atkd" else 0.0)

    return scores(level, ("kl", "atkd"), **more)


def only(frame):
    assert len(frame) == 1
    return frame.iloc[0]


# --- teacher_trend ----------------------------------------------------------------------------------------------------


def test_the_trend_is_the_least_squares_slope_over_log2_of_the_teachers_size():
    frame = scores(lambda arm, student, teacher: 0.5 - 0.02 * LOG[teacher])
    found = only(teacher_trend(frame, SIZES))
    means = frame.groupby("teacher").score.mean()
    expected = np.polyfit([LOG[name] for name in means.index], means, 1)[0]
    assert found.slope == pytest.approx(expected) and found.reading == "larger teachers hurt"
    assert found.ci_low < expected < found.ci_high < 0 and found.p_value < 0.05
    assert (found.n_models, found.lowest, found.highest) == (4, pytest.approx(1e6), pytest.approx(16e6))


def test_with_one_item_p_and_interval_are_those_of_a_t_test_over_the_slopes_of_seeds():
    frame = scores(lambda *_: 0.5, items=1, seeds=5, noise=0.1)
    frame["score"] += 0.05 * frame.seed * frame.teacher.map(LOG) / 20
    slopes = [
        np.polyfit(part.teacher.map(LOG), part.score, 1)[0] for _, part in frame.sort_values("item").groupby("seed")
    ]
    test = stats.ttest_1samp(slopes, 0)
    found = only(teacher_trend(frame, SIZES))
    assert found.slope == pytest.approx(np.mean(slopes)) and found.p_value == pytest.approx(test.pvalue)
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(test.confidence_interval()))


def test_the_luck_of_items_that_all_teachers_share_does_not_widen_the_interval():
    frame = scores(lambda arm, student, teacher: 0.5 - 0.02 * LOG[teacher])
    shifted = frame.assign(score=frame.score + 5 * np.sin(frame.item.astype(float)))
    first, second = only(teacher_trend(frame, SIZES)), only(teacher_trend(shifted, SIZES))
    assert second.ci_high - second.ci_low == pytest.approx(first.ci_high - first.ci_low)


def test_readings_are_adjusted_over_objectives_and_students_and_untrained_arms_have_none():
    def level(arm, student, teacher):
        return 0.5 + {"up": 0.02, "down": -0.02}.get(arm, 0) * LOG[teacher]

    frame = scores(level, ("up", "down", "flat", "ceiling"), ("s1", "s2"))
    free = scores(lambda *_: 0.5, ("sft",), teachers=("t1",)).assign(teacher=None)
    found = teacher_trend(pd.concat([frame, free]), SIZES)
    readings = found.groupby("objective").reading.agg(list)
    assert readings["up"] == ["larger teachers help"] * 2 and readings["down"] == ["larger teachers hurt"] * 2
    assert readings["flat"] == ["no trend shown"] * 2 and set(readings.index) == {"up", "down", "flat"}
    assert (found.p_adjusted >= found.p_value).all()


def test_tasks_and_their_weights_make_the_mean():
    falling = scores(lambda arm, student, teacher: 0.5 - 0.02 * LOG[teacher])
    rising = scores(lambda arm, student, teacher: 0.5 + 0.04 * LOG[teacher]).assign(task="y")
    frame = pd.concat([falling, rising])
    assert only(teacher_trend(frame, SIZES)).slope == pytest.approx(0.01, abs=0.002)
    assert only(teacher_trend(frame, SIZES, weights={"x": 3, "y": 1})).slope == pytest.approx(-0.005, abs=0.002)
    assert only(teacher_trend(frame, SIZES, tasks=["y"])).slope == pytest.approx(0.04, abs=0.002)
    with pytest.raises(ConfigError, match="found none for y"):
        teacher_trend(frame, SIZES, weights={"x": 1})


def test_fewer_than_two_teachers_give_no_rows_and_a_note():
    found = teacher_trend(scores(lambda *_: 0.5, teachers=("t1",)), SIZES)
    assert found.empty and "two sizes of teacher or more" in sentences(found)[0]
    some = scores(lambda *_: 0.5)
    assert teacher_trend(some, SIZES, teachers=["t2"]).empty


def test_a_teacher_of_unknown_size_and_seeds_that_one_teacher_lacks_are_left_out_and_told():
    frame = scores(lambda *_: 0.5, teachers=("t1", "t2", "odd"), seeds=4)
    frame = frame[~((frame.teacher == "t2") & (frame.seed == 3))]
    found = teacher_trend(frame, SIZES)
    told = "\n".join(sentences(found))
    assert only(found).n_models == 2 and only(found).n_seeds == 3
    assert "Nothing is known to order a teacher by" in told and "(odd)" in told and "only seeds" in told


def test_one_seed_shows_no_trend():
    found = teacher_trend(scores(lambda arm, student, teacher: LOG[teacher] / 100, seeds=1), SIZES)
    assert only(found).reading == "no trend shown" and "no test with one seed" in sentences(found)[0]


# --- interactions -----------------------------------------------------------------------------------------------------


def test_on_a_full_grid_both_slopes_are_those_of_least_squares_on_both_sizes():
    frame = gain(0.01, -0.02, students=("s1", "s2"))
    found = interactions(frame, SIZES, [("atkd", "kl")]).set_index("moderator")
    means = frame.groupby(["student", "teacher", "objective"]).score.mean().unstack()
    x = np.array([(1, LOG[teacher], LOG[student]) for student, teacher in means.index])
    expected = np.linalg.lstsq(x, (means.atkd - means.kl).to_numpy(), rcond=None)[0]
    assert found.slope["teacher size"] == pytest.approx(expected[1])
    assert found.slope["student size"] == pytest.approx(expected[2])
    assert found.reading.tolist() == ["the gain grows with the teacher", "the gain shrinks with the student"]
    assert (
        found.mixed_slope.tolist() == pytest.approx(expected[1:].tolist())
        and found.mixed.str.startswith("fitted").all()
    )


def test_on_a_ragged_grid_teachers_are_set_against_each_other_only_within_a_student():
    frame = gain(0.01, 0.5, students=("s1", "s2"))
    frame = frame[~((frame.student == "s2") & frame.teacher.isin(["t1", "t2"]))]
    found = interactions(frame, SIZES, [("atkd", "kl")]).set_index("moderator")
    assert found.slope["teacher size"] == pytest.approx(0.01, abs=0.003)
    assert found.slope["student size"] == pytest.approx(0.5, abs=0.003)


def test_a_mixed_model_that_cannot_be_fitted_says_so():
    found = interactions(gain(0.01, seeds=1), SIZES, [("atkd", "kl")])
    assert math.isnan(only(found).mixed_slope) and "not fitted: too few seeds" in sentences(found)[0]
    same = interactions(gain(noise=0.0), SIZES, [("atkd", "kl")])
    assert math.isnan(only(same).mixed_slope) and only(same).mixed.startswith(("not fitted", "did not converge"))


def test_one_size_gives_no_interaction_and_an_arm_without_results_is_named():
    assert interactions(gain(teachers=("t1",)), SIZES, [("atkd", "kl")]).empty
    found = interactions(gain(0.01), SIZES, [("atkd", "kl"), ("jsd", "kl")])
    assert len(found) == 1 and "left out (jsd − kl)" in "\n".join(sentences(found))


# --- UNC --------------------------------------------------------------------------------------------------------------


def test_the_gain_follows_unc_per_tenth_with_a_rank_correlation():
    unsure = {"t1": 0.9, "t2": 0.7, "t3": 0.4, "t4": 0.1}

    def level(arm, student, teacher):
        return 0.5 - (0.1 * unsure[teacher] if arm == "atkd" else 0)

    frame = scores(level, ("kl", "atkd"), ("s1", "s2"))
    row = only(found := along_uncertainty(frame, unsure, [("atkd", "kl")]))
    assert row.slope == pytest.approx(-0.01, abs=0.002) and row.reading == "the gain shrinks with the teacher's UNC"
    assert row.spearman == -1 and (row.lowest, row.highest) == (pytest.approx(0.1), pytest.approx(0.9))
    assert "4 teachers run, with median UNC between 0.10 and 0.90" in sentences(found)[1]


def test_unc_that_is_not_known_leaves_the_teacher_out():
    frame = gain(0.01)
    found = along_uncertainty(frame, {"t1": 0.9, "t4": 0.1, "t2": math.nan}, [("atkd", "kl")])
    assert only(found).n_models == 2 and math.isnan(only(found).spearman)
    empty = along_uncertainty(frame, {}, [("atkd", "kl")])
    assert empty.empty and "two teachers whose median UNC is known" in "\n".join(sentences(empty))


# --- words ------------------------------------------------------------------------------------------------------------


def test_a_sentence_gives_points_interval_p_and_sample_and_another_the_sizes_that_it_holds_for():
    frame = scores(lambda arm, student, teacher: 0.5 - 0.02 * (LOG[teacher] - LOG["t1"]))
    text, held = sentences(teacher_trend(frame, SIZES))
    assert text.startswith("kl at student s1: larger teachers hurt: −2.0")
    assert "points per doubling of the teacher (95 % interval −2." in text and "3 seeds × 40 items" in text
    assert held == "This holds for the 4 teachers between 1M and 16M parameters that were run, and no further."


def test_models_of_nearly_one_size_show_no_slope():
    found = teacher_trend(scores(lambda *_: 0.5, teachers=("t1", "t2")), {"t1": 124e6, "t2": 125e6})
    assert found.empty and "lie this close together" in sentences(found)[0]


def test_sizes_must_be_numbers_above_zero():
    with pytest.raises(ConfigError, match="found 0 for 't1'"):
        teacher_trend(scores(lambda *_: 0.5), SIZES | {"t1": 0})
