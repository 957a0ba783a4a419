"""`compare`: what is paired with what, what is said of it, and every error."""

from __future__ import annotations

import io
import json
import time

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from kdbench.analysis.verdict import checkpoints, compare
from kdbench.analysis.words import summary
from kdbench.errors import ConfigError

COLUMNS = ["student", "teacher", "task", "objective", "baseline", "delta", "ci_low", "ci_high"]
COLUMNS += ["p_value", "p_adjusted", "verdict", "n_seeds", "n_items"]


def arm(objective, scores, *, student="s", teacher="t", seeds=None, task="x"):
    """Rows of one arm: `scores` [seeds, items]; seeds None: 0, 1, 2 …"""
    scores = np.atleast_2d(np.asarray(scores, dtype=float))
    seeds = range(len(scores)) if seeds is None else seeds
    rows = [
        (objective, student, teacher, seed, task, item, value)
        for seed, line in zip(seeds, scores, strict=True)
        for item, value in enumerate(line)
    ]
    return pd.DataFrame(rows, columns=["objective", "student", "teacher", "seed", "task", "item", "score"]).astype(
        object
    )


def noisy(level, seeds=3, items=200, rng=0):
    rng = np.random.default_rng(rng)
    return (rng.random((seeds, items)) < level).astype(float)


def pair(a=0.9, b=0.3, seeds=3, **more):
    return pd.concat([arm("kl", noisy(a, seeds, rng=1), **more), arm("sft", noisy(b, seeds, rng=2), **more)])


def test_the_table_has_exactly_the_promised_columns_and_an_overall_row():
    found = compare(pair(), "sft")
    assert list(found.table.columns) == COLUMNS and list(found.pooled.columns) == COLUMNS
    assert list(found.table.task) == ["x", "overall"] and found.pooled.empty
    assert found.table.n_seeds.tolist() == [3, 3] and found.table.n_items.tolist() == [200, 200]


def test_delta_is_the_mean_paired_difference_in_units_of_score():
    a, b = noisy(0.9, rng=1), noisy(0.3, rng=2)
    found = compare(pair(), "sft").table.iloc[-1]
    assert found.delta == pytest.approx((a - b).mean())
    assert found.verdict == "better" and found.ci_low < found.delta < found.ci_high
    assert compare(pair(), "kl").table.iloc[-1].verdict == "worse"


def test_overall_weighs_tasks_equally_or_as_told():
    frame = pd.concat([pair(), pair(0.5, 0.5, task="y")])
    per_task = compare(frame, "sft").table.set_index("task").delta
    assert per_task["overall"] == pytest.approx((per_task["x"] + per_task["y"]) / 2)
    told = compare(frame, "sft", weights={"x": 3, "y": 1}).table.set_index("task").delta
    assert told["overall"] == pytest.approx(0.75 * per_task["x"] + 0.25 * per_task["y"])
    assert set(compare(frame, "sft", tasks=["y"]).table.task) == {"y", "overall"}


@pytest.mark.parametrize("null", [None, np.nan, pd.NA])
def test_an_arm_without_teacher_stands_beside_every_teacher(null):
    taught = [arm("kl", noisy(0.9, rng=1), teacher="t1"), arm("kl", noisy(0.8, rng=3), teacher="t2")]
    frame = pd.concat([*taught, arm("sft", noisy(0.3, rng=2), teacher=null)])
    found = compare(frame, "sft")
    overall = found.table[found.table.task == "overall"]
    assert overall.teacher.tolist() == ["t1", "t2"]
    assert found.pooled.iloc[-1][["student", "teacher", "task"]].tolist() == ["all", "all", "overall"]
    assert found.pooled.iloc[-1].delta == pytest.approx(overall.delta.mean())


def test_two_arms_without_teacher_give_one_row_with_teacher_none():
    found = compare(pair(teacher=None), "sft")
    assert found.table.teacher.tolist() == [None, None]


def test_an_arm_without_seed_stands_beside_every_seed():
    frame = pd.concat([arm("kl", noisy(0.9, rng=1)), arm("floor", noisy(0.3, 1, rng=2), teacher=None, seeds=[None])])
    assert compare(frame, "floor").table.n_seeds.tolist() == [3, 3]


