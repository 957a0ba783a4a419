"""Each objective's settings are chosen by trials of its own: a real run with real kills, and choices by known scores.

python -m pytest tests/run/test_tuning.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kdbench.files import sha256_file, write_json
from kdbench.run import orchestrate, tuning
from kdbench.run.clock import Clock
from kdbench.run.jobs import Planner
from kdbench.run.store import Store
from kdbench.run.tuning_words import in_words, sensitivity
from kdbench.suite.loader import override, parse, validate
from kdbench.suite.matrix import place
from kdbench.suite.schema import Suite
from tests.conftest import SUITE, call, kdbench
from tests.run.conftest import products
from tests.run.test_run_killed import Program

SMALL = ("--set", "objectives=[sft, kl]", "--set", "seeds=[0]", "--set", "compare={baseline: sft, tasks: [swap]}")
TUNED = (*SMALL, "--set", "tune={lr: [1e-3, 1e-2, 3e-2], seeds: [1000], items: 30}")
RATES = [1e-3, 1e-2, 3e-2]


def everything(results: Path) -> dict[str, str]:
    """Every file of cells and choices that must not depend on when or how often the run was killed."""
    kept = {}
    for done in results.glob("choices/*/DONE.json"):
        for name in json.loads(done.read_text())["files"]:
            kept[f"{done.parent.name}/{name}"] = sha256_file(done.parent / name)
    return products(results) | kept


def saved_plan(results: Path) -> dict:
    return json.loads((results / "suites" / "tiny" / "plan.json").read_text())


# --- a real run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, corpus_folder):
    """Suite file, and the results of an undisturbed run."""
    folder = tmp_path_factory.mktemp("tuned")
    suite = folder / "tiny.yaml"
    suite.write_text(SUITE.format(corpus=corpus_folder), encoding="utf-8")
    kdbench("run", suite, "--results-dir", folder / "results", "--no-mlflow", "--workers", 1, *TUNED)
    return suite, folder / "results"


def test_one_command_runs_the_trials_and_then_the_matrix_with_what_they_chose(tuned):
    _, results = tuned
    plan = saved_plan(results)
    chosen = {choice["objective"]: choice["chosen"]["lr"] for choice in plan["tuning"]["choices"]}
    used = {cell["arm"]: cell["inputs"]["train"]["lr"] for cell in plan["cells"] if cell["arm"] in ("sft", "kl")}
    assert used == chosen and set(chosen.values()) <= set(RATES)
    assert all((results / "cells" / cell["key"] / "DONE.json").is_file() for cell in plan["cells"])


def test_trials_are_judged_on_other_text_and_other_seeds_than_what_is_reported(tuned):
    _, results = tuned
    plan = saved_plan(results)
    folders = [
        {results / "tasks" / cell["inputs"]["tasks"] for cell in cells}
        for cells in (plan["tuning"]["trials"], plan["cells"])
    ]
    dev, test = ({row["source"] for row in rows(*found)} for found in folders)
    assert dev and test and not dev & test
    assert {trial["seed"] for trial in plan["tuning"]["trials"]} == {1000}
    assert all(trial["inputs"]["examine"]["split"] == "dev" for trial in plan["tuning"]["trials"])


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]


def test_the_choice_is_the_best_point_by_the_stored_item_scores(tuned):
    import pandas

    _, results = tuned
    plan = saved_plan(results)
    for choice in plan["tuning"]["choices"]:
        scores = {}
        for trial in plan["tuning"]["trials"]:
            if trial["arm"] == choice["objective"]:
                items = pandas.read_parquet(results / "cells" / trial["key"] / "samples.parquet")
                scores[trial["settings"]["lr"]] = items[(items.task == "swap") & (items.metric == "acc")].score.mean()
        best = max(scores.values())
        assert choice["chosen"]["lr"] == min(rate for rate, score in scores.items() if score == best)


def test_a_second_run_does_nothing_and_a_plan_says_what_was_chosen(tuned):
    suite, results = tuned
    before = {path: path.stat().st_mtime_ns for path in results.glob("[ct][eha]*/*/*")}
    again = call("run", suite, "--results-dir", results, "--no-mlflow", "--json", *TUNED)
    assert again.exit_code == 0 and json.loads(again.stdout)["ran"] == 0, again.output
    assert before == {path: path.stat().st_mtime_ns for path in results.glob("[ct][eha]*/*/*")}
    planned = json.loads(call("plan", suite, "--results-dir", results, "--json", *TUNED).stdout)
    assert {cell["state"] for cell in planned["cells"]} == {"done"}
    assert planned["tuning"]["trials"] == 6 and planned["tuning"]["to_run"] == 0 and planned["flop"] == 0


def test_a_run_killed_between_the_stages_ends_with_the_same_bytes(tuned, tmp_path):
    suite, results = tuned
    program = Program(suite, tmp_path / "r", changes=TUNED)
    for line in program.process.stderr:
        program.text += line
        if (found := re.match(r"\[(\d+)/(\d+)\]", line)) and found[1] == found[2]:
            break
    program.process.kill()
    program.end()
    kdbench("run", suite, "--results-dir", tmp_path / "r", "--no-mlflow", "--workers", 1, *TUNED)
    assert everything(tmp_path / "r") == everything(results)


def test_mlflow_shows_trials_choices_and_their_cost(tuned, tmp_path, monkeypatch):
    import mlflow

    from kdbench.run import tracking

    _, results = tuned
    uri = f"sqlite:///{tmp_path}/m.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    plan = saved_plan(results)
    assert tracking.sync(Store(results), plan) == len(plan["cells"]) + 6
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert sorted(run.data.tags["kdbench.trial"] for run in runs if "kdbench.trial" in run.data.tags) == sorted(
        2 * ["lr 0.001", "lr 0.01", "lr 0.03"]
    )
    assert [run.data.tags["kdbench.tuning"] for run in runs if "kdbench.tuning" in run.data.tags] == [in_words(plan)]


# --- choices by known scores: a real planner and a real store, filled by hand ------------------------------------


@pytest.fixture
def known(suite_file, tmp_path):
    """Return a function that fills a store with trials of known scores (None: diverged) and plans the suite."""
    store = Store(tmp_path / "results")

    def known(scores, *changes: str) -> tuple[orchestrate.Plan, Store]:
        told = ["objectives=[sft, kl]", "compare={baseline: sft, tasks: [swap, replace]}"]
        told += ["tune={lr: [1e-3, 1e-2, 3e-2], seeds: [1000, 1001]}", *changes]
        suite = validate(Suite, override(parse(suite_file), told))
        for cell, job in Planner(suite, suite_file.parent).trials(suite.tune.points()):
            score = scores(cell)
            if score == "missing":
                continue
            entry = store.entry("cells", job.key)
            entry.begin(job.inputs)
            if score is not None:
                write_json(entry.path / "results.json", {"swap/acc": score, "replace/acc": score})
            entry.commit("diverged" if score is None else "ok", Clock().facts())
        return orchestrate.plan(suite, suite_file.parent, store), store

    return known


def chosen(plan: orchestrate.Plan) -> dict[str, float]:
    return {where[0]: choice.content["chosen"]["lr"] for where, choice in plan.tuned.choices.items()}


def test_each_objective_gets_its_own_best_rate(known):
    best = {"sft": 1e-2, "kl": 3e-2}
    plan, _ = known(lambda cell: 0.9 if cell.settings["lr"] == best[cell.arm] else 0.6)
    assert chosen(plan) == best
    rates = {one.cell.arm: one.job.inputs["train"]["lr"] for one in plan.cells if one.cell.spec}
    assert rates == best


def test_of_equal_points_the_smaller_rate_is_taken_whatever_the_order_of_the_list(known):
    tune = "tune={lr: [3e-2, 1e-3, 1e-2], seeds: [1000, 1001]}"
    plan, _ = known(lambda cell: 0.5 if cell.settings["lr"] == 1e-3 else 0.1 * (7 if cell.seed == 1000 else 8), tune)
    assert chosen(plan) == {"sft": 1e-2, "kl": 1e-2}


def test_a_diverged_trial_loses_to_any_that_ended(known):
    plan, _ = known(lambda cell: {1e-3: 0.5, 1e-2: 0.6}.get(cell.settings["lr"], None if cell.seed == 1001 else 1.0))
    assert chosen(plan) == {"sft": 1e-2, "kl": 1e-2}


def test_a_place_where_every_trial_diverged_still_gets_a_choice_so_that_its_cells_show_it(known):
    plan, _ = known(lambda cell: None if cell.arm == "kl" else 0.5)
    assert chosen(plan) == {"sft": 1e-3, "kl": 1e-3}


def test_one_choice_for_all_pairs_takes_the_mean_over_them(known):
    changes = ("students=[small, big]", "tune={lr: [1e-3, 1e-2], per: objective}")
    by_student = {"small": {1e-3: 0.9, 1e-2: 0.5}, "big": {1e-3: 0.5, 1e-2: 0.8}}
    plan, _ = known(lambda cell: by_student[cell.student][cell.settings["lr"]], *changes)
    assert set(plan.tuned.choices) == {("sft", None, None), ("kl", None, None)}
    assert chosen(plan) == {"sft": 1e-3, "kl": 1e-3}
    plan, _ = known(lambda cell: by_student[cell.student][cell.settings["lr"]], *changes[:1], "tune={lr: [1e-3, 1e-2]}")
    assert plan.tuned.choices["sft", "big", None].content["chosen"] == {"lr": 1e-2}


def test_before_the_trials_a_plan_says_what_they_cost_and_that_cells_follow(known, suite_file, tmp_path):
    plan, _ = known(lambda cell: "missing" if cell.arm == "kl" else 0.5)
    states = {(one.cell.arm, one.state) for one in plan.cells if one.cell.spec}
    assert states == {("sft", "new"), ("kl", tuning.WAITS)}
    only_kl = {"objective": {"kl"}, "seed": {"0"}}
    trials = [job for job in plan.to_run(only_kl) if job.cell and job.cell.trial]
    assert len(trials) == 6 and all(job.cell.arm == "kl" for job in trials)
    assert not [job for job in plan.to_run({"objective": {"sft"}}) if job.cell and job.cell.trial]
    changes = ("--set", "tune={lr: [1e-3, 1e-2, 3e-2]}")
    shown = json.loads(call("plan", suite_file, "--results-dir", tmp_path / "none", "--json", *changes).stdout)
    assert shown["tuning"]["trials"] == shown["tuning"]["to_run"] == 9 and shown["tuning"]["flop"] > 0
    assert {cell["state"] for cell in shown["cells"] if cell["objective"] == "kl"} == {"after tuning"}
    assert sum(cell["flop"] for cell in shown["cells"]) + shown["tuning"]["flop"] <= shown["flop"]
    text = call("plan", suite_file, "--results-dir", tmp_path / "none", *changes).stdout
    assert "9 to run first" in text and not (tmp_path / "none").exists()


def test_a_choice_is_kept_once_and_outlives_its_trials(known):
    import shutil

    plan, store = known(lambda cell: 0.5 + cell.settings["lr"])
    tuning.keep(plan.tuned, store)
    kept = {path: path.stat().st_mtime_ns for path in store.root.glob("choices/*/*")}
    tuning.keep(plan.tuned, store)
    assert kept == {path: path.stat().st_mtime_ns for path in store.root.glob("choices/*/*")} and len(kept) == 6
    shutil.rmtree(store.root / "cells")
    again = orchestrate.plan(plan.suite, plan.planner.base, store)
    assert chosen(again) == {"sft": 3e-2, "kl": 3e-2} and not again.waiting({})


def test_a_damaged_choice_is_set_aside_and_made_again(known):
    plan, store = known(lambda cell: 0.5)
    tuning.keep(plan.tuned, store)
    for path in store.root.glob("choices/*/choice.json"):
        path.write_text(path.read_text().replace("0.5", "0.9"))
    again = orchestrate.plan(plan.suite, plan.planner.base, store)
    tuning.keep(again.tuned, store)
    assert len(list(store.root.glob("choices/*.corrupt-1"))) == 2
    assert all("0.9" not in path.read_text() for path in store.root.glob("choices/*[!1]/choice.json"))


def test_a_damaged_trial_is_never_chosen_by_and_runs_again(known):
    plan, store = known(lambda cell: 0.5)
    _, job = plan.tuned.trials["kl", "small", "big"][0]
    path = store.entry("cells", job.key).path / "results.json"
    path.write_text(path.read_text().replace("0.5", "0.9"))
    again = orchestrate.plan(plan.suite, plan.planner.base, store)
    assert set(again.tuned.choices) == {("sft", "small", None)}
    assert job.id in {one.id for one in again.to_run({})}
    tuning.keep(again.tuned, store)
    assert store.entry("cells", job.key).state() == "new"


def test_the_report_is_told_budget_choices_edges_and_divergences_in_words_and_rows(known):
    best = {"sft": 1e-2, "kl": 3e-2}
    plan, store = known(
        lambda cell: None if (cell.arm, cell.settings["lr"]) == ("sft", 3e-2) else best[cell.arm] == cell.settings["lr"]
    )
    written = orchestrate.write_plan(plan, store, ())
    assert saved_plan(store.root) == written
    words = in_words(written)
    for part in (
        "the same 3 points (lr 0.001, 0.01, 0.03), on 2 seeds of their own", "12 trials", "300 items a task",
        "lr 0.01 (sft); lr 0.03 (kl)", "1 of 2 choices lies at the edge of what was tried (kl)", "2 trials diverged",
    ):  # fmt: skip
        assert part in words
    table = sensitivity(written)
    assert len(table) == 6
    assert [(row["objective"], row["lr"]) for row in table if row["chosen"]] == [("sft", 1e-2), ("kl", 3e-2)]
    assert {row["score"] for row in table if row["objective"] == "sft"} == {0.0, 1.0, None}
    assert all(row["diverged"] == 2 for row in table if row["score"] is None)


def test_an_arm_with_steps_of_its_own_is_planned_with_them_beside_what_was_chosen(known):
    objectives = "objectives=[sft, kl, {name: kl, label: short, train: {steps: 6}}]"
    plan, _ = known(lambda cell: 0.5 + cell.settings["lr"], objectives)
    trained = {one.cell.arm: one.job.inputs["train"] for one in plan.cells if one.cell.spec}
    assert {arm: (one["steps"], one["lr"]) for arm, one in trained.items()} == {
        "sft": (12, 3e-2), "kl": (12, 3e-2), "short": (6, 3e-2),
    }  # fmt: skip
    assert plan.tuned.choices["short", "small", "big"].content["chosen"] == {"lr": 3e-2}


def test_without_tune_nothing_is_said_and_no_key_changes(suite_file, tmp_path):
    suite = validate(Suite, parse(suite_file))
    plan = orchestrate.plan(suite, suite_file.parent, Store(tmp_path / "r"))
    assert "tuning" not in orchestrate.write_plan(plan, Store(tmp_path / "r"), ())
    assert in_words({"suite": {}}) == "" and sensitivity({"suite": {}}) == []
    assert not plan.tuned.trials and place(suite, plan.cells[-1].cell) == ("atkd", "small", "big")
    assert "split" not in json.dumps([one.job.inputs for one in plan.cells])
