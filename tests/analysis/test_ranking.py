"""The best set, max-T, and the largest difference.

python -m pytest -q -n 0 tests/analysis/test_ranking.py
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from kdbench import compare
from kdbench.analysis import maxt, ranking, stats
from kdbench.errors import ConfigError
from tests.analysis.test_verdict import arm, noisy


def members(values: np.ndarray, items: np.ndarray | None = None) -> list[maxt.Member]:
    """A family of contrasts with one baseline; `values` [contrasts, seeds]."""
    items = np.zeros((len(values), 1)) if items is None else items
    fits = [stats.crossed([row[:, None]], [1.0]) for row in values]
    seeds = tuple(range(values.shape[1]))
    return [
        maxt.Member(f, stats.t_p_value(f), seeds, i, (n + 1, 0))
        for n, (f, i) in enumerate(zip(fits, items, strict=True))
    ]


def test_joint_sign_flips_are_westfall_and_youngs_step_down_by_the_definition():
    values = np.random.default_rng(0).normal(0.4, 1, (4, 7))
    signed = np.abs(maxt.flips(members(values), np.random.default_rng(0)))
    found = maxt.step_down(signed[0], signed)

    def t(rows):
        return np.abs(rows.mean(axis=1)) / rows.std(axis=1, ddof=1)

    patterns = [1 - 2 * ((number >> np.arange(7)) & 1) for number in range(2**7)]
    order, last, expected = np.argsort(-t(values)), 0.0, np.empty(4)
    for rank, one in enumerate(order):
        rest = order[rank:]
        hits = [t((values * signs)[rest]).max() >= t(values)[one] - 1e-12 for signs in patterns]
        expected[one] = last = max(last, float(np.mean(hits)))
    assert found == pytest.approx(expected)


def test_of_independent_contrasts_the_smallest_p_is_near_sidaks():
    values = np.random.default_rng(1).normal(0, 1, (5, 4))
    family = [maxt.Member(m.fit, m.p, m.seeds, m.items, (2 * i, 2 * i + 1)) for i, m in enumerate(members(values))]
    p, level = maxt.adjusted(family, np.random.default_rng(0), 0.05)
    smallest = min(one.p for one in family)
    assert p.min() == pytest.approx(1 - (1 - smallest) ** 5, abs=0.02)
    assert level == pytest.approx(1 - 0.95 ** (1 / 5), rel=0.1)


def test_contrasts_that_share_a_baseline_are_dunnetts_test():
    rng = np.random.default_rng(2)
    values = rng.normal(0, 1, (4, 5)) - rng.normal(0, 1, (1, 5))
    null = maxt.null_p(members(values), np.random.default_rng(0))
    cut = scipy_stats.t.isf(np.quantile(null.min(axis=1), 0.05) / 2, 4)
    # multivariate t with correlation one half, each contrast with a variance of its own
    drawn = rng.normal(0, 1, (20_000, 4, 5)) - rng.normal(0, 1, (20_000, 1, 5))
    t = np.abs(drawn.mean(axis=2)) / drawn.std(axis=2, ddof=1) * np.sqrt(5)
    assert np.mean(t.max(axis=1) > cut) == pytest.approx(0.05, abs=0.01)


def test_a_contrast_that_stands_twice_costs_nothing():
    rng = np.random.default_rng(3)
    values = np.repeat(rng.normal(0.5, 1, (1, 4)), 6, axis=0)
    family = members(values, np.repeat(rng.normal(0, 1, (1, 50)), 6, axis=0))
    family = [maxt.Member(m.fit, m.p, m.seeds, m.items, (1, 0)) for m in family]
    p, level = maxt.adjusted(family, np.random.default_rng(0), 0.05)
    assert p == pytest.approx(np.full(6, family[0].p), abs=0.02) and level == pytest.approx(0.05, rel=0.15)


@pytest.mark.parametrize("seeds", [3, 6])
def test_the_largest_difference_comes_with_a_wider_interval_and_a_larger_p(seeds):
    arms = [arm(f"o{i}", noisy(0.4 + 0.05 * i, seeds, rng=10 + i)) for i in range(5)]
    found = compare(pd.concat([arm("sft", noisy(0.4, seeds, rng=2)), *arms]), "sft")
    best = maxt.largest(found)
    row = found.table[(found.table.task == "overall") & (found.table.objective == best.objective)].iloc[0]
    more = found.details[(found.details.task == "overall") & (found.details.objective == best.objective)].iloc[0]
    assert best.delta == row.delta == found.table[found.table.task == "overall"].delta.max() and best.family == 5
    assert best.low < row.ci_low and best.high > row.ci_high and best.p >= more.p_model
    assert "up to" in found.method and ("sign flips" in found.method) == (seeds == 6)
    with pytest.raises(ConfigError, match="pooled=False"):
        maxt.largest(found, pooled=True)


def three(seeds=3, **more):
    levels = {"good": 0.8, "as-good": 0.79, "bad": 0.4}
    return [arm(name, noisy(level, seeds, rng=n), **more) for n, (name, level) in enumerate(levels.items())]


@pytest.mark.parametrize("seeds", [3, 6])
def test_the_best_set_holds_what_cannot_be_told_from_the_best_whatever_contrasts_are_named(seeds):
    floor = arm("floor", np.zeros((1, 200)), teacher=None, seeds=[None])
    found = compare(pd.concat([floor, *three(seeds)]), contrasts=[("good", "bad")])
    inside = found.best.set_index("objective").in_best
    assert inside.to_dict() == {"good": True, "as-good": True, "bad": False}
    text = ranking.sentences(found.best, 0.05)[0]
    assert text.startswith("The best at student s with teacher t is among 2 of 3: ")


def test_there_is_a_best_set_for_every_pair_and_one_over_all():
    frame = pd.concat([*three(), *three(teacher="u"), arm("sft", noisy(0.3, rng=8), teacher=None)])
    best = compare(frame, "sft").best
    assert best.groupby(["student", "teacher"], sort=False).ngroups == 3
    pooled = best[best.student == "all"].set_index("objective")
    assert pooled.in_best.to_dict() == {"good": True, "as-good": True, "bad": False, "sft": False}
    assert pooled["mean"]["sft"] == pytest.approx(noisy(0.3, rng=8).mean())


def test_one_seed_rules_no_objective_out():
    best = compare(pd.concat(three(1)), "bad").best
    assert best.in_best.all() and best.p.isna().all()
    assert "No objective can be ruled out" in ranking.sentences(best, 0.05)[0]