def test_floor_and_ceiling_are_contrasted_only_when_asked_but_give_the_gap_recovered():
    floor = arm("floor", np.zeros((1, 200)), teacher=None, seeds=[None])
    ceiling = arm("ceiling", np.ones((1, 200)), student=None, seeds=[None])
    frame = pd.concat([floor, ceiling, pair()])
    found = compare(frame, "sft")
    assert set(found.table.objective) == {"kl"}
    means = found.means[found.means.task == "overall"].set_index("objective")
    assert means.gap_recovered["kl"] == pytest.approx(means["mean"]["kl"])
    assert means.gap_recovered["floor"] == 0
    assert means.sd_seeds["kl"] > 0 and means.n_seeds["kl"] == 3
    assert set(compare(frame, "sft", objectives=["floor", "ceiling"]).table.objective) == {"floor", "ceiling"}


def test_only_common_seeds_and_items_enter_and_the_rest_is_named():
    frame = pair(seeds=4)
    frame = frame[~((frame.objective == "kl") & (frame.seed == 3))]
    frame = frame[~((frame.objective == "sft") & (frame.seed == 1) & (frame.item == 7))]
    found = compare(frame, "sft")
    assert found.table.n_seeds.tolist() == [3, 3] and found.table.n_items.tolist() == [199, 199]
    text = "\n".join(found.notes)
    assert "seeds on one side only were left out: 3" in text and "1 items" in text


def test_a_task_of_one_side_is_left_out_and_named():
    frame = pd.concat([pair(), arm("kl", noisy(0.5), task="y")])
    found = compare(frame, "sft")
    assert set(found.table.task) == {"x", "overall"} and "tasks on one side only were left out: y" in found.notes[0]


def test_the_order_of_rows_does_not_matter():
    frame = pd.concat([pair(), pair(0.6, 0.5, task="y")])
    mixed = frame.sample(frac=1, random_state=0)
    first, second = (compare(f, "sft", tasks=["x", "y"]) for f in (frame, mixed))
    pd.testing.assert_frame_equal(first.table, second.table)


def test_identical_scores_are_equivalent_with_p_one():
    same = noisy(0.5)
    found = compare(pd.concat([arm("kl", same), arm("sft", same)]), "sft").table.iloc[-1]
    assert (found.delta, found.p_value, found.verdict) == (0, 1, "equivalent")


def test_a_constant_shift_is_decided_without_nan():
    frame = pd.concat([arm("kl", np.full((3, 9), 0.6)), arm("sft", np.full((3, 9), 0.5))])
    found = compare(frame, "sft").table.iloc[-1]
    assert found.verdict == "better" and found.p_value == 0 and found.ci_low == pytest.approx(0.1)


def test_a_small_difference_is_equivalent_inside_a_wide_margin_and_undecided_inside_a_narrow_one():
    frame = pair(0.5, 0.5, seeds=5)
    assert compare(frame, "sft", margin=0.5).table.iloc[-1].verdict == "equivalent"
    assert compare(frame, "sft", margin=0.001).table.iloc[-1].verdict == "undecided"


def test_one_seed_is_never_enough():
    found = compare(pair(seeds=1), "sft")
    assert set(found.table.verdict) == {"undecided"} and found.table.p_value.isna().all()
    assert found.table.ci_low.notna().all() and "one seed cannot decide" in found.notes[0]
    assert "one seed cannot decide" in found.sentences()[0]


def test_few_seeds_say_that_the_test_is_model_based():
    found = compare(pair(), "sft")
    assert found.smallest_p == 0.25 and "model-based" in found.notes[0] and "0.25" in found.notes[0]
    assert "crossed random effects" in found.method


def test_from_six_seeds_on_the_interval_is_bootstrapped_and_p_at_least_the_sign_flip_p():
    found = compare(pair(seeds=6), "sft")
    assert "hierarchical bootstrap" in found.method and "sign flip" in found.method
    assert found.table.p_value.min() >= found.smallest_p == 2 / 2**6
    assert found.table.iloc[-1].verdict == "better"


