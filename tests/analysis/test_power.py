"""What a design can find, and `kdbench plan --power`.

python -m pytest -q -n 0 tests/analysis/test_power.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from statsmodels.stats.power import TTestPower

from kdbench.analysis import power
from kdbench.cli import main

SUITE = str(Path(__file__).parents[2] / "suites" / "quickstart.yaml")
LONE = power.Design(5, 1.0, 0.0, 0.0, 1e6)


@pytest.mark.parametrize("seeds", [3, 5, 15, 80])
def test_with_seeds_alone_it_is_the_power_of_the_paired_t_test(seeds):
    expected = TTestPower().power(1.2, seeds, 0.05)
    assert power.power(replace(LONE, seeds=seeds), 1.2) == pytest.approx(expected, abs=0.025)


def test_six_seeds_must_all_agree_so_the_power_is_below_the_t_tests():
    assert power.power(replace(LONE, seeds=6), 1.2) < TTestPower().power(1.2, 6, 0.05)


def test_the_detectable_difference_has_the_wished_power():
    for seeds in (3, 6, 12):
        design = power.Design(seeds, 4e-4, 1e-4, 2e-4, 500.0, family=5)
        assert power.power(design, power.detectable(design)) == pytest.approx(0.8, abs=0.01)


def test_more_seeds_more_items_or_a_smaller_family_find_smaller_differences():
    design = power.Design(8, 4e-4, 1e-4, 2e-4, 500.0, family=3)
    found = power.detectable(design)
    assert power.detectable(replace(design, seeds=16)) < found
    assert power.detectable(design.scaled(4)) < found < power.detectable(replace(design, family=40))


def test_few_seeds_of_a_large_family_find_more_by_borrowing_variance():
    design = power.Design(3, 4e-4, 0.0, 1e-4, 500.0, family=20)
    assert power.detectable(design) < power.detectable(replace(design, borrows=False)) / 2


def test_the_seeds_that_are_said_to_be_needed_have_the_power():
    design = power.Design(2, 4e-4, 1e-6, 1e-4, 5000.0)

    def enough(seeds):
        return power.power(replace(design, seeds=seeds), 0.01) >= 0.8

    needed = power.seeds_for(enough)
    assert needed and enough(needed) and enough(needed + 5) and not enough(needed - 1)
    assert power.seeds_for(lambda seeds: False) is None
    assert power.seeds_for(lambda seeds: seeds >= 137) == 137


def test_items_that_bind_are_told_from_seeds_that_bind():
    by_items = power.Design(10, 0.0, 1e-4, 1e-4, 500.0)
    times = power.items_for(by_items, lambda design: power.power(design, 0.01) >= 0.8)
    assert times > 2 and power.power(by_items.scaled(times), 0.01) >= 0.8
    by_seeds = power.Design(3, 1e-3, 1e-6, 1e-6, 500.0)
    assert power.items_for(by_seeds, lambda design: power.power(design, 0.01) >= 0.8) is None


def plan(*options, tmp_path):
    return CliRunner().invoke(main, ["plan", SUITE, "--results-dir", str(tmp_path), *options])


def test_without_results_the_plan_names_its_prior_and_fits_a_hundred_columns(tmp_path):
    found = plan("--power", "--seeds", "3,10", tmp_path=tmp_path)
    assert found.exit_code == 0, found.output
    assert "a prior: the quickstart's variance" in found.output and "family of 6" in found.output.replace("\n", " ")
    assert max(map(len, found.output.splitlines())) <= 100 and not list(tmp_path.iterdir())


def test_the_plan_as_json_holds_a_row_for_every_task_and_number_of_seeds(tmp_path):
    found = json.loads(
        plan("--power", "--margin", "0.02", "--seeds", "3,10", "--items", "500", "--json", tmp_path=tmp_path).stdout
    )
    assert found["prior"] and found["margin"] == 0.02 and len(found["rows"]) == 2 * 4
    overall = [row for row in found["rows"] if row["task"] == "overall"]
    assert overall[0]["detectable"] > overall[1]["detectable"] > 0 and overall[1]["power_at_margin"] > 0.3
    assert found["needed"][0]["difference"]["at_seeds"] == 10


@pytest.mark.parametrize(
    "options, message",
    [
        (["--margin", "0.01"], "belong to --power"),
        (["--power", "--seeds", "three"], "whole numbers"),
        (["--power", "--seeds", "1"], "from 2 on"),
        (["--power", "--margin", "-1"], "above 0"),
    ],
)
def test_options_that_do_not_fit_are_one_clear_error(options, message, tmp_path):
    found = plan(*options, tmp_path=tmp_path)
    assert found.exit_code == 2 and message in found.output
