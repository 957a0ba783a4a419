"""Examinations give lm-eval's own scores, quietly, and leave the process as it was."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys

import pytest

from kdbench.errors import ConfigError, KdbenchError
from kdbench.evaluate import tasks
from kdbench.evaluate.harness import examine

KEYS = {"swap/acc", "replace/acc", "agreement/acc", "last_word/acc", "perplexity/word_perplexity"}


@pytest.fixture
def yaml_folder(small_tasks, tmp_path):
    tasks.write_lm_eval_folder(small_tasks["swap"].parent, tasks.NAMES, tmp_path / "yaml")
    return tmp_path / "yaml"


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_task(examination, name):
    return [item for item in examination.items if item["task"] == name]


def assert_same_items(examination, samples_of):
    """The items must be lm-eval's samples: the same questions, by lm-eval's hashes, and the same scores.

    Exactly so but for nats per word, which may differ in the last bit where the processor's matrix product does.
    """
    from kdbench.evaluate.harness import _item

    for name in tasks.NAMES:
        metric = "word_perplexity" if name == "perplexity" else "acc"
        expected = [_item(name, metric, sample) for sample in samples_of(name)]
        for mine, theirs in zip(by_task(examination, name), expected, strict=True):
            assert mine == theirs | {"score": pytest.approx(theirs["score"], rel=1e-6 if name == "perplexity" else 0)}
        assert expected


def test_every_task_has_its_metric_and_one_item_per_row(model, tokenizer, small_tasks):
    found = examine(model, tokenizer, small_tasks, batch_size=16)
    assert set(found.metrics) == KEYS
    for name, path in small_tasks.items():
        items = by_task(found, name)
        assert [item["item"] for item in items] == list(range(len(rows_of(path))))
        assert {item["metric"] for item in items} == {"word_nll" if name == "perplexity" else "acc"}
        assert len({item["item_hash"] for item in items}) == len(items)


def test_the_metrics_are_the_means_of_the_items(model, tokenizer, small_tasks):
    found = examine(model, tokenizer, small_tasks, batch_size=16)
    for name in (*tasks.PAIRS, "last_word"):
        scores = [item["score"] for item in by_task(found, name)]
        assert set(scores) <= {0.0, 1.0}
        assert found.metrics[f"{name}/acc"] == pytest.approx(sum(scores) / len(scores))
    words = [row["words"] for row in rows_of(small_tasks["perplexity"])]
    nats = sum(item["score"] * n for item, n in zip(by_task(found, "perplexity"), words, strict=True))
    assert found.metrics["perplexity/word_perplexity"] == pytest.approx(math.exp(nats / sum(words)))


def test_a_pair_scores_one_exactly_when_the_model_finds_the_true_sentence_likelier(model, tokenizer, small_tasks):
    import torch

    model.eval()
    items = examine(model, tokenizer, {"swap": small_tasks["swap"]}, batch_size=16).items
    for row, item in zip(rows_of(small_tasks["swap"]), items, strict=True):
        totals = []
        for choice in row["choices"]:
            ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(" " + choice)]])
            with torch.no_grad():
                log_probabilities = model(ids).logits.log_softmax(-1)
            totals.append(log_probabilities[0, :-1].gather(1, ids[0, 1:, None]).sum().item())
        assert item["score"] == float(totals[row["label"]] > totals[1 - row["label"]])


@pytest.mark.fault("G3", "lm-eval")
def test_examining_again_gives_the_same_and_leaves_every_state(model, tokenizer, small_tasks):
    import numpy
    import torch

    model.train()
    model.model.decoder.layers[0].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()
    first = examine(model, tokenizer, small_tasks, batch_size=16)
    assert examine(model, tokenizer, small_tasks, batch_size=16, seed=7) == first
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert tokenizer.pad_token is None
    assert random.getstate() == states[0]
    assert numpy.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_nothing_is_printed_and_log_levels_stay(model, tokenizer, small_tasks, capfd):
    import logging

    level = logging.getLogger("lm_eval").level
    examine(model, tokenizer, small_tasks, batch_size=16)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("lm_eval").level == level


def test_the_users_dataset_cache_is_not_written(model, tokenizer, small_tasks, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    copy = shutil.copy(small_tasks["swap"], tmp_path / "swap.jsonl")
    examine(model, tokenizer, {"swap": tmp_path / copy}, batch_size=16)
    assert not (tmp_path / "cache").exists()


def test_limit_takes_the_first_items(model, tokenizer, small_tasks):
    whole = examine(model, tokenizer, small_tasks, batch_size=16)
    part = examine(model, tokenizer, small_tasks, batch_size=16, limit=5)
    for name in tasks.NAMES:
        found, expected = by_task(part, name), by_task(whole, name)[:5]
        assert [item["item_hash"] for item in found] == [item["item_hash"] for item in expected]
        assert [item["score"] for item in found] == pytest.approx([item["score"] for item in expected])


def test_batch_size_changes_nothing_but_rounding(model, tokenizer, small_tasks):
    one, many = (examine(model, tokenizer, small_tasks, batch_size=size) for size in (1, 64))
    assert [item["score"] for item in one.items] == pytest.approx([item["score"] for item in many.items])


def test_a_rewritten_rows_file_and_a_changed_tokenizer_are_noticed(model, tokenizer, small_tasks, tmp_path):
    import copy

    path = tmp_path / "swap.jsonl"
    rows = rows_of(small_tasks["swap"])
    tasks.write({"swap": rows[:30]}, tmp_path)
    before = examine(model, tokenizer, {"swap": path}, batch_size=16)
    tasks.write({"swap": rows[30:]}, tmp_path)
    after = examine(model, tokenizer, {"swap": path}, batch_size=16)
    assert {item["item_hash"] for item in before.items}.isdisjoint(item["item_hash"] for item in after.items)
    changed = copy.deepcopy(tokenizer)
    changed.add_tokens([" nation"])
    model.resize_token_embeddings(len(changed))
    assert after != examine(model, changed, {"swap": path}, batch_size=16)


@pytest.mark.fault("E11", "a model whose scores are NaN")
def test_a_model_that_is_not_finite_is_refused_instead_of_scored(model, tokenizer, small_tasks):
    model.model.decoder.final_layer_norm.weight.data.fill_(float("nan"))
    with pytest.raises(KdbenchError, match="'swap': expected finite log-likelihoods, found others in 60 of 60 items"):
        examine(model, tokenizer, small_tasks, batch_size=16)


def test_a_model_with_too_few_positions_is_refused(tokenizer, small_tasks):
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=8, word_embed_proj_dim=8, ffn_dim=8, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=4,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="a model of at most 4 positions"):
        examine(OPTForCausalLM(config), tokenizer, small_tasks, batch_size=16)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read its rows"), ("", "does not hold rows"), ("{", "does not hold rows"), ('{"a": 1}\n', "rows")],
)
def test_a_rows_file_that_is_missing_or_damaged_is_named(model, tokenizer, tmp_path, content, message):
    path = tmp_path / "swap.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"task 'swap'.*{message}"):
        examine(model, tokenizer, {"swap": path}, batch_size=16)


def test_wrong_arguments_are_refused(model, tokenizer, small_tasks):
    for given, options in (({}, {}), (small_tasks, {"limit": 0})):
        with pytest.raises(ConfigError, match="expected a task, and batch_size and limit of at least 1"):
            examine(model, tokenizer, given, batch_size=16, **options)
    with pytest.raises(ConfigError, match="unknown task 'swop'"):
        examine(model, tokenizer, {"swop": small_tasks["swap"]}, batch_size=16)


def test_the_scores_are_those_of_unchanged_lm_eval_on_the_written_folder(
    model, tokenizer, small_tasks, yaml_folder, tmp_path, monkeypatch
):
    import datasets
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found = examine(model, tokenizer, small_tasks, batch_size=16)
    loaded = TaskManager(include_path=yaml_folder, include_defaults=False).load([f"kdbench_{n}" for n in tasks.NAMES])
    plain = evaluate(lm=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16), task_dict=loaded, bootstrap_iters=0)
    tokenizer.pad_token = None
    assert_same_items(found, lambda name: plain["samples"][f"kdbench_{name}"])
    for key, value in found.metrics.items():
        name, metric = key.split("/")
        assert value == pytest.approx(plain["results"][f"kdbench_{name}"][f"{metric},none"], rel=1e-6)


def plain_and_ours(model, tokenizer, **options):
    """lm-eval's own language model, and ours, over the same weights."""
    from lm_eval.models.huggingface import HFLM

    from kdbench.evaluate.harness import _language_model

    model.eval()
    return tuple(made(pretrained=model, tokenizer=tokenizer, **options) for made in (HFLM, _language_model()))