def test_where_sign_flipping_cannot_reach_alpha_in_its_family_the_model_is_used_and_said():
    more = [arm(f"o{i}", noisy(0.9, 6, rng=10 + i)) for i in range(3)]
    found = compare(pd.concat([pair(seeds=6), *more]), "sft")
    assert "too large for a family of 4" in "\n".join(found.notes)
    assert set(found.table.verdict) == {"better"}


def test_holm_runs_over_overall_rows_and_benjamini_hochberg_over_tasks():
    frame = pd.concat([pair(0.6, 0.5), arm("rkl", noisy(0.55, rng=9))])
    table = compare(frame, "sft").table
    overall = table[table.task == "overall"].sort_values("p_value")
    assert overall.p_adjusted.iloc[0] == pytest.approx(min(1, 2 * overall.p_value.iloc[0]))
    assert (overall.p_adjusted >= overall.p_value).all()


def test_contrasts_may_name_their_own_baselines():
    frame = pd.concat([pair(), arm("rkl", noisy(0.5, rng=9))])
    found = compare(frame, contrasts=[("kl", "rkl"), ("rkl", "sft")])
    assert found.contrasts == [("kl", "rkl"), ("rkl", "sft")]
    assert list(found.table.baseline.unique()) == ["rkl", "sft"]


def test_the_same_input_gives_the_same_json():
    first, second = (json.dumps(compare(pair(seeds=6), "sft").to_json(), allow_nan=False) for _ in range(2))
    assert first == second
    assert json.loads(first)["table"][1]["verdict"] == "better"
    json.dumps(compare(pair(seeds=1, teacher=None), "sft").to_json(), allow_nan=False)


def test_undecided_rows_say_what_would_decide_them():
    found = compare(pair(0.55, 0.5), "sft")
    assert found.table.iloc[-1].verdict == "undecided" and "cannot be told apart" in found.sentences()[0]
    assert found.details.mde.notna().all() and {"method", "seeds_needed", "mde"} <= set(found.details)
    assert "would decide it" in found.sentences()[0]


def test_a_sentence_names_arms_places_points_and_sample():
    text = compare(pair(student="64x2", teacher="128x4"), "sft").sentences()[0]
    assert text.startswith("kl beats sft at student 64x2 with teacher 128x4 by ")
    assert "points (95 % interval" in text and text.endswith("3 seeds × 200 items).")


def test_scores_outside_zero_to_one_are_not_called_points():
    frame = pair()
    frame["score"] = frame["score"] * 50.0
    assert "units of score" in compare(frame, "sft", margin=0.5).sentences()[0]


def test_tables_fit_a_hundred_columns_even_with_long_names():
    long = {"student": "facebook/opt-125m-student", "teacher": "facebook/opt-6.7b-the-teacher"}
    frame = pd.concat([pair(**long), arm("gkd(beta=0.5)+atkd(hard=0.7)", noisy(0.6), **long), pair(student="b")])
    for table in compare(frame, "sft").rich_tables():
        out = io.StringIO()
        Console(width=100, file=out).print(table)
        text = out.getvalue()
        assert max(map(len, text.splitlines())) <= 100
        assert table.title.startswith("Scores") or "better" in text


def test_markdown_holds_the_sentence_the_table_and_the_notes():
    text = compare(pair(), "sft").to_markdown()
    assert "kl beats sft" in text and "| kl − sft |" in text and "## Notes" in text


def broken(**change):
    return pair().assign(**change)


