"""Contrasts at equal wall time: steps follow from seconds that cells really took, once, and are then kept.

python -m pytest tests/run/test_equal_time.py
"""

from __future__ import annotations

import json

import pytest

from kdbench.analysis.equal_time import sentences
from kdbench.files import read_json
from kdbench.run import equal_time, orchestrate
from kdbench.run.clock import Clock
from kdbench.run.jobs import Planner
from kdbench.run.store import Store
from kdbench.suite.loader import override, parse, validate
from kdbench.suite.schema import Suite
from tests.conftest import SUITE, call, kdbench

CHANGES = ("objectives=[sft, kl]", "compare={baseline: sft, tasks: [swap], equal_time: true}")
LABEL = "kl in sft's time"


@pytest.fixture
def timed(suite_file, tmp_path):
    """Return a function that fills a store with cells of known seconds (None: diverged) and plans the suite."""
    store = Store(tmp_path / "results")

    def timed(seconds, *changes: str, **more) -> tuple[orchestrate.Plan, Store]:
        suite = validate(Suite, override(parse(suite_file), [*CHANGES, *changes]))
        planner = Planner(suite, suite_file.parent)
        planner.all()
        for cell, job in planner.cells:
            if cell.spec is None or (took := seconds(cell)) == "missing":
                continue
            entry = store.entry("cells", job.key)
            if entry.done() is None:
                entry.begin(job.inputs)
                facts = Clock().facts() | ({} if took is None else {"train_s": took}) | more
                entry.commit("diverged" if took is None else "ok", facts)
        return orchestrate.plan(suite, suite_file.parent, store), store

    return timed


def steps(plan: orchestrate.Plan) -> set[int]:
    return {one.job.inputs["train"]["steps"] for one in plan.cells if one.cell.arm == LABEL}


def test_an_arm_that_is_slower_gets_fewer_steps_and_one_that_is_faster_more(timed):
    plan, _ = timed(lambda cell: {"kl": 3.0, "sft": 2.0}[cell.arm])
    assert steps(plan) == {8}  # of 12
    assert {one.state for one in plan.cells if one.cell.arm == LABEL} == {"new"}
    plan, _ = timed(lambda cell: {"kl": 1.0, "sft": 2.0}[cell.arm], "train.lr=2e-3")
    assert steps(plan) == {24}


def test_the_median_over_seeds_decides(timed):
    plan, _ = timed(lambda cell: 2.0 if cell.arm == "sft" else (4.0, 4.0, 100.0)[cell.seed], "seeds=[0, 1, 2]")
    assert steps(plan) == {6}


def test_where_both_take_as_long_the_cells_at_equal_steps_serve_and_nothing_is_trained_again(timed):
    plan, _ = timed(lambda cell: {"kl": 2.05, "sft": 2.0}[cell.arm])
    keys = {arm: {one.job.key for one in plan.cells if one.cell.arm == arm} for arm in ("kl", LABEL)}
    assert keys["kl"] == keys[LABEL] and not any(one.why for one in plan.cells if one.cell.arm == LABEL)
    told = sentences(orchestrate.write_plan(plan, Store(plan.planner.base / "r"), ()))
    assert told == [f"{LABEL}: 12 of 12 steps (a step took 1.02 × its baseline's); the same cells everywhere."]


def test_a_training_that_was_resumed_is_timed_by_the_steps_that_it_timed(timed):
    plan, _ = timed(lambda cell: {"kl": 2.0, "sft": 1.0}[cell.arm], train_steps=6)
    assert steps(plan) == {6}


def test_a_cell_of_which_no_step_was_timed_decides_nothing(timed):
    """It was killed after its last step, so that the run that ended it had nothing left to train."""
    plan, _ = timed(lambda cell: {"kl": 0.001, "sft": 1.0}[cell.arm], train_steps=0)
    assert steps(plan) == {12}


def test_a_side_that_diverged_everywhere_leaves_the_steps_as_they_are(timed):
    plan, _ = timed(lambda cell: None if cell.arm == "kl" else 2.0)
    assert steps(plan) == {12}


def test_what_was_decided_stays_although_the_seconds_of_another_run_differ(timed):
    import shutil

    plan, store = timed(lambda cell: {"kl": 3.0, "sft": 2.0}[cell.arm])
    equal_time.keep(plan.timed, store)
    shutil.rmtree(store.root / "cells")
    again, _ = timed(lambda cell: 2.0)
    assert steps(again) == {8}
    told = orchestrate.write_plan(again, store, ())["equal_time"]
    assert {one["key"] for one in told} == {path.parent.name for path in store.root.glob("choices/*/steps.json")}
    kept = [read_json(path) for path in store.root.glob("choices/*/steps.json")]
    assert kept == [{"steps": 8, "of": 12, "ratio": 1.5}]
    for path in store.root.glob("choices/*/steps.json"):
        path.write_text(path.read_text().replace("8", "9"))
    equal_time.keep((third := timed(lambda cell: 2.0)[0]).timed, store)
    assert steps(third) == {12} and len(list(store.root.glob("choices/*.corrupt-1"))) == 1


def test_before_the_cells_have_ended_a_plan_says_what_follows_and_only_a_part_of_the_seeds_asks_for_none(
    timed, suite_file, tmp_path
):
    plan, _ = timed(lambda cell: "missing" if cell.arm == "kl" else 2.0)
    assert {one.state for one in plan.cells if one.cell.arm == LABEL} == {equal_time.WAITS}
    assert len(plan.waiting({})) == len(plan.suite.seeds)
    assert not plan.waiting({"seed": {"0"}}), "other seeds are not run, so nothing can be decided"
    assert {job.cell.seed for job in plan.to_run({"seed": {"0"}}) if job.cell and job.cell.spec} == {0}
    sets = [part for change in CHANGES for part in ("--set", change)]
    shown = call("plan", suite_file, "--results-dir", tmp_path / "none", *sets)
    assert shown.exit_code == 0 and "its steps follow from the seconds of other cells" in " ".join(shown.output.split())


def test_one_command_trains_at_equal_steps_and_then_at_equal_time_and_compares_both(tmp_path, corpus_folder):
    suite, results = tmp_path / "tiny.yaml", tmp_path / "results"
    suite.write_text(SUITE.format(corpus=corpus_folder), encoding="utf-8")
    sets = [part for change in CHANGES for part in ("--set", change)]
    process = kdbench("run", suite, "--results-dir", results, "--no-mlflow", "--workers", 1, "--json", *sets)
    found = json.loads(process.stdout)
    assert not found["failed"] and found["comparison"]["contrasts"] == [["kl", "sft"]]
    timed = found["comparison"]["at_equal_time"]
    assert timed["contrasts"] == [[LABEL, "sft"]] and timed["table"]
    assert LABEL not in {row["objective"] for row in found["comparison"]["means"]}
    plan = read_json(results / "suites" / "tiny" / "plan.json")
    one, *_ = plan["equal_time"]
    used = {cell["inputs"]["train"]["steps"] for cell in plan["cells"] if cell["arm"] == LABEL}
    assert used == {one["steps"]} and one["ratio"] > 0
    page = (results / "suites" / "tiny" / "report.md").read_text()
    assert "## At equal wall time" in page and f"{LABEL}: {one['steps']:,} of 12 steps" in page
    assert "At equal wall time" in call("compare", "--results-dir", results).output
    again = call("run", suite, "--results-dir", results, "--no-mlflow", "--json", *sets)
    assert json.loads(again.stdout)["ran"] == 0, again.output
