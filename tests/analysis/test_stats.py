"""Numbers in, numbers out: what libraries cover must agree with them, and true nulls must survive."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from kdbench.analysis import stats


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
def test_with_one_item_a_task_it_is_the_paired_t_test_over_seeds(seeds):
    rng = np.random.default_rng(seeds)
    a, b = rng.normal(0.4, 1, (2, seeds, 3))
    fit = stats.crossed([(a - b)[:, [t]] for t in range(3)], [1 / 3] * 3)
    expected = scipy_stats.ttest_rel(a.mean(axis=1), b.mean(axis=1))
    assert stats.t_p_value(fit) == pytest.approx(expected.pvalue, rel=1e-9)
    assert stats.t_interval(fit, 0.95) == pytest.approx(tuple(expected.confidence_interval()))


def test_with_one_seed_and_one_task_the_interval_is_the_t_interval_over_items():
    values = np.random.default_rng(0).normal(0.1, 1, 200)
    fit = stats.crossed([values[None]], [1.0])
    assert stats.t_interval(fit, 0.95) == pytest.approx(tuple(scipy_stats.ttest_1samp(values, 0).confidence_interval()))


def test_the_variance_is_the_anova_estimator_of_a_crossed_design():
    rng = np.random.default_rng(1)
    block = rng.normal(0, 1, (4, 1)) + rng.normal(0, 1, (1, 30)) + rng.normal(0, 0.5, (4, 30))
    fit = stats.crossed([block], [1.0])
    rest = block - block.mean(1, keepdims=True) - block.mean(0) + block.mean()
    ms_seed = 30 * block.mean(1).var(ddof=1)
    ms_item, ms_rest = 4 * block.mean(0).var(ddof=1), (rest**2).sum() / (3 * 29)
    assert fit.se**2 == pytest.approx((ms_seed + ms_item - ms_rest) / (4 * 30))
    assert fit.delta == pytest.approx(block.mean())


def test_seeds_that_agree_by_luck_do_not_shrink_the_interval_below_the_noise_of_items():
    block = np.random.default_rng(0).normal(0, 1, (3, 400))
    block -= block.mean(axis=1, keepdims=True)  # all seed means equal
    fit = stats.crossed([block + 0.01], [1.0])
    assert fit.var_seeds == pytest.approx(0) and fit.se == pytest.approx(1 / np.sqrt(1200), rel=0.1)


@pytest.mark.parametrize("size", [2, 5, 9, 12])
def test_sign_flip_equals_scipys_exact_permutation_test(size):
    values = np.round(np.random.default_rng(size).normal(0.5, 1, size), 1)
    expected = scipy_stats.permutation_test(
        (values,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        n_resamples=2**size,
        vectorized=True,
    )
    assert stats.sign_flip(values, np.random.default_rng(0)) == pytest.approx(expected.pvalue)


def test_sampled_sign_flip_is_near_the_t_test_and_never_zero():
    values = np.random.default_rng(0).normal(0.3, 1, 60)
    p = stats.sign_flip(values, np.random.default_rng(0))
    assert p == pytest.approx(scipy_stats.ttest_1samp(values, 0).pvalue, abs=0.02)
    assert stats.sign_flip(np.ones(20), np.random.default_rng(0)) > 0


def test_the_smallest_sign_flip_p_is_reached():
    for seeds in (1, 3, 6, 12):
        assert stats.sign_flip(np.ones(seeds), np.random.default_rng(0)) == stats.smallest_sign_flip_p(seeds)


def test_mcnemar_is_the_exact_binomial_on_discordant_items():
    assert stats.mcnemar(3, 12) == pytest.approx(mcnemar([[9, 3], [12, 9]], exact=True).pvalue)
    assert stats.mcnemar(3, 12) == pytest.approx(scipy_stats.binomtest(3, 15).pvalue)
    assert stats.mcnemar(0, 0) == 1.0


@pytest.mark.parametrize("method", ["holm", "bonferroni", "fdr_bh"])
def test_adjustment_is_statsmodels_own(method):
    p = np.round(np.random.default_rng(0).beta(0.4, 3, 30), 3)  # with ties
    assert stats.adjust(p, method) == pytest.approx(multipletests(p, method=method)[1])


def test_adjustment_leaves_rows_without_a_test_outside_the_family():
    found = stats.adjust(np.array([0.01, np.nan, 0.04]), "holm")
    assert found[0] == pytest.approx(0.02) and np.isnan(found[1]) and found[2] == pytest.approx(0.04)
    assert np.isnan(stats.adjust(np.array([np.nan]), "fdr_bh")).all()


@pytest.mark.parametrize("value, p", [(0.0, 1.0), (0.1, 0.0), (-0.3, 0.0)])
@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_without_any_variance_there_is_no_nan(value, p, seeds):
    fit = stats.crossed([np.full((seeds, 7), value)], [1.0])
    resampled = stats.Resampler(0, 200).means([np.full((seeds, 7), value)], [0])[0]
    assert stats.t_p_value(fit) == p
    assert stats.t_interval(fit, 0.95) == pytest.approx((value, value))
    assert stats.bootstrap_interval(fit, resampled, 0.95) == pytest.approx((value, value))


def test_more_seeds_are_needed_for_a_smaller_difference_and_never_fewer_than_there_are():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.05, (4, 1)) + rng.normal(0, 0.3, (4, 500))
    noise -= noise.mean()
    small, large = (stats.seeds_needed(stats.crossed([noise + d], [1.0]), 0.05, 1e-6) for d in (0.02, 0.2))
    assert small > large >= 5
    lone = noise[:, :1] - noise[:, :1].mean()  # one item: seeds are all that varies
    assert stats.seeds_needed(stats.crossed([lone + 1e-5], [1.0]), 0.05, 1e-9) == stats.SEEDS_CAP


def test_when_items_alone_keep_it_open_no_number_of_seeds_is_promised():
    block = np.random.default_rng(0).normal(0.01, 1, (1, 30)).repeat(4, axis=0)
    assert np.isnan(stats.seeds_needed(stats.crossed([block], [1.0]), 0.05, 0.001))


def test_the_detectable_difference_is_found_with_the_promised_power():
    rng, hits, mde = np.random.default_rng(0), 0, 2.85 / np.sqrt(20)  # 20 seeds, sd 1, t quantiles of 19 df
    fits = [stats.crossed([rng.normal(0, 1, (20, 1))], [1.0]) for _ in range(200)]
    assert np.median([stats.detectable(fit, 0.05) for fit in fits]) == pytest.approx(mde, rel=0.1)
    hits = sum(stats.t_p_value(stats.crossed([rng.normal(mde, 1, (20, 1))], [1.0])) < 0.05 for _ in range(400))
    assert 0.72 < hits / 400 < 0.88


@pytest.mark.parametrize("seeds", [2, 3, 6])
@pytest.mark.parametrize("sds", [(0.1, 0.0, 1.0), (0.05, 0.5, 0.7), (0.3, 1.0, 0.5)], ids=["seeds", "items", "both"])
def test_a_true_null_is_rejected_at_most_as_often_as_promised(seeds, sds):
    rng, repeats, rejected, missed = np.random.default_rng(7), 400, 0, 0
    resampler, (of_seed, of_item, rest) = stats.Resampler(0, 400), sds
    for _ in range(repeats):
        common = rng.normal(0, of_seed, (seeds, 1))
        shape = (seeds, 60)
        blocks = [common + rng.normal(0, of_item, (1, 60)) + rng.normal(0, rest, shape) for _ in range(2)]
        fit = stats.crossed(blocks, [0.5, 0.5])
        p, interval = stats.t_p_value(fit), stats.t_interval(fit, 0.95)
        if seeds >= 6:
            p = max(p, stats.sign_flip(fit.seed_means, rng))
            interval = stats.bootstrap_interval(fit, resampler.means(blocks, [0, 1]).mean(axis=0), 0.95)
        rejected += p < 0.05
        missed += not interval[0] <= 0 <= interval[1]
    bound = scipy_stats.binom.ppf(0.999, repeats, 0.05)  # a right 5 % test passes this 999 times in 1,000
    assert rejected <= bound and missed <= bound


def test_a_bootstrap_is_the_same_for_the_same_seed():
    block = np.random.default_rng(0).normal(0, 1, (6, 50))
    first, second = (stats.Resampler(3, 300).means([block], [0]) for _ in range(2))
    assert (first == second).all()
    assert first.mean() == pytest.approx(block.mean(), abs=0.05)


def test_equivalence_is_statsmodels_two_one_sided_tests_with_one_item_a_task():
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.02, 0.1, (2, 5))
    fit = stats.crossed([(a - b)[:, None]], [1.0])
    low, high = stats.t_interval(fit, 0.9)
    for margin in (0.05, 0.1, 0.2, 0.4):
        p, _, _ = ttost_paired(a, b, -margin, margin)
        assert (-margin < low and high < margin) == (p < 0.05)


def test_students_sleep_data_give_the_published_p():
    # Student (1908), as in R's `t.test(extra ~ group, data = sleep, paired = TRUE)`: t = -4.0621, p = 0.002833
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    fit = stats.crossed([(np.array(first) - second)[:, None]], [1.0])
    assert stats.t_p_value(fit) == pytest.approx(0.002833, abs=5e-7)
    assert stats.t_interval(fit, 0.95) == pytest.approx((-2.4598858, -0.7001142), abs=1e-6)
