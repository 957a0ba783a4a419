"""A suite whose answers a local model judges, from records to a verdict.

python -m pytest tests/run/test_judged_suite.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import pytest

from kdbench.files import read_json
from tests.conftest import call
from tests.evaluate.test_judge import saved
from tests.run.here import in_this_process, without_pictures
from tests.run.test_instruction_suite import ANSWER, CHOOSE, SHARED, SUITE, records, write_rows

SMALL = ("objectives=[sft, kl]", "compare={contrasts: [[kl, sft]], tasks: [answer]}", "seeds=[0, 1]", "train.steps=2")
TASK = "examine.lm_eval=[{task: answer, path: tasks, limit: 6, judge: {path: judge}}]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A suite file with its records, its tasks and a judge."""
    folder = tmp_path_factory.mktemp("judged")
    (folder / "follow.yaml").write_text(SUITE.replace("tokens: 8192", "tokens: 2048"), encoding="utf-8")
    write_rows(folder / "records.jsonl", records(160))
    (folder / "tasks").mkdir()
    for name, text in (("shared", SHARED), ("choose.yaml", CHOOSE), ("answer.yaml", ANSWER)):
        (folder / "tasks" / name).write_text(text, encoding="utf-8")
    rows = [{"instruction": f"Is {n} odd?", "choices": ["Yes, it is", "No"], "label": (n + 1) % 2} for n in range(9)]
    write_rows(folder / "tasks" / "train.jsonl", rows)
    write_rows(folder / "tasks" / "test.jsonl", rows)
    saved(folder / "judge")
    return folder


def command(name: str, folder: Path, task: str = TASK) -> list[object]:
    changes = [part for one in (*SMALL, task) for part in ("--set", one)]
    return [name, folder / "follow.yaml", *changes, "--results-dir", folder / "results"]


@pytest.fixture(scope="module")
def results(folder) -> Path:
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        without_pictures(patch)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        found = call(*command("run", folder), "--no-mlflow")
    assert found.exit_code == 0, found.output
    return folder / "results"


def test_a_judged_suite_ends_in_a_verdict_over_the_judge_s_scores(results):
    told = json.loads(call("compare", "--results-dir", results, "--json").stdout)
    assert {(row["objective"], row["baseline"]) for row in told["table"]} == {("kl", "sft")}
    assert {row["n_items"] for row in told["table"]} == {6}
    for path in results.glob("cells/*/results.json"):
        found = read_json(path)
        assert found["answer/score"] == found["answer/judge"] and {"answer/judge_flip", "answer/exact_match"} <= set(
            found
        )


def test_every_cell_keeps_what_was_judged_and_how(results):
    for cell in (path.parent for path in results.glob("cells/*/DONE.json")):
        told = pandas.read_parquet(cell / "judged.parquet")
        scores = pandas.read_parquet(cell / "samples.parquet").query("metric == 'judge'").set_index("item").score
        assert len(told) == 6 and set(told.reference) == {"Yes, it is", "No"}
        wins = ((told.as_a > 0.5) & (told.as_b > 0.5)).map(float)
        assert list(scores == 1) == list(wins == 1)


def test_another_judge_makes_the_examination_new_and_nothing_else(results, folder):
    done = json.loads(call(*command("plan", folder), "--json").stdout)
    assert {cell["state"] for cell in done["cells"]} == {"done"}
    saved(folder / "other", always="A")
    new = json.loads(call(*command("plan", folder, TASK.replace("path: judge", "path: other")), "--json").stdout)
    assert {cell["state"] for cell in new["cells"]} == {"new"} and not new["to_make"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "path: judge",
            "path: nowhere",
            "judge: expected a model folder with config.json, found none",
        ),
        ("task: answer", "task: choose", "expected a task whose answers are written (generate_until), found choose"),
        ("{path: judge}", "{path: judge, chat: true}", "its tokenizer has no chat template"),
    ],
)
def test_what_cannot_be_judged_is_one_error_before_any_work(folder, tmp_path, old, new, message):
    changed = command("run", folder, TASK.replace(old, new).replace("tasks: [answer]", "tasks: [choose]"))
    if "choose" in new:
        changed[changed.index(SMALL[1])] = SMALL[1].replace("answer", "choose")
    changed[-1] = tmp_path / "none"
    found = call(*changed, "--no-mlflow")
    assert found.exit_code == 2, found.output
    assert message in " ".join(found.stderr.split()) and "Traceback" not in found.output
    assert not list(tmp_path.glob("none/cells/*/DONE.json"))
