"""The token view finds what was put into the tokens: how sure a teacher is, and where one arm gains on another.

python -m pytest -n 0 tests/analysis/test_token_view.py
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kdbench.analysis import token_view
from kdbench.analysis.results import open_suite
from kdbench.errors import ConfigError
from tests.analysis.small_store import CACHE, SmallStore

SURE = np.random.default_rng(0).permutation(np.linspace(0.01, 0.99, 60))  # the teacher's p of each token
TAUGHT = np.log(SURE)
EASY = np.argsort(-SURE)[:30]


def suite(tmp_path, gain_easy=0.2, gain_hard=-0.1, seeds=3) -> SmallStore:
    """`new` gives the easy half of the tokens more than `old`, and the hard half less, a little more each seed."""
    made = SmallStore(tmp_path)
    made.cell("ceiling", None, "big", None, TAUGHT)
    for seed in range(seeds):
        base = np.random.default_rng(seed).uniform(-6, -4, 60)
        made.cell("old", "small", None, seed, base)
        gain = np.where(np.isin(np.arange(60), EASY), gain_easy, gain_hard) + 0.01 * seed
        made.cell("new", "small", "big", seed, base + gain, TAUGHT)
    return made


def read(made: SmallStore):
    return open_suite(made.store.root)


def test_a_gain_on_easy_tokens_is_found_on_easy_tokens(tmp_path):
    frame = token_view.by_difficulty(read(suite(tmp_path)), "new", "old", bins=2)
    assert list(frame.bin) == [0, 1, 2] and list(frame.n_tokens) == [60, 30, 30]
    assert frame.delta.tolist() == pytest.approx([0.06, 0.21, -0.09], abs=1e-6)
    assert frame.unc_low[1] == pytest.approx(0.01) and frame.unc_high[2] == pytest.approx(0.99)
    assert frame.unc_high[1] < frame.unc_low[2]


def test_the_interval_is_the_paired_t_interval_over_seeds(tmp_path):
    row = token_view.by_difficulty(read(suite(tmp_path)), "new", "old", bins=2).iloc[1]
    expected = scipy_stats.ttest_1samp([0.20, 0.21, 0.22], 0).confidence_interval(0.95)
    assert (row.ci_low, row.ci_high) == pytest.approx(tuple(expected), abs=1e-5)


def test_one_seed_gives_a_difference_without_an_interval(tmp_path):
    frame = token_view.by_difficulty(read(suite(tmp_path, seeds=1)), "new", "old", bins=2)
    assert frame.n_seeds.tolist() == [1, 1, 1] and frame.ci_low.isna().all()
    title, head, rows = token_view.table(frame)
    assert title.startswith("new − old: log p") and head[-1] == "seeds" and rows[0][-1] == "1"
    assert not any("[" in text for text in rows[0])


def test_seeds_that_only_one_arm_has_are_left_out(tmp_path):
    made = suite(tmp_path)
    made.cell("new", "small", "big", 7, TAUGHT, TAUGHT)
    made.cell("old", "small", None, 8, TAUGHT, status="diverged")
    assert set(token_view.by_difficulty(read(made), "new", "old").n_seeds) == {3}


def test_a_floor_without_a_seed_stands_beside_every_seed(tmp_path):
    made = suite(tmp_path)
    made.cell("floor", "small", None, None, np.full(60, -5.0))
    assert set(token_view.by_difficulty(read(made), "new", "floor").n_seeds) == {3}


def test_without_a_ceiling_the_students_know_how_sure_their_teacher_is(tmp_path):
    made = suite(tmp_path)
    with_ceiling = token_view.by_difficulty(read(made), "new", "old")
    del made.cells[0]
    made.plan()
    assert token_view.by_difficulty(read(made), "new", "old").equals(with_ceiling)


def test_cells_from_before_token_scores_are_named_and_not_guessed_at(tmp_path):
    made = suite(tmp_path)
    made.cell("bare", "small", "big", 0)
    results = read(made)
    assert token_view.by_difficulty(results, "bare", "old").empty
    assert "bare · small ← big · seed 0" in token_view.lacking(results)[0]
    assert token_view.lacking(read(suite(tmp_path / "other"))) == []


def test_an_unknown_arm_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match=r"no arm 'nwe'.*Did you mean 'new'"):
        token_view.by_difficulty(read(suite(tmp_path)), "nwe", "old")


# --- how sure a teacher is --------------------------------------------------------------------------------------------


def cached(made: SmallStore, **facts) -> None:
    entry = made.store.entry("teacher_cache", CACHE)
    entry.begin({})
    entry.commit("ok", {"wall_s": 1.0}, **facts)


def test_uncertainty_is_one_minus_the_probability_of_what_follows(tmp_path):
    made = suite(tmp_path)
    noted = {"mean": 0.3, "q10": 0.1, "q25": 0.2, "q50": 0.25, "q75": 0.4, "q90": 0.6}
    cached(made, uncertainty=noted)
    frame = token_view.uncertainty(read(made))
    assert frame.text.tolist() == ["held-out", "distillation"]
    held_out, distilled = frame.to_dict("records")
    assert held_out["mean"] == pytest.approx((1 - SURE).mean(), abs=1e-6)
    assert held_out["q25"] == pytest.approx(np.quantile(1 - SURE, 0.25), abs=1e-6)
    assert {name: distilled[name] for name in noted} == noted
    assert token_view.sentences(frame)[-1] == (
        "Sure of most tokens of the distillation text (median UNC below .50): big."
    )


def test_a_cache_that_noted_nothing_gives_no_row(tmp_path):
    made = suite(tmp_path)
    cached(made)
    assert token_view.uncertainty(read(made)).text.tolist() == ["held-out"]


def test_a_suite_of_which_nothing_is_known_says_so(tmp_path):
    made = SmallStore(tmp_path)
    made.cell("new", "small", "big", 0)
    frame = token_view.uncertainty(read(made))
    assert frame.empty and "No teacher's certainty is known" in token_view.sentences(frame)[0]


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_are_the_same_bytes_each_time_and_hold_every_number(tmp_path):
    made = suite(tmp_path)
    results = read(made)
    frames = token_view.uncertainty(results), token_view.by_difficulty(results, "new", "old")
    for number, (draw, frame) in enumerate(
        zip((token_view.draw_uncertainty, token_view.draw_by_difficulty), frames, strict=True)
    ):
        paths = [tmp_path / f"{number}{turn}.svg" for turn in "ab"]
        for path in paths:
            draw(frame, path)
        assert paths[0].read_bytes() == paths[1].read_bytes() and b"nan" not in paths[0].read_bytes().lower()


def test_a_picture_needs_no_interval(tmp_path):
    frame = token_view.by_difficulty(read(suite(tmp_path, seeds=1)), "new", "old")
    token_view.draw_by_difficulty(frame, tmp_path / "one.png")
    assert math.isnan(frame.ci_low.iloc[0]) and (tmp_path / "one.png").stat().st_size > 5_000
