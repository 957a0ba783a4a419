"""Scores that lm-eval wrote by itself become the table that `compare` takes, or are refused with what to do.

python -m pytest tests/analysis/test_lm_eval.py
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

import kdbench
from kdbench.errors import ConfigError

EARLY, LATE = "2026-01-01T10-00-00.000001", "2026-01-02T10-00-00.000001"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sample(doc_id: int, prompt: str = "", filter: str = "none", **metrics: object) -> dict[str, object]:
    """A line as lm-eval 0.4.13 writes it, without the documents and answers that are not read."""
    hashes = {"doc_hash": digest(f"doc {doc_id}"), "prompt_hash": digest(prompt), "target_hash": digest("1")}
    return {"doc_id": doc_id, "doc": {}, "filter": filter, "metrics": list(metrics), **hashes, **metrics}


def write(folder: Path, task: str, samples: list[dict[str, object]], time: str = EARLY) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"samples_{task}_{time}.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in samples))
    return path


def answers(scores: list[float], **more: str) -> list[dict[str, object]]:
    return [sample(number, acc=score, **more) for number, score in enumerate(scores)]


def test_files_that_lm_eval_wrote_give_the_scores_that_kdbench_s_own_harness_gives(tmp_path):
    """The real command line, off-line, on a saved model and the tasks that kdbench writes for it."""
    from kdbench.distill.data import Document, train_tokenizer
    from kdbench.distill.models import Runtime, load, load_tokenizer
    from kdbench.evaluate import harness, tasks
    from tests.conftest import sentences
    from tests.run.test_external import save_student

    texts = [(random.Random(n), f"d{n}") for n in range(12)]
    documents = [Document(name, "\n\n".join(sentences(rng, 12) for _ in range(8))) for rng, name in texts]
    names = ("swap", "perplexity")
    paths = tasks.write(tasks.build(documents, names, items=40), tmp_path / "tasks")
    tasks.write_lm_eval_folder(tmp_path / "tasks", names, tmp_path / "yaml")
    train_tokenizer(documents, 320, tmp_path / "model")
    folder = save_student(tmp_path / "model", 0)
    command = [
        sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={folder}",
        "--tasks", "kdbench_swap,kdbench_perplexity", "--include_path", str(tmp_path / "yaml"), "--batch_size", "16",
        "--device", "cpu", "--log_samples", "--output_path", str(tmp_path / "out"),
    ]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    own = harness.examine(load(folder, Runtime("cpu", "float32", 1)), load_tokenizer(folder), paths, batch_size=16)
    kept = pandas.DataFrame(own.items).set_index(["task", "item_hash"])["score"].sort_index()
    with pytest.warns(UserWarning, match="left out, for lack of a metric with a number an item: kdbench_perplexity"):
        scores = kdbench.load_lm_eval(tmp_path / "out", label="mine", student="small", seed=0)
    assert list(scores.columns)[:7] == ["objective", "student", "teacher", "seed", "task", "item", "score"]
    assert scores.set_index(["task", "item_hash"])["score"].sort_index().equals(kept[["swap"]])
    with pytest.warns(UserWarning, match="kdbench_swap"):
        words = kdbench.load_lm_eval(tmp_path / "out", metric="word_perplexity")
    theirs = -words.set_index(["task", "item_hash"])["score"].sort_index()
    pandas.testing.assert_series_equal(theirs, kept[["perplexity"]], rtol=1e-6)


def test_two_labels_over_seeds_go_straight_into_compare(tmp_path):
    for seed in range(3):
        write(tmp_path / f"a-{seed}", "quiz", answers([1, 1, 1, seed % 2, 1] * 8))
        write(tmp_path / f"b-{seed}", "quiz", answers([0, 1, 1, 0, 0] * 8))
    paths = {label: {seed: tmp_path / f"{label}-{seed}" for seed in range(3)} for label in "ab"}
    scores = kdbench.load_lm_eval(paths, student="s")
    assert scores.groupby("objective").seed.nunique().to_dict() == {"a": 3, "b": 3}
    row = kdbench.compare(scores, "b").table.iloc[-1]
    assert row.delta == pytest.approx((2 * 3 + 1) / 15) and row.n_seeds == 3 and row.n_items == 40


def test_of_several_runs_of_a_task_the_newest_counts_and_it_is_said(tmp_path):
    write(tmp_path, "quiz", answers([0, 0]), EARLY)
    write(tmp_path, "quiz", answers([1, 1]), LATE)
    with pytest.warns(UserWarning, match=f"quiz run several times; the newest counts, such as .*{LATE}"):
        assert kdbench.load_lm_eval(tmp_path).score.tolist() == [1, 1]


def test_the_same_number_of_another_document_or_prompt_is_another_item(tmp_path):
    write(tmp_path / "a", "quiz", answers([1, 0]))
    write(tmp_path / "b", "quiz", answers([1, 0], prompt="Answer briefly."))
    write(tmp_path / "c", "quiz", [sample(0, acc=1), sample(1, "changed", acc=0)])
    with pytest.raises(ConfigError, match=r"'a' and 'b' share no item of task 'quiz'.*chat template"):
        kdbench.load_lm_eval({"a": tmp_path / "a", "b": tmp_path / "b"})
    half = kdbench.load_lm_eval({"a": tmp_path / "a", "c": tmp_path / "c"})
    assert half.item.nunique() == 3


def test_a_filter_is_chosen_only_where_a_task_has_several(tmp_path):
    write(
        tmp_path, "sums", [sample(0, filter=name, exact_match=float(name == "loose")) for name in ("strict", "loose")]
    )
    write(tmp_path, "quiz", answers([1]))
    with pytest.raises(ConfigError, match=r"found 2\. Choose with filter=: strict, loose"):
        kdbench.load_lm_eval(tmp_path)
    found = kdbench.load_lm_eval(tmp_path, filter="loose").set_index("task").score.to_dict()
    assert found == {"sums": 1.0, "quiz": 1.0}
    with pytest.raises(ConfigError, match="Did you mean 'loose'"):
        kdbench.load_lm_eval(tmp_path, filter="lose")


def test_a_metric_is_the_first_with_a_number_an_item_or_the_one_asked_for(tmp_path):
    rows = [sample(n, f1=[0, 1], acc=float(n), acc_norm=0.5, word_perplexity=[-6.0, 3]) for n in range(2)]
    write(tmp_path, "quiz", rows)
    assert kdbench.load_lm_eval(tmp_path).score.tolist() == [0, 1]
    assert kdbench.load_lm_eval(tmp_path, metric="acc_norm").score.tolist() == [0.5, 0.5]
    assert kdbench.load_lm_eval(tmp_path, metric="word_perplexity").score.tolist() == [-2, -2]
    with pytest.raises(ConfigError, match="Did you mean 'acc_norm'"):
        kdbench.load_lm_eval(tmp_path, metric="acc_nrm")
    with pytest.raises(ConfigError, match=r"f1 of doc_id 0 is .*expected a number"):
        kdbench.load_lm_eval(tmp_path, metric="f1")


def test_what_is_better_when_lower_is_turned_round(tmp_path):
    write(tmp_path, "quiz", [sample(n, brier=0.25 * n) for n in range(2)])
    results = {"higher_is_better": {"quiz": {"brier": False}}}
    (tmp_path / f"results_{EARLY}.json").write_text(json.dumps(results))
    assert kdbench.load_lm_eval(tmp_path).score.tolist() == [0, -0.25]


def test_one_file_is_enough_and_its_folder_names_the_arm(tmp_path):
    path = write(tmp_path / "mine", "quiz", answers([1, 0]))
    scores = kdbench.load_lm_eval(path)
    assert set(scores.objective) == {"mine"} and set(scores.task) == {"quiz"} and scores.seed.isna().all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_text(path.read_text()[:-40]), "jsonl:2: expected a JSON object a line.*cut off"),
        (lambda path: path.write_text("[]\n"), "jsonl:1: expected a sample as lm-eval 0.4.13 writes it"),
        (lambda path: path.write_text(json.dumps({"doc_id": 0}) + "\n"), "missing: 'doc_hash'"),
        (lambda path: path.write_text(path.read_text() * 2), "doc_id 0 stands twice"),
        (lambda path: path.write_text(""), "is empty"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda path: path.write_text(json.dumps(sample(0, acc=float("nan")))), "acc of doc_id 0 is nan"),
        (lambda path: path.rename(path.with_name("other.txt")), "found none"),
        (lambda path: path.rename(path.with_name("results_x.json")), "needs --log_samples"),
        (lambda path: write(path.parent / "second-model", "quiz", answers([1])), "samples of 2 models"),
    ],
)
def test_what_cannot_be_read_is_refused_with_where_and_why(tmp_path, spoil, message):
    spoil(write(tmp_path, "quiz", answers([1, 0])))
    with pytest.raises(ConfigError) as error:
        kdbench.load_lm_eval(tmp_path)
    assert re.search(message, str(error.value)), error.value