def requests_of(*pairs):
    return [(None, list(context), list(continuation)) for context, continuation in pairs]


def test_log_likelihoods_are_those_of_plain_lm_eval(model, tokenizer, monkeypatch):
    """Also where requests share all but their last token, and where a text is too long and cut on the left."""
    from kdbench.evaluate import harness

    rng = random.Random(0)
    texts = [[rng.randrange(len(tokenizer)) for _ in range(rng.randrange(2, 40))] for _ in range(60)]
    texts += [
        [*texts[0][:-1], 7],
        [*texts[0][:-1], 9],
        [*texts[1][:-1], 7],
        [rng.randrange(len(tokenizer)) for _ in range(200)],
    ]
    cuts = [rng.randrange(1, len(text)) for text in texts]
    for place in (0, 1, 60, 61, 62):  # continuations of one token, which share a row
        cuts[place] = len(texts[place]) - 1
    asked = requests_of(*((text[:cut], text[cut:]) for text, cut in zip(texts, cuts, strict=True) if len(text) < 200))
    asked += requests_of((texts[-1][:150], texts[-1][150:]))
    monkeypatch.setattr(harness, "CHUNK_BYTES", 4 * len(tokenizer) * 13)  # thirteen positions a chunk
    for size in (1, 16):
        plain, ours = plain_and_ours(model, tokenizer, batch_size=size)
        mine, theirs = (lm._loglikelihood_tokens(asked) for lm in (ours, plain))
        assert [one for one, _ in mine] == pytest.approx([one for one, _ in theirs], rel=1e-6)
        assert [chosen for _, chosen in mine] == [chosen for _, chosen in theirs]
        # Asked together, plain lm-eval reads the shorter of two continuations of one text at the longer one's places.
        cut_twice = requests_of(([1], texts[0]), ([1, *texts[0][:1]], texts[0][1:]))
        apart = [plain._loglikelihood_tokens([one])[0] for one in cut_twice]
        assert [one for one, _ in ours._loglikelihood_tokens(cut_twice)] == pytest.approx([one for one, _ in apart])


