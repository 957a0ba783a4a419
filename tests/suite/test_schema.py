"""What a suite may say of its objectives: names, settings, labels, grids.

python -m pytest tests/suite/test_schema.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.analysis.planning import _family
from kdbench.suite.loader import override, parse, validate
from kdbench.suite.matrix import cells, timed_cells
from kdbench.suite.schema import Suite
from tests.conftest import SUITE

SUITES = sorted((Path(__file__).parents[2] / "suites").glob("*.yaml"))


@pytest.fixture
def parsed(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(SUITE.format(corpus="texts"))
    return parse(path)


def labels(parsed, objectives):
    changes = (f"objectives={objectives}", "compare={baseline: floor, tasks: [swap]}")
    return validate(Suite, override(parsed, changes)).labels


def test_a_grid_stands_for_every_combination(parsed):
    found = labels(parsed, "[kl, {name: atkd, grid: {hard_fraction: [0.3, 0.5], lam: [0.2, 0.9]}}, sft]")
    assert found == [
        "kl",
        "atkd(hard_fraction=0.3)",
        "atkd(hard_fraction=0.3,lam=0.9)",
        "atkd",
        "atkd(lam=0.9)",
        "sft",
    ]


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ("[{name: atkd, grid: {lam: 0.2}}]", "expected fields with lists of values"),
        ("[{name: atkd, grid: {lam: []}}]", "expected fields with lists of values"),
        ("[{name: atkd, grid: {lamb: [0.2]}}]", "Did you mean 'lam'"),
        ("[{name: atkd, grid: {lam: [0.2, 2]}}]", "less than or equal to 1"),
        ("[{name: atkd, label: x, grid: {lam: [0.2, 0.3]}}]", "cannot name all 2"),
        ("[atkd, {name: atkd, grid: {lam: [0.2, 0.3]}}]", "stands twice"),
    ],
)
def test_a_wrong_grid_says_what_is_wrong(parsed, objectives, message):
    from kdbench.errors import ConfigError

    with pytest.raises(ConfigError) as error:
        labels(parsed, objectives)
    assert message in str(error.value)


def test_pairs_that_are_skipped_have_no_cells_at_equal_time_and_no_part_in_the_family():
    suite = validate(Suite, parse(next(path for path in SUITES if path.name == "opt_scaling.yaml")))
    taught = {(cell.student, cell.teacher) for cell in cells(suite) if cell.arm == "atkd"}
    assert {(cell.student, cell.teacher) for cell in timed_cells(suite, "atkd", "kl", 0)} == taught
    assert len(taught) == 9 and _family(suite) == 5 * 9


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.name)
def test_every_suite_that_comes_with_kdbench_is_valid(path):
    assert validate(Suite, parse(path)).labels


def test_the_tour_holds_every_objective_of_the_registry():
    import inspect

    from kdbench.registry import objectives

    ours = SUITES[0].parent.parent / "objectives"  # another test may have registered one of its own
    built_in = {name for name, one in objectives().items() if Path(inspect.getfile(one)).parent == ours}
    tour = validate(Suite, parse(next(path for path in SUITES if path.stem == "objectives_tour")))
    assert {entry["spec"]["name"] for entry in tour.objectives} == built_in


def test_a_prompt_must_leave_room_for_text(parsed):
    from kdbench.errors import ConfigError

    with pytest.raises(ConfigError, match=r"rollouts\.prompt_tokens"):
        validate(Suite, override(parsed, ("rollouts.prompt_tokens=32",)))


def test_commas_inside_a_label_do_not_split_a_list_of_arms():
    from kdbench.suite.matrix import split_labels

    assert split_labels("kl, atkd(lam=0.5,hard_fraction=0.3),sft") == ["kl", "atkd(lam=0.5,hard_fraction=0.3)", "sft"]