@pytest.mark.parametrize(
    "frame, options, message",
    [
        (pair().drop(columns="item"), {"baseline": "sft"}, "lack the column 'item'"),
        (pair().iloc[:0], {"baseline": "sft"}, "no rows"),
        (pair(), {"baseline": "sfd"}, "Did you mean 'sft'"),
        (pair(), {"baseline": "sft", "objectives": ["kk"]}, "objective 'kk'"),
        (pair(), {"contrasts": [("kl", "nothing")]}, "baseline 'nothing'"),
        (pair(), {"contrasts": [("kl", "kl")]}, "another objective than itself"),
        (pair(), {}, "give either baseline= or contrasts="),
        (pair(), {"baseline": "sft", "contrasts": [("kl", "sft")]}, "give either"),
        (pair(), {"baseline": "sft", "objectives": ["sft"]}, "nothing to compare"),
        (pair(), {"baseline": "sft", "tasks": ["z"]}, "task 'z'"),
        (pair(), {"baseline": "sft", "tasks": []}, "tasks= is empty"),
        (pair(), {"baseline": "sft", "weights": {"x": 0}}, "above 0"),
        (pair(), {"baseline": "sft", "weights": {"x": 1, "z": 1}}, "'z'"),
        (pair(), {"baseline": "sft", "margin": 0}, "margin"),
        (pair(), {"baseline": "sft", "alpha": 0.7}, "alpha"),
        (pd.concat([pair(), pair().iloc[:1]]), {"baseline": "sft"}, "more than once"),
        (broken(score=[np.nan] + [1.0] * 1199), {"baseline": "sft"}, "1 scores are NaN"),
        (broken(score="good"), {"baseline": "sft"}, "must be a number"),
        (broken(task=None), {"baseline": "sft"}, "without 'task'"),
        (broken(task="overall"), {"baseline": "sft"}, "rename"),
        (broken(item_hash=[str(i) for i in range(1200)]), {"baseline": "sft"}, "another item_hash"),
        (pd.concat([arm("kl", noisy(1)), arm("sft", noisy(1), student="other")]), {"baseline": "sft"}, "no overlap"),
        (
            pd.concat([arm("kl", noisy(1)), arm("sft", noisy(1), seeds=[7, 8, 9])]),
            {"baseline": "sft"},
            "no common seed",
        ),
        (pd.concat([arm("kl", noisy(1)), arm("sft", noisy(1), task="y")]), {"baseline": "sft"}, "no common item"),
        (pd.concat([pair(), arm("kl", noisy(1, 1), seeds=[None])]), {"baseline": "sft"}, "with and without a seed"),
    ],
)
def test_every_misfit_is_one_clear_error(frame, options, message):
    with pytest.raises(ConfigError, match=message):
        compare(frame, **options)


def test_scores_without_a_hash_stand_beside_scores_with_one():
    frame = pair()
    frame["item_hash"] = frame["item"].astype(str).where(frame.objective == "sft")
    assert len(compare(frame, "sft").table) == 2


def test_equal_hashes_on_both_sides_are_fine():
    frame = pair()
    frame["item_hash"] = frame["item"].astype(str)
    assert len(compare(frame, "sft").table) == 2


def test_checkpoints_are_compared_seed_by_seed_with_mcnemar():
    found = checkpoints(pair(), "kl", "sft")
    assert found.seed.tolist() == [0, 0, 1, 1, 2, 2] and set(found.method) == {"exact McNemar"}
    assert (found.p_value < 1e-6).all() and (found.wins > found.losses).all()
    assert (found.p_adjusted >= found.p_value).all()


def test_graded_checkpoints_are_compared_by_permutation():
    frame = pair()
    frame["score"] = frame["score"].astype(float) + np.random.default_rng(0).normal(0, 0.1, len(frame))
    found = checkpoints(frame, "kl", "sft")
    assert set(found.method) == {"paired permutation over items"} and (found.p_value <= 0.001).all()


def test_thirty_cells_of_three_thousand_items_take_less_than_two_seconds():
    names = ["sft", *(f"o{i}" for i in range(9))]
    frame = pd.concat([arm(name, noisy(0.5, 3, 3000, rng=i)) for i, name in enumerate(names)]).infer_objects()
    begin = time.perf_counter()
    compare(frame, "sft")
    assert time.perf_counter() - begin < 2


def test_of_many_contrasts_only_what_was_decided_gets_a_sentence_of_its_own():
    arms = [arm("sft", noisy(0.3, rng=2)), arm("good", noisy(0.9, rng=1))]
    arms += [arm(f"same-{i}", noisy(0.3, rng=10 + i)) for i in range(9)]
    sentences = summary(compare(pd.concat(arms), "sft"))
    assert len(sentences) == 2 and sentences[0].startswith("good beats sft")
    assert "9 of 10 rows are undecided" in sentences[1]
