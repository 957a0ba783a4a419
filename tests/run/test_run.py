"""The whole path on a tiny suite, run as a user runs it: real students, real kills, the same bytes.

python -m pytest tests/run/test_run.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench import load_scores
from kdbench.files import read_records
from tests.conftest import call, kdbench
from tests.run.conftest import products
from tests.run.here import in_this_process


def test_a_run_ends_with_a_verdict_and_says_where_everything_is(world):
    _, _, results, process = world
    for part in ("kl", "sft", "atkd", "report", "results", "lm-eval tasks", str(results)):
        assert part in process.stdout
    assert (results / "suites" / "tiny" / "report.html").is_file()
    assert len(list(results.glob("cells/*/DONE.json"))) == 13  # a ceiling, and 3 seeds of floor, sft, kl, atkd
    assert "[" in process.stderr and "left" in process.stderr


def test_a_report_that_is_kept_holds_all_that_its_verdict_rests_on_and_no_path_of_this_machine(world, tmp_path):
    import pandas

    import kdbench as public

    _, _, results, _ = world
    shown = call("report", "tiny", "--results-dir", results, "--keep", tmp_path / "kept")
    assert shown.exit_code == 0 and (tmp_path / "kept" / "report.html").is_file(), shown.output
    scores, plan = (
        pandas.read_parquet(tmp_path / "kept" / "scores.parquet"),
        json.loads((tmp_path / "kept" / "plan.json").read_text()),
    )
    question = plan["suite"]["compare"]
    contrasts = [tuple(pair) for pair in question["contrasts"]]
    again = public.compare(
        scores, **({"contrasts": contrasts} if contrasts else {"baseline": question["baseline"]}),
        tasks=question["tasks"], margin=question["margin"], alpha=question["alpha"],
    )  # fmt: skip
    stored = pandas.read_csv(tmp_path / "kept" / "report" / "comparison.csv")
    assert again.table.delta.tolist() == pytest.approx(stored.delta[: len(again.table)].tolist(), abs=1e-12)
    for path in (tmp_path / "kept").rglob("*"):
        assert not path.is_file() or str(results).encode() not in path.read_bytes(), path
    assert not list((tmp_path / "kept").rglob("*.safetensors"))


def test_arms_without_a_teacher_run_once_a_seed_and_floor_and_ceiling_are_there(world):
    _, _, results, _ = world
    cells = json.loads((results / "suites" / "tiny" / "plan.json").read_text())["cells"]
    count = {arm: sum(cell["arm"] == arm for cell in cells) for arm in ("floor", "ceiling", "sft", "kl", "atkd")}
    assert count == {"floor": 3, "ceiling": 1, "sft": 3, "kl": 3, "atkd": 3}
    assert all(cell["teacher"] is None for cell in cells if cell["arm"] in ("sft", "floor"))


def test_the_second_run_does_nothing(world):
    _, suite, results, _ = world
    before = {path: path.stat().st_mtime_ns for path in results.glob("cells/*/*")}
    process = call("run", suite, "--results-dir", results, "--no-mlflow", "--json")
    assert process.exit_code == 0 and json.loads(process.stdout)["ran"] == 0
    assert before == {path: path.stat().st_mtime_ns for path in results.glob("cells/*/*")}


def test_scores_come_back_as_a_tidy_table(world):
    import kdbench as public

    _, _, results, _ = world
    scores = public.load_scores(results, "tiny")
    assert list(scores.columns) == ["objective", "student", "teacher", "seed", "task", "item", "score"]
    assert set(scores.objective) == {"floor", "ceiling", "sft", "kl", "atkd"}
    assert scores[scores.objective == "sft"].teacher.isna().all()
    assert scores[scores.objective == "ceiling"].seed.isna().all()
    table = public.compare(scores, baseline="sft", objectives=["kl", "atkd"]).table
    assert set(table.objective) == {"kl", "atkd"} and "overall" in set(table.task)


def test_compare_answers_from_the_store_alone(world):
    _, _, results, _ = world
    asked = ("compare", "--results-dir", results, "--objectives", "kl,atkd")
    text = call(*asked).stdout
    assert "atkd" in text and "3 seeds" in text
    table = json.loads(call(*asked, "--json").stdout)["table"]
    assert {row["objective"] for row in table} == {"atkd"} and {row["baseline"] for row in table} == {"kl"}
    assert "|" in call(*asked, "--markdown").stdout
    for wrong, hint in (
        (("--objectives", "kl,atk"), "Did you mean 'atkd'"),
        (("--metric", "swop"), "Did you mean 'swap'"),
        (("--suite", "tinny"), "Did you mean 'tiny'"),
    ):
        result = call("compare", "--results-dir", results, *wrong)
        assert result.exit_code == 2 and hint in result.stderr


def test_plan_says_what_is_done_what_changed_and_why(world):
    _, suite, results, _ = world
    same = json.loads(call("plan", suite, "--results-dir", results, "--json").stdout)
    assert {cell["state"] for cell in same["cells"]} == {"done"} and same["flop"] == 0
    assert {model["name"]: model["parameters"] for model in same["models"]}["small"] > 5000
    changed = ("plan", suite, "--results-dir", results, "--set", "train.lr=5e-3", "--json")
    cells = json.loads(call(*changed).stdout)["cells"]
    why = {cell["objective"]: cell["why"] for cell in cells}
    assert why["kl"] == "changed: train.lr" and why["floor"] == ""


def test_dry_run_writes_nothing(world, tmp_path):
    _, suite, _, _ = world
    text = call("run", suite, "--results-dir", tmp_path / "none", "--dry-run", "--only", "objective=kl").stdout
    assert "not chosen by --only" in text and not (tmp_path / "none").exists()


@pytest.mark.fault("C5", "a bit of the scores: never shown")
def test_a_flipped_bit_in_scores_is_never_shown(world, tmp_path):
    _, _, results, _ = world
    target = tmp_path / "r"
    shutil.copytree(results, target)
    plan = json.loads((target / "suites" / "tiny" / "plan.json").read_text())
    cell = next(cell for cell in plan["cells"] if cell["arm"] == "kl" and cell["seed"] == 1)
    flip(target / "cells" / cell["key"] / "samples.parquet")
    assert "1 of 13 cells damaged, left out: kl" in call("compare", "--results-dir", target).stdout
    scores = load_scores(target)
    assert sorted(scores[scores.objective == "kl"].seed.unique()) == [0, 2]
    assert sorted(scores[scores.objective == "sft"].seed.unique()) == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.fault("C5", "a bit of a model that a cell needs: set aside, made again")
def test_a_flipped_bit_in_a_model_is_said_set_aside_and_made_again(world, tmp_path):
    _, suite, results, _ = world
    target = tmp_path / "r"
    shutil.copytree(results, target)
    cell = next(path.parent for path in target.glob("cells/*/inputs.json") if '"name": "kl"' in path.read_text())
    student = json.loads((cell / "inputs.json").read_text())["student"]
    flip(target / "models" / student / "model" / "model.safetensors")
    shutil.rmtree(cell)
    mended = kdbench("run", suite, "--results-dir", target, "--no-mlflow", "--workers", 1)
    assert "is damaged" in mended.stderr and "it is made again first" in mended.stderr and "[2/2]" in mended.stderr
    assert list(target.rglob("*.corrupt-1")) and "Traceback" not in mended.stderr
    assert products(target) == products(results)


@pytest.mark.fault("C5", "a bit of a finished student's weights: its scores are shown, doctor names it, a run mends it")
def test_a_flipped_bit_in_a_students_weights_costs_no_verdict_and_is_mended_by_a_run(world, tmp_path, monkeypatch):
    in_this_process(monkeypatch)
    _, suite, results, _ = world
    target = tmp_path / "r"
    shutil.copytree(results, target)
    cell = next(path.parent for path in target.glob("cells/*/inputs.json") if '"name": "kl"' in path.read_text())
    flip(cell / "model" / "model.safetensors")
    assert call("compare", "--results-dir", target).stdout == call("compare", "--results-dir", results).stdout
    told = call("doctor", "--store", "--results-dir", target)
    assert told.exit_code == 4 and f"{cell.name}  damaged: model/model.safetensors" in told.stdout
    mended = call("run", suite, "--results-dir", target, "--no-mlflow")
    assert mended.exit_code == 0, mended.output
    assert "model/model.safetensors is damaged; set aside as" in mended.stderr and "1 jobs to run" in mended.stderr
    assert call("gc", "--yes", "--results-dir", target).exit_code == 0, "what was set aside"
    assert products(target) == products(results) and call("doctor", "--store", "--results-dir", target).exit_code == 0


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_a_saved_student_is_an_ordinary_folder_and_plain_lm_eval_agrees(world, tmp_path):
    """transformers alone loads it; `lm_eval --model hf --include_path` gives the very scores in the store."""
    import pandas
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, _, results, _ = world
    plan = json.loads((results / "suites" / "tiny" / "plan.json").read_text())
    cell = next(cell for cell in plan["cells"] if cell["arm"] == "kl")
    folder = results / "cells" / cell["key"]
    AutoModelForCausalLM.from_pretrained(folder / "model", local_files_only=True)
    AutoTokenizer.from_pretrained(folder / "model", local_files_only=True)
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= {
        path.name for path in (folder / "model").iterdir()
    }
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={folder / 'model'}"]
    command += ["--include_path", str(results / "suites" / "tiny" / "lm_eval_tasks"), "--batch_size", "16"]
    command += [
        "--tasks",
        "kdbench_replace,kdbench_swap",
        "--device",
        "cpu",
        "--log_samples",
        "--output_path",
        str(tmp_path),
    ]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    stored = pandas.read_parquet(folder / "samples.parquet")
    for task in ("swap", "replace"):
        path = next(tmp_path.rglob(f"samples_kdbench_{task}*.jsonl"))
        theirs = {row["doc_id"]: row["acc"] for row in map(json.loads, path.read_text().splitlines())}
        mine = stored[stored.task == task]
        assert dict(zip(mine["item"], mine["score"], strict=True)) == theirs


@pytest.mark.fault("E1", "an objective that gives NaN, in a run")
def test_a_diverged_cell_is_a_result_and_not_a_gap(world, tmp_path):
    _, suite, _, _ = world
    plugin = tmp_path / "plugins" / "nan.py"
    plugin.parent.mkdir()
    plugin.write_text(
        "from kdbench.api import Objective, Source\n\n\nclass Bad(Objective):\n"
        '    """Gives NaN in its fifth step."""\n\n    name = "bad"\n    source = Source(title="x", year=2026)\n'
        "    needs_teacher = False\n\n"
        "    def at(self, step):\n        Bad.factor = float('nan') if step.index == 4 else -1\n"
        "        return self\n\n"
        "    def terms(self, student, teacher, tokens):\n"
        '        return {"bad": student.log_prob_target * Bad.factor}\n'
    )
    run = (
        "run",
        suite,
        "--results-dir",
        tmp_path / "r",
        "--objectives-dir",
        plugin.parent,
        "--no-mlflow",
        "--workers",
        1,
    )
    process = call(*run, "--set", "objectives=[sft, bad]", "--set", "compare.contrasts=[]", "--only", "seed=0")
    assert process.exit_code == 3, process.output
    assert "diverged" in process.stdout and "step 5" in process.stderr + process.stdout
    assert "Traceback" not in process.stderr
    ended = {path.parent: json.loads(path.read_text()) for path in (tmp_path / "r").glob("cells/*/DONE.json")}
    (bad,) = [(folder, done) for folder, done in ended.items() if done["status"] == "diverged"]
    assert bad[1]["step"] == 5 and "last finite loss" in bad[1]["reason"] and len(ended) == 4
    assert [record["step"] for record in read_records(bad[0] / "metrics.jsonl")] == [1, 2, 3, 4], "how it came to that"
    assert sum(done["status"] == "ok" for done in ended.values()) == 3, "the others went on"
    shown = call("compare", "--results-dir", tmp_path / "r")
    assert "diverged, left out: bad · small · seed 0" in shown.output, shown.output
    again = call(*run, "--set", "objectives=[sft, bad]", "--set", "compare.contrasts=[]", "--only", "seed=0")
    assert (
        again.exit_code == 3
        and "0 jobs to run" in again.stderr
        and json.loads((bad[0] / "DONE.json").read_text()) == bad[1]
    )


@pytest.mark.slow
def test_only_chooses_cells_and_says_what_is_missing(world, tmp_path):
    _, suite, results, _ = world
    target = tmp_path / "r"
    shutil.copytree(results, target)
    for path in list(target.glob("cells/*/inputs.json")):
        if '"objective_source"' in path.read_text():
            shutil.rmtree(path.parent)
    chosen = ("--only", "objective=sft,kl", "--only", "seed=0", "--no-mlflow", "--workers", 1)
    process = kdbench("run", suite, "--results-dir", target, *chosen)
    assert re.search(r"7 of 13 cells missing", process.stdout)
    assert len(list(target.glob("cells/*/DONE.json"))) == 6


@pytest.mark.slow
@pytest.mark.fault("C1", "a disk that is full for a worker: its path is said, exit 4, the next run goes on")
def test_a_worker_s_full_disk_ends_the_run_with_the_exit_code_of_the_store(world, tmp_path):
    _, suite, results, _ = world
    target = tmp_path / "r"
    shutil.copytree(results, target)
    floor = next(path.parent for path in target.glob("cells/*/inputs.json") if '"arm": "floor"' in path.read_text())
    shutil.rmtree(floor)
    run = ("run", suite, "--results-dir", target, "--no-mlflow", "--workers", 1)
    full = kdbench(*run, check=4, KDBENCH_FAILPOINT="examine:1:raise:ENOSPC")
    told = full.stdout + full.stderr
    assert "No space left on device" in told and floor.name in told and "make room" in told
    assert "Traceback" not in told and not (floor / "DONE.json").exists()
    kdbench(*run)
    assert products(target) == products(results)
