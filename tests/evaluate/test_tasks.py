"""Tasks made from held-out documents: each item differs as promised, and is always the same item."""

from __future__ import annotations

import json
import random
import re
from collections import Counter

import pytest
import yaml

from kdbench.errors import ConfigError
from kdbench.evaluate import tasks


@pytest.fixture(scope="module")
def built(sotu_documents):
    return tasks.build(sotu_documents, tasks.NAMES)


def true_and_broken(row):
    return row["choices"][row["label"]].split(" "), row["choices"][1 - row["label"]].split(" ")


def flat(text):
    return " ".join(text.split())


def test_the_speeches_give_every_task_its_full_number_of_items(built):
    assert {name: len(rows) for name, rows in built.items()} == {
        "swap": 750, "replace": 750, "agreement": 750, "last_word": 300, "perplexity": 40,
    }  # fmt: skip


def test_building_twice_gives_the_same_rows_and_leaves_the_global_random_state(sotu_documents, built):
    state = random.getstate()
    assert tasks.build(sotu_documents, tasks.NAMES) == built
    assert random.getstate() == state


def test_a_task_does_not_depend_on_which_others_are_built(small_documents):
    alone = tasks.build(small_documents, ["agreement"], items=30)
    assert alone["agreement"] == tasks.build(small_documents, tasks.NAMES, items=30)["agreement"]


def test_swap_exchanges_exactly_two_neighbouring_words(built):
    for row in built["swap"]:
        true, broken = true_and_broken(row)
        at = row["position"]
        assert true != broken
        assert broken == [*true[:at], true[at + 1], true[at], *true[at + 2 :]]
        assert 0 < at < len(true) - 2  # neither the capital letter nor the full stop moves


def test_replace_puts_one_other_word_of_like_frequency(sotu_documents, built):
    counts = Counter(word for document in sotu_documents for word in re.findall(r"[A-Za-z'’-]+", document.text))
    for row in built["replace"]:
        true, broken = true_and_broken(row)
        assert [at for at, pair in enumerate(zip(true, broken, strict=True)) if pair[0] != pair[1]] == [row["position"]]
        old, new = counts[true[row["position"]]], counts[broken[row["position"]]]
        assert 1 / tasks.LIKE_FREQUENCY <= new / old <= tasks.LIKE_FREQUENCY


def test_agreement_changes_one_word_into_the_form_that_breaks_it(built):
    for row in built["agreement"]:
        true, broken = true_and_broken(row)
        assert [at for at, pair in enumerate(zip(true, broken, strict=True)) if pair[0] != pair[1]] == [row["position"]]
        old, new = (words[row["position"]].rstrip(",;:.!?").lower() for words in (true, broken))
        assert (old, new.lower()) in {(word, wrong.lower()) for word, wrong, _, _ in tasks._AGREEMENT}
    assert len({row["edit"] for row in built["agreement"]}) > 10


@pytest.mark.parametrize(
    ("sentence", "broken"),
    [
        ("The nation is strong and free today.", "The nation are strong and free today."),
        ("He wanted an honest answer from us.", "He wanted an honest answer from we."),
        ("We were ready to leave.", "We was ready to leave."),
        ("This was a hard year.", "These was a hard year."),
        ("They can win.", "Them can win."),
        ("All that they have done was good.", "All that they has done was good."),
    ],
)
def test_agreement_knows_this_break(sentence, broken):
    assert broken in {" ".join(edit.words) for edit in tasks._disagreements(sentence.split(" "))}


@pytest.mark.parametrize(
    "sentence",
    [
        "What is needed now.",  # "What are needed": a plural reading exists
        "If it were so bad.",  # the subjunctive "were" may be "was"
        "This will pass soon.",  # "These will pass"
        "Nobody saw an hour pass.",  # h: the letter does not tell the sound
    ],
)
def test_agreement_leaves_alone_what_would_still_be_english(sentence):
    assert tasks._disagreements(sentence.split(" ")) == []


def test_the_true_sentence_is_first_in_half_of_the_rows_and_stands_in_its_source(sotu_documents, built):
    for name in tasks.PAIRS:
        assert sum(row["label"] for row in built[name]) == len(built[name]) // 2
        for row in built[name]:
            document = sotu_documents[row["doc"]]
            assert document.name == row["source"]
            assert row["choices"][row["label"]] in flat(document.text)
        assert len({row["choices"][row["label"]] for row in built[name]}) == len(built[name])


def test_last_word_parts_a_sentence_of_its_source_before_its_last_word(sotu_documents, built):
    for row in built["last_word"]:
        assert re.fullmatch(r" [A-Za-z'’-]+", row["target"])
        assert row["context"] + row["target"] in flat(sotu_documents[row["doc"]].text)


def test_perplexity_passages_are_whole_sentences_of_80_to_120_words_of_their_source(sotu_documents, built):
    for row in built["perplexity"]:
        assert len(row["text"].split()) == row["words"]
        assert 80 <= row["words"] <= 120
        assert flat(row["text"]) in flat(sotu_documents[row["doc"]].text)


def test_a_small_corpus_gives_as_many_items_as_it_has(small_documents):
    rows = tasks.build(small_documents, tasks.PAIRS, items=100_000)
    assert all(tasks.FLOOR <= len(rows[name]) < 1_000 for name in tasks.PAIRS)
    assert [len(some) for some in tasks.build(small_documents, tasks.NAMES, items=25).values()][:3] == [25, 25, 25]


def test_too_little_text_is_refused_with_what_was_found(small_documents):
    scrap = type(small_documents[0])("scrap", "We have seen the nation grow again. It is so.")
    with pytest.raises(ConfigError, match=r"task 'swap': expected at least 20 items, found 1 in 1 held-out documents"):
        tasks.build([scrap], ["swap"])
    with pytest.raises(ConfigError, match="found 0 in 0 held-out documents"):
        tasks.build([], ["perplexity"])


@pytest.mark.parametrize("call", [lambda: tasks.build([], ["swop"]), lambda: tasks.lm_eval_config("swop", "x")])
def test_an_unknown_task_is_named_with_the_nearest_known_one(call):
    with pytest.raises(ConfigError, match=r"unknown task 'swop'\. Did you mean 'swap'"):
        call()


def test_items_below_one_are_refused(small_documents):
    with pytest.raises(ConfigError, match="items must be at least 1"):
        tasks.build(small_documents, ["swap"], items=0)


def test_written_rows_read_back_as_they_were(small_documents, tmp_path):
    rows = tasks.build(small_documents, tasks.NAMES, items=20)
    paths = tasks.write(rows, tmp_path)
    for name, path in paths.items():
        assert path == tmp_path / f"{name}.jsonl"
        assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == rows[name]


def test_the_lm_eval_folder_holds_each_configuration_with_an_absolute_path(small_tasks, tmp_path):
    data_folder = small_tasks["swap"].parent
    tasks.write_lm_eval_folder(data_folder, tasks.NAMES, tmp_path)
    for name in tasks.NAMES:
        config = yaml.safe_load((tmp_path / f"kdbench_{name}.yaml").read_text(encoding="utf-8"))
        assert config == tasks.lm_eval_config(name, small_tasks[name])
        assert config["dataset_kwargs"]["data_files"]["test"] == str(small_tasks[name].resolve())


def test_the_lm_eval_folder_is_refused_when_the_rows_were_not_built(tmp_path):
    with pytest.raises(ConfigError, match="found no such file; build it first"):
        tasks.write_lm_eval_folder(tmp_path, ["swap"], tmp_path / "yaml")
    assert not (tmp_path / "yaml").exists()