def test_only_scored_positions_reach_the_output_head(model, tokenizer, small_tasks, monkeypatch):
    from kdbench.evaluate import harness

    seen, picked = [], harness._picked
    monkeypatch.setattr(harness, "_picked", lambda states, *rest: seen.append(len(states)) or picked(states, *rest))
    examine(model, tokenizer, {"last_word": small_tasks["last_word"]}, batch_size=16)
    rows = rows_of(small_tasks["last_word"])
    words = sum(len(tokenizer.encode(row["target"])) for row in rows)
    assert len(rows) <= sum(seen) <= words + len(rows) < sum(len(tokenizer.encode(row["context"])) for row in rows) / 4


def test_a_model_that_changes_its_logits_after_the_head_is_scored_by_lm_eval_s_own_way(tokenizer, small_tasks):
    import torch
    from transformers import CohereConfig, CohereForCausalLM

    from kdbench.evaluate.harness import _splits

    config = CohereConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, logit_scale=0.25, bos_token_id=0, eos_token_id=0,
        pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = CohereForCausalLM(config)
    assert not _splits(model)
    asked = requests_of(([1, 2, 3], [4, 5]), ([1], [6]))
    plain, ours = plain_and_ours(model, tokenizer, batch_size=2)
    assert ours._loglikelihood_tokens(asked) == plain._loglikelihood_tokens(asked)


@pytest.mark.slow
def test_the_scores_are_those_of_the_lm_eval_command_line(model, tokenizer, small_tasks, yaml_folder, tmp_path):
    import torch

    # The same number of threads here and there: matrix products may differ in the last bit between numbers of them.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = examine(model, tokenizer, small_tasks, batch_size=16)
    finally:
        torch.set_num_threads(threads)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={tmp_path / 'model'}",
        "--tasks", ",".join(f"kdbench_{name}" for name in tasks.NAMES), "--include_path", str(yaml_folder),
        "--batch_size", "16", "--device", "cpu", "--log_samples", "--output_path", str(tmp_path / "out"),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    summary = json.loads(results.read_text(encoding="utf-8"))["results"]
    for key, value in found.metrics.items():
        name, metric = key.split("/")
        assert value == pytest.approx(summary[f"kdbench_{name}"][f"{metric},none"], rel=1e-6)

    def samples_of(name):
        (path,) = (tmp_path / "out").rglob(f"samples_kdbench_{name}_*.jsonl")
        return sorted(rows_of(path), key=lambda sample: sample["doc_id"])

    assert_same_items(found, samples_of)


@pytest.mark.gpu
@pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="no CUDA device")
def test_a_model_on_a_gpu_is_examined_there(model, tokenizer, small_tasks):
    cpu = examine(model, tokenizer, small_tasks, batch_size=16)
    gpu = examine(model.to("cuda"), tokenizer, small_tasks, batch_size=16)
    assert gpu.metrics["perplexity/word_perplexity"] == pytest.approx(cpu.metrics["perplexity/word_perplexity"], 1e-3)
    assert [item["item_hash"] for item in gpu.items] == [item["item_hash"] for item in cpu.items]
