"""What `tune:` in a suite may say, and which points it stands for.

python -m pytest tests/suite/test_tuning.py
"""

from __future__ import annotations

import sys

import pytest

from kdbench.errors import ConfigError
from kdbench.suite.loader import override, parse, validate
from kdbench.suite.matrix import cells, trials
from kdbench.suite.schema import Suite
from tests.conftest import SUITE


@pytest.fixture
def read(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(SUITE.format(corpus="texts"))

    def read(tune: str) -> Suite:
        return validate(Suite, override(parse(path), [f"tune={tune}"]))

    return read


def test_lists_of_values_stand_for_every_combination(read):
    suite = read("{lr: [1e-3, 3e-3], fields: {warmup: [0, 0.1], clip: [1.0]}}")
    assert suite.tune.points() == [
        {"lr": lr, "warmup": warmup, "clip": 1.0} for lr in (1e-3, 3e-3) for warmup in (0, 0.1)
    ]


def test_every_objective_at_every_pair_gets_the_same_points_on_the_same_seeds(read):
    suite = read("{lr: [1e-3, 3e-3], seeds: [1000, 1001]}")
    budgets = {}
    for cell in trials(suite, suite.tune.points()):
        budgets.setdefault((cell.arm, cell.student, cell.teacher), []).append((cell.settings["lr"], cell.seed))
    assert set(budgets) == {("sft", "small", None), ("kl", "small", "big"), ("atkd", "small", "big")}
    assert all(budget == [(lr, seed) for lr in (1e-3, 3e-3) for seed in (1000, 1001)] for budget in budgets.values())


def test_points_drawn_from_a_range_are_the_same_every_time_and_spread_over_it(read):
    pytest.importorskip("optuna", reason="pip install kdbench[tune]")
    tune = read("{lr: {low: 1e-3, high: 1e-1}, trials: 8, fields: {schedule: [cosine, linear]}}").tune
    points = tune.points()
    assert points == tune.points() and len(points) == 8
    assert {point["schedule"] for point in points} == {"cosine", "linear"}
    rates = [point["lr"] for point in points]
    assert rates == sorted(rates) and rates[0] >= 1e-3 and rates[-1] <= 1e-1
    assert sum(rate < 1e-2 for rate in rates) in (3, 4, 5)  # half below the middle of the logarithmic scale


def test_a_range_without_optuna_says_what_to_install(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install kdbench\[tune\]"):
        read("{lr: {low: 1e-3, high: 1e-2}, trials: 4}").tune.points()
    assert len(read("{lr: [1e-3, 3e-3]}").tune.points()) == 2  # a list needs nothing


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ("{lr: [1e-3, 3e-3], seeds: [2, 1000]}", "found [2] among the suite's seeds too"),
        ("{lr: [1e-3, 3e-3], seeds: [7, 7]}", "stands twice"),
        ("{lr: []}", "at least 1 item"),
        ("{lr: [1e-3]}", "found 1; a single value belongs into `train`"),
        ("{lr: [1e-3, 3e-3], fields: {warmup: []}}", "found none for warmup"),
        ("{lr: [1e-3, 1e-3]}", "stands twice"),
        ("{lr: [1e-3, 3e-3], fields: {warm_up: [0, 0.1]}}", "'warm_up' cannot be tuned. Did you mean 'warmup'"),
        ("{lr: [1e-3, 3e-3], fields: {steps: [10, 20]}}", "'steps' cannot be tuned"),
        ("{lr: [1e-3, 3e-3], fields: {warmup: [0, 2]}}", "tune.fields.warmup: expected less than 1, found 2"),
        ("{lr: {low: 1e-3, high: 1e-2}}", "expected the number of points to draw"),
        ("{lr: {low: 1e-2, high: 1e-3}, trials: 4}", "expected low < high"),
        ("{lr: [1e-3, 3e-3], trials: 4}", "a list of values is tried whole"),
        ("{lr: [1e-3, 3e-3], lrs: [1]}", "unknown field"),
    ],
)
def test_a_wrong_tuning_says_what_is_wrong(read, tune, message):
    with pytest.raises(ConfigError) as error:
        read(tune)
    assert message in str(error.value)


# --- an arm with a training of its own -------------------------------------------------------------------------------

SHORT = "[sft, kl, {name: kl, label: kl-short, train: {steps: 6}}]"


@pytest.fixture
def with_objectives(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(SUITE.format(corpus="texts"))

    def read(objectives: str, *changes: str) -> Suite:
        told = [f"objectives={objectives}", "compare={baseline: floor, tasks: [swap]}", *changes]
        return validate(Suite, override(parse(path), told))

    return read


def test_an_entry_may_have_settings_of_its_own_and_tuning_comes_on_top(with_objectives):
    suite = with_objectives(SHORT, "tune={lr: [1e-3, 3e-3]}")
    own = {cell.arm: dict(cell.settings) for cell in cells(suite) if cell.spec}
    assert own == {"sft": {}, "kl": {}, "kl-short": {"steps": 6}}
    tried = [dict(cell.settings) for cell in trials(suite, suite.tune.points()) if cell.arm == "kl-short"]
    assert tried == [{"steps": 6, "lr": 1e-3}, {"steps": 6, "lr": 3e-3}]


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ("[{name: kl, train: {steps: 6}}]", "and no label"),
        ("[{name: kl, label: x, train: {}}]", "expected settings such as {steps: 60}"),
        ("[{name: kl, label: x, train: {stepz: 6}}]", "'stepz' cannot be an arm's own. Did you mean 'steps'"),
        ("[{name: kl, label: x, train: {dropout: true}}]", "'dropout' cannot be an arm's own"),
        ("[{name: kl, label: x, train: {steps: 0}}]", "train.steps: expected greater than 0, found 0"),
        ("[{name: kl, label: x, train: {lr: 1e-3}}]", "lr is chosen by `tune` already"),
    ],
)
def test_wrong_settings_of_an_entry_say_what_is_wrong(with_objectives, objectives, message):
    with pytest.raises(ConfigError) as error:
        with_objectives(objectives, "tune={lr: [1e-3, 3e-3]}")
    assert message in str(error.value)
