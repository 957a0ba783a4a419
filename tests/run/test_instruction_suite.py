"""A miniature of the instruction suites, from records to a verdict: prompts, rollouts, lm-eval tasks beside the suite.

python -m pytest tests/run/test_instruction_suite.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pandas
import pytest

from kdbench.files import read_json
from tests.conftest import OBJECTS, SUBJECTS, VERBS, call, kdbench

SUITE = """\
name: follow
question: Does it work on instructions?
data:
  instructions: {file: records.jsonl, template: {prompt: "Q: {instruction} {input}\\nA:"}, dev: 0.1, test: 0.1}
  tokenizer: {bpe: 320}
  length: 64
models:
  small:
    init: {architecture: opt, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, ffn_dim: 32}
  big:
    init: {architecture: opt, hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 2, ffn_dim: 48}
    pretrain: {tokens: 8192, lr: 1e-2, batch_tokens: 512}
students: [small]
teachers: [big]
objectives: [kl, gkd]
seeds: [0, 1, 2]
rollouts: {new_tokens: 12}
train: {steps: 6, batch_tokens: 512, lr: 1e-2, checkpoint_steps: 3}
examine:
  tasks: []
  lm_eval:
    - {task: choose, path: tasks, shots: 1}
    - {task: answer, path: tasks, limit: 8}
  intrinsic_tokens: 512
compare: {contrasts: [[gkd, kl]], tasks: [choose, answer]}
device: cpu
"""
SHARED = """\
dataset_path: json
dataset_kwargs: {data_files: {train: train.jsonl, test: test.jsonl}}
test_split: test
fewshot_split: train
doc_to_text: "Q: {{instruction}}\\nA:"
metadata: {version: 1.0}
"""
CHOOSE = """\
include: shared
task: choose
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ANSWER = """\
include: shared
task: answer
output_type: generate_until
doc_to_target: "{{choices[label]}}"
num_fewshot: 0
generation_kwargs: {until: ["."], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def records(count: int) -> list[dict]:
    rng = random.Random(0)
    rows = []
    for number in range(count):
        subject, verb, thing = rng.choice(SUBJECTS), rng.choice(VERBS), rng.choice(OBJECTS)
        asked = f"Say what {subject.lower()} number {number} {verb}."
        rows.append(
            {"instruction": asked, "input": thing if number % 3 else "", "output": f"{subject} {verb} {thing}."}
        )
    return rows


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A suite file with its records and its tasks."""
    folder = tmp_path_factory.mktemp("follow")
    (folder / "follow.yaml").write_text(SUITE, encoding="utf-8")
    broken = [{"instruction": "Nothing.", "output": ""}, {"instruction": "Half", "output": None}, records(1)[0]]
    write_rows(folder / "records.jsonl", records(240) + broken)
    (folder / "tasks").mkdir()
    for name, text in (("shared", SHARED), ("choose.yaml", CHOOSE), ("answer.yaml", ANSWER)):
        (folder / "tasks" / name).write_text(text, encoding="utf-8")
    rows = [
        {"instruction": f"What has number {n}?", "choices": [f"{s} has it" for s in SUBJECTS[:3]], "label": n % 3}
        for n in range(40)
    ]
    write_rows(folder / "tasks" / "train.jsonl", rows[:10])
    write_rows(folder / "tasks" / "test.jsonl", rows[10:])
    return folder


@pytest.fixture(scope="module")
def ran(folder) -> dict:
    """What `kdbench run --json` prints."""
    cache = {"HF_DATASETS_CACHE": str(folder / "cache")}
    process = kdbench(
        "run", folder / "follow.yaml", "--results-dir", folder / "results", "--no-mlflow", "--json", **cache
    )
    return json.loads(process.stdout) | {"folder": folder}


def test_a_suite_over_instructions_ends_in_a_verdict(ran):
    assert not ran["failed"] and not ran["diverged"]
    assert ran["comparison"]
    stored = list((ran["folder"] / "results" / "cells").glob("*/results.json"))
    assert len(stored) == 6 + 3 + 1
    for path in stored:
        found = read_json(path)
        assert 0 <= found["choose/score"] == found["choose/acc"] <= 1
        assert found["answer/score"] == found["answer/exact_match"]


def test_an_objective_that_writes_learns_from_text_after_the_records_own_prompts(ran):
    store = ran["folder"] / "results"
    cells = read_json(store / "suites" / "follow" / "plan.json")["cells"]
    for cell in cells:
        done = read_json(store / "cells" / cell["key"] / "DONE.json")
        assert (done.get("generated_tokens", 0) > 0) == (cell["arm"] == "gkd")


def test_items_of_all_cells_are_the_same_and_each_has_one_primary_score(ran):
    frames = [pandas.read_parquet(p) for p in (ran["folder"] / "results" / "cells").glob("*/samples.parquet")]
    asked = {tuple(frame[frame.primary].item_hash) for frame in frames}
    assert len(asked) == 1 and len(asked.pop()) == 30 + 8


def test_what_was_dropped_stands_with_the_tokenised_text(ran):
    (text,) = (ran["folder"] / "results" / "texts").glob("*/DONE.json")
    told = read_json(text)["records"]
    assert told["read"] == 243 and told["no_response"] == told["incomplete"] == told["duplicate"] == 1
    assert told["train"] + told["dev"] + told["test"] == 240


def test_one_task_of_lm_eval_can_be_asked_about_alone(ran):
    found = call("compare", "--results-dir", ran["folder"] / "results", "--metric", "answer", "--json")
    assert found.exit_code == 0, found.output
    assert call("compare", "--results-dir", ran["folder"] / "results", "--metric", "anser").exit_code == 2


def test_a_changed_task_file_makes_cells_new_and_leaves_the_training_data_alone(ran):
    plan = ("plan", ran["folder"] / "follow.yaml", "--results-dir", ran["folder"] / "results", "--json")
    assert {cell["state"] for cell in json.loads(call(*plan).stdout)["cells"]} == {"done"}
    path = ran["folder"] / "tasks" / "answer.yaml"
    path.write_text(ANSWER.replace("max_gen_toks: 8", "max_gen_toks: 9"), encoding="utf-8")
    planned = json.loads(call(*plan).stdout)
    path.write_text(ANSWER, encoding="utf-8")
    assert {cell["state"] for cell in planned["cells"]} == {"new"} and not planned["to_make"]
    assert "examine.elsewhere" in planned["cells"][0]["why"]
