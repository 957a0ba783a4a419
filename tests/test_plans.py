"""`kdbench plan` answers for every suite that comes with kdbench: offline, without weights, before its text is there.

python -m pytest tests/test_plans.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdbench.suite import exam_items, loader
from kdbench.suite.examination import LmEvalTask
from kdbench.suite.schema import Suite
from tests.conftest import call

SUITES = sorted((Path(__file__).parents[1] / "suites").glob("*.yaml"))


def measured(path: Path):
    """A plan tries every objective for a moment, and one suite has fifty."""
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem == "atkd_ablation"))


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def suite(path: Path) -> Suite:
    return loader.validate(Suite, loader.parse(path))


@pytest.mark.parametrize("path", [measured(path) for path in SUITES])
def test_every_suite_can_be_planned_as_it_is(path, tmp_path):
    found = call("plan", path, "--results-dir", tmp_path, "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["suite"] == path.stem and told["flop"] > 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_suite_can_say_what_it_could_find(path, tmp_path):
    found = call("plan", path, "--power", "--results-dir", tmp_path, "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert {row["task"] for row in told["rows"]} == {*suite(path).compare.tasks, "overall"}
    assert not told["assumed_items"], "a suite that comes with kdbench says its items, or they are known"


def test_without_its_text_a_suite_is_priced_for_a_device_and_that_is_said(tmp_path):
    path = next(path for path in SUITES if path.stem == "opt_scaling")
    few = ("students=[opt-125m]", "teachers=[opt-350m-tuned]", "skip=[]", "claims=[]")
    changes = [part for one in few for part in ("--set", one)]
    found = call("plan", path, *changes, "--results-dir", tmp_path)
    assert found.exit_code == 0, found.output
    first = found.stdout.splitlines()[0]
    assert first.startswith("There is no text at ") and "alpaca_gpt4_data.json yet. Assumed: H100" in first
    assert "not counted: the examination by mmlu, bbh_fewshot, drop" in found.stdout
    told = json.loads(call("plan", path, *changes, "--json").stdout)
    assert told["missing"].endswith("alpaca_gpt4_data.json") and told["device"]["name"] == "H100"
    asked = json.loads(call("plan", path, *changes, "--device-name", "A100", "--json").stdout)
    assert asked["missing"] is None and asked["device"]["name"] == "A100"


def test_a_plan_for_another_machine_is_shown_though_this_disk_is_too_small(suite_file, tmp_path, monkeypatch):
    monkeypatch.setattr("kdbench.run.quota.free_bytes", lambda path: 1000)
    command = (suite_file, "--results-dir", tmp_path / "r")
    found = call("plan", *command)
    assert found.exit_code == 0, found.output
    told = " ".join(found.stdout.split())
    assert "in the way of a run: " in told and "the teacher caches still to be written take" in told
    assert call("run", *command, "--no-mlflow").exit_code == 4


def task(**settings) -> LmEvalTask:
    return LmEvalTask(**settings)


@pytest.mark.parametrize(
    ("entry", "number"),
    [
        (task(task="mmlu"), 14_042),
        (task(task="mmlu", limit=10), 570),  # of each of 57 subjects
        (task(task="piqa", limit=5000), 1_838),
        (task(task="piqa", path="own"), None),  # a folder's task of that name is another one
        (task(task="dolly_alpaca", path="own", items=500), 500),
        (task(task="dolly_alpaca", path="own", limit=80), 80),
    ],
)
def test_items_of_a_task_from_elsewhere_are_known_said_or_not_known(entry, number):
    assert exam_items.number(entry) == number


@pytest.mark.parametrize(("name", "files"), [("mmlu", "mmlu/default"), ("bbh_fewshot", "bbh/fewshot")])
def test_a_group_has_the_subtasks_that_lm_eval_gives_it(name, files):
    import lm_eval.tasks

    found = [path for path in (Path(lm_eval.tasks.__file__).parent / files).glob("*.yaml") if path.name[0] != "_"]
    assert len(found) == exam_items.KNOWN[name][1]


def test_a_number_of_items_that_is_not_known_is_said_to_be_assumed(tmp_path):
    path = next(path for path in SUITES if path.stem == "opt_scaling")
    own = ("--set", "examine.lm_eval=[{task: mine, path: tasks}]", "--set", "compare.tasks=[mine]")
    found = " ".join(call("plan", path, "--power", *own, "--results-dir", tmp_path).stdout.split())
    assert "Assumed: the items of mine (750), whose number is known only with the data" in found
    told = ("--set", "examine.lm_eval.0.items=400")
    assert "Assumed" not in call("plan", path, "--power", *own, *told, "--results-dir", tmp_path).stdout
