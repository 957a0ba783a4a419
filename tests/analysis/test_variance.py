"""What varies: components, effect size, clusters, and the variance that a family shares.

python -m pytest -q -n 0 tests/analysis/test_variance.py
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from kdbench import compare
from kdbench.analysis import stats
from kdbench.analysis.clusters import grouped
from kdbench.analysis.variance import components, effect_size, moderated
from kdbench.analysis.verdict import checkpoints
from kdbench.errors import ConfigError
from tests.analysis.test_verdict import arm, noisy, pair


def test_components_are_recovered_from_a_large_crossed_sample():
    rng, shape = np.random.default_rng(0), (400, 900)
    block = rng.normal(0, 0.2, (400, 1)) + rng.normal(0, 0.5, (1, 900)) + rng.normal(0, 0.8, shape)
    found = components(block)
    assert (found.seed, found.item, found.residual) == pytest.approx((0.04, 0.25, 0.64), rel=0.25)


def test_components_are_the_anova_mean_squares_of_statsmodels():
    rng = np.random.default_rng(1)
    block = rng.normal(0, 1, (4, 1)) + rng.normal(0, 1, (1, 12)) + rng.normal(0, 1, (4, 12))
    seed, item = np.indices(block.shape)
    frame = pd.DataFrame({"d": block.ravel(), "seed": seed.ravel(), "item": item.ravel()})
    table = sm.stats.anova_lm(sm.OLS.from_formula("d ~ C(seed) + C(item)", frame).fit())
    ms = table["sum_sq"] / table["df"]
    expected = ((ms["C(seed)"] - ms["Residual"]) / 12, (ms["C(item)"] - ms["Residual"]) / 4, ms["Residual"])
    found = components(block)
    assert (found.seed, found.item, found.residual) == pytest.approx(expected)


def test_hedges_correction_makes_the_effect_size_unbiased():
    rng = np.random.default_rng(2)
    found = [effect_size(rng.normal(0.8, 1, 6)) for _ in range(20_000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.01)
    assert np.isnan(effect_size(np.array([0.1, 0.2]))) and np.isnan(effect_size(np.full(5, 0.1)))


def test_moderation_raises_small_variances_and_never_lowers_a_large_one():
    rng = np.random.default_rng(3)
    fits = [stats.crossed([rng.normal(0, sd, (3, 1))], [1.0]) for sd in (0.1, 1, 1, 4)]
    after, mean = moderated(fits), np.mean([fit.var_seeds for fit in fits])
    for old, new in zip(fits, after, strict=True):
        assert new.var_seeds == pytest.approx(max(old.var_seeds, mean)) and new.df_seeds == 4


def test_four_contrasts_of_three_seeds_borrow_variance_and_say_so_and_three_do_not():
    arms = [arm(f"o{i}", noisy(0.6, rng=10 + i)) for i in range(4)]
    found = compare(pd.concat([arm("sft", noisy(0.3, rng=2)), *arms]), "sft")
    assert found.adjustment == "Bonferroni" and "its df doubled" in found.method and "Bonferroni" in found.method
    overall = found.details[found.details.task == "overall"]
    row = found.table[found.table.task == "overall"]
    assert row.p_value.to_numpy() == pytest.approx(overall.p_moderated.to_numpy())
    assert row.p_adjusted.to_numpy() == pytest.approx(np.minimum(1, 4 * overall.p_moderated.to_numpy()))
    fewer = compare(pd.concat([arm("sft", noisy(0.3, rng=2)), *arms[:3]]), "sft")
    assert fewer.adjustment == "Holm" and fewer.details.p_moderated.isna().all()


def test_a_row_that_is_decided_with_borrowed_variance_has_an_interval_without_zero():
    for rng in range(6):
        arms = [arm(f"o{i}", noisy(0.45 + 0.02 * i, rng=100 * rng + i)) for i in range(5)]
        table = compare(pd.concat([arm("sft", noisy(0.4, rng=999 + rng)), *arms]), "sft").table
        table = table[(table.task == "overall") & table.verdict.isin(["better", "worse"])]
        assert ((table.ci_low > 0) | (table.ci_high < 0)).all()


def test_clusters_of_one_item_change_nothing_and_the_mean_never_changes():
    block = np.random.default_rng(4).normal(0, 1, (3, 30))
    assert grouped(block, np.arange(30)) == pytest.approx(block)
    uneven = np.repeat(np.arange(6), [1, 2, 3, 4, 10, 10])
    assert grouped(block, uneven).mean(axis=1) == pytest.approx(block.mean(axis=1)) and grouped(
        block, uneven
    ).shape == (3, 6)


def test_the_clustered_standard_error_is_statsmodels_cluster_robust_one():
    rng, codes = np.random.default_rng(5), np.repeat(np.arange(40), 5)
    values = rng.normal(0.2, 1, 40)[codes] + rng.normal(0, 0.5, 200)
    fit = stats.crossed([grouped(values[None], codes)], [1.0])
    robust = sm.OLS(values, np.ones(200)).fit(cov_type="cluster", cov_kwds={"groups": codes, "use_correction": False})
    assert fit.delta == pytest.approx(robust.params[0])
    assert fit.se == pytest.approx(robust.bse[0] * np.sqrt(40 / 39))


def test_items_of_one_passage_widen_the_interval_and_are_counted_once():
    rng = np.random.default_rng(6)
    luck = np.repeat(rng.normal(0, 0.3, 40), 5)
    frame = pd.concat([arm("kl", 0.5 + luck + rng.normal(0, 0.1, (3, 200))), arm("sft", np.full((3, 200), 0.5))])
    plain = compare(frame, "sft")
    frame["cluster"] = frame["item"] // 5
    for found in (compare(frame, "sft"), compare(frame.sample(frac=1, random_state=0), "sft")):
        one, two = plain.table.iloc[-1], found.table.iloc[-1]
        assert two.delta == pytest.approx(one.delta) and two.n_items == 200 and found.details.n_units.iloc[-1] == 40
        assert two.ci_high - two.ci_low > 1.5 * (one.ci_high - one.ci_low)


def test_without_shared_clusters_the_column_changes_nothing():
    frame = pair(seeds=6)
    frame["cluster"] = [None if item % 2 else f"passage {item}" for item in frame["item"]]
    plain, found = compare(pair(seeds=6), "sft"), compare(frame, "sft")
    columns = ["delta", "ci_low", "ci_high", "p_value"]
    # the clusters' order differs, so the bootstrap draws others
    assert found.table[columns].to_numpy() == pytest.approx(plain.table[columns].to_numpy(), abs=3e-3)


def test_an_item_in_two_clusters_is_one_clear_error():
    frame = pair()
    frame["cluster"] = [f"{objective}-{item}" for objective, item in zip(frame.objective, frame["item"], strict=True)]
    with pytest.raises(ConfigError, match="give every item one cluster"):
        compare(frame, "sft")


def test_the_comparison_shows_components_effect_size_and_the_gap_as_unit():
    floor = arm("floor", np.zeros((1, 200)), teacher=None, seeds=[None])
    ceiling = arm("ceiling", np.ones((1, 200)), student=None, seeds=[None])
    found = compare(pd.concat([floor, ceiling, pair()]), "sft")
    row = found.details[found.details.task == "overall"].iloc[0]
    assert row.gap_recovered_delta == pytest.approx(found.table.iloc[-1].delta) and row.effect_size > 1
    assert list(found.variance.task) == ["x", "overall"] and found.variance.residual.iloc[0] > 0.1
    assert compare(pair(), "sft").details.gap_recovered_delta.isna().all()


def test_checkpoints_flip_whole_clusters():
    frame = pair()
    alone = checkpoints(frame, "kl", "sft")
    frame["cluster"] = frame["item"] // 50
    found = checkpoints(frame, "kl", "sft")
    assert set(found.method) == {"paired permutation over clusters"} and (found.p_value >= 2 / 2**4).all()
    assert found.delta.tolist() == alone.delta.tolist() and (alone.p_value < 1e-6).all()
