"""Looking again: planned looks spend alpha, others are called exploratory.

python -m pytest -q -n 0 tests/analysis/test_looks.py
"""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats as scipy_stats

from kdbench import compare
from kdbench.analysis import looks
from kdbench.errors import ConfigError
from kdbench.suite.schema import Compare
from tests.analysis.test_verdict import pair


def test_five_equal_looks_have_the_published_boundaries():
    found = [scipy_stats.norm.isf(level / 2) for level in looks.levels([1, 2, 3, 4, 5], 0.05)]
    assert found == pytest.approx([4.877, 3.357, 2.680, 2.290, 2.031], abs=1e-3)  # ldbounds, O'Brien-Fleming type


def test_all_looks_together_err_by_alpha():
    levels, rng = looks.levels([3, 6, 10], 0.05), np.random.default_rng(0)
    steps = rng.normal(0, 1, (200_000, 10)).cumsum(axis=1)
    crossed = [
        np.abs(steps[:, n - 1]) / np.sqrt(n) > scipy_stats.norm.isf(p / 2)
        for n, p in zip((3, 6, 10), levels, strict=True)
    ]
    assert np.mean(np.any(crossed, axis=0)) == pytest.approx(0.05, abs=0.002)


def test_one_look_is_no_correction():
    assert looks.levels([5], 0.05) == pytest.approx([0.05])


def test_a_planned_look_is_judged_at_its_share_and_says_so():
    found = compare(pair(seeds=6), "sft", looks=[3, 6, 10])
    assert found.alpha == 0.0075 and found.looks == (3, 6, 10)
    assert "planned look 2 of 3" in found.notes[0] and "99.25 %" in found.method
    assert compare(pair(seeds=3), "sft", looks=[3]).alpha == 0.05


def test_a_look_between_planned_ones_is_not_judged():
    found = compare(pair(seeds=4), "sft", looks=[3, 6, 10])
    assert set(found.table.verdict) == {"undecided"} and "4 seeds are no planned look" in found.notes[0]
    assert set(compare(pair(seeds=4), "sft").table.verdict) == {"better"}


def test_looking_again_with_more_seeds_is_called_exploratory_unless_it_was_planned(tmp_path):
    few, more = compare(pair(seeds=3), "sft"), compare(pair(seeds=6), "sft")
    assert looks.remember(tmp_path, "acc", few) == [] == looks.remember(tmp_path, "acc", few)
    assert looks.remember(tmp_path, "acc", more) == [
        "looked before at 3 seeds without planned looks (compare.looks): exploratory"
    ]
    assert looks.remember(tmp_path, "swap", more) == []
    planned = compare(pair(seeds=6), "sft", looks=[3, 6])
    assert looks.remember(tmp_path, "acc", planned) == []


@pytest.mark.parametrize("text", ["[not json", '{"acc": null}', '{"acc": 5}', '{"acc": ["x", null]}', "[]"])
def test_a_spoilt_memory_is_no_reason_to_fail(tmp_path, text):
    (tmp_path / looks.FILE).write_text(text)
    assert looks.remember(tmp_path, "acc", compare(pair(), "sft")) == []


@pytest.mark.parametrize("wrong", [[6, 3], [3, 3], [1, 3], [3.5]])
def test_looks_that_do_not_grow_are_one_clear_error(wrong):
    with pytest.raises(ConfigError, match="growing numbers of seeds"):
        compare(pair(), "sft", looks=wrong)


def test_a_suite_may_name_looks_and_weights_that_fit():
    asked = Compare(looks=(3, 6), weights={"swap": 2, "replace": 1, "agreement": 1})
    given = looks.options(asked.model_dump(), ("swap", "replace", "agreement"))
    assert given == {"weights": {"swap": 2, "replace": 1, "agreement": 1}, "looks": (3, 6)}
    assert looks.options({}, ("swap",)) == {"weights": None, "looks": ()}
    with pytest.raises(ValidationError, match="expected one for each"):
        Compare(weights={"swap": 2})
    with pytest.raises(ValidationError, match="growing numbers"):
        Compare(looks=(6, 3))
