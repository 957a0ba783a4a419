"""Simulated: the verdict errs as seldom as it says. `python -m benchmarks.calibration` runs every regime at length.

python -m pytest -q -n 0 tests/analysis/test_calibration.py
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks import calibration
from kdbench import compare
from kdbench.analysis import stats
from tests.analysis.test_verdict import arm


def kept(rows):
    missed = [row for row in rows if row.status == "MISSES"]
    assert not missed, missed


@pytest.mark.parametrize("seeds, items, seed_sd", [(3, 80, 0.0), (3, 500, 0.15), (6, 80, 0.15), (10, 200, 0.0)])
def test_under_the_null_errors_and_coverage_keep_their_bounds(seeds, items, seed_sd):
    kept(calibration.null_regime(seeds, items, seed_sd, 100))


@pytest.mark.parametrize("spread", ["spread evenly by 4 x", "one arm 4 x", "baseline 4 x"])
def test_borrowed_variance_errs_no_more_when_the_variances_differ(spread):
    kept([calibration.moderated_regime(3, 4, spread, 200)])


def test_max_t_simultaneous_intervals_and_best_set_keep_their_bounds():
    kept(calibration.simultaneous_regime(3, 3, 60))


def test_planned_looks_together_keep_alpha():
    kept([calibration.looks_regime(300)])


def test_predicted_power_is_the_simulated_one():
    kept(
        [
            calibration.power_regime(design, delta, items, 150)
            for design, delta, items in list(calibration.designs())[1::2]
        ]
    )


@pytest.mark.parametrize("seeds, arms", [(3, 4), (3, 6), (6, 2), (6, 5)])
def test_the_rules_that_are_simulated_are_those_that_compare_judges_by(seeds, arms):
    rng = np.random.default_rng(seeds + arms)
    scores = calibration.answers(rng, arms, seeds, 60, 0.15)
    found = compare(pd.concat([arm(f"o{i}", block) for i, block in enumerate(scores)]), "o0").table
    fits = [stats.crossed([block - scores[0]], [1.0]) for block in scores[1:]]
    expected = calibration.judged(fits, rng)
    assert found[found.task == "overall"].p_adjusted.to_numpy() == pytest.approx(expected)
