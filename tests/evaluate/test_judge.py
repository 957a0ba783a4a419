"""A model as judge: both orders, no favour for a place, one clear error for what cannot judge.

python -m pytest tests/evaluate/test_judge.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from kdbench.distill import facts, models
from kdbench.errors import ConfigError
from kdbench.evaluate import judged_tasks
from kdbench.evaluate.judge import Judge, Judgement, Pair, check, fingerprint, judge_all
from kdbench.evaluate.judged_tasks import Asked
from kdbench.evaluate.lm_eval_tasks import Wanted
from kdbench.suite import judging
from tests.distill.saved import FAMILIES
from tests.distill.tokenizers_of import tokenizer as words_of
from tests.evaluate.test_lm_eval_tasks import a_model, write_rows

PAIRS = [
    Pair("Name a colour.", "Red, green and blue.", "It is good."),
    Pair("What is {it}?", "A task {answer_b} of input.", "The rainbow of three colours, and of an instruction."),
    Pair("Why?", "", "A curious user."),
]


def saved(folder: Path, kind: str = "neox", always: str = "", **changes) -> Path:
    """Save a tiny judge; with `always` its likeliest next letter is that one, whatever it reads."""
    words = words_of(kind)
    family = FAMILIES["pythia"] | {"vocab_size": len(words), "max_position_embeddings": 2048, "initializer_range": 0.4}
    model = models.make(facts.declared(family | changes), seed=3)
    if always:
        with torch.no_grad():
            norm, head = model.base_model.final_layer_norm, model.get_output_embeddings().weight
            norm.weight.zero_()
            norm.bias.copy_(torch.eye(len(norm.bias))[0])
            head.zero_()
            for token in words(always, add_special_tokens=False)["input_ids"]:
                head[token, 0] = 5.0
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def opinion(tmp_path_factory) -> Judge:
    """A judge of random weights: its opinions mean nothing, and depend on what it reads."""
    return Judge(saved(tmp_path_factory.mktemp("opinion")), judging.TEMPLATE)


@pytest.fixture(scope="module")
def partial(tmp_path_factory) -> Judge:
    """A judge that always says A."""
    return Judge(saved(tmp_path_factory.mktemp("partial"), always="A"), judging.TEMPLATE)


def ask(judge: Judge, pairs=PAIRS, batch_size: int = 4) -> list[Judgement]:
    return judge_all(judge, pairs, device="cpu", batch_size=batch_size)


def test_answer_and_reference_exchanged_give_mirrored_probabilities_and_scores(opinion):
    one = ask(opinion)
    other = ask(opinion, [Pair(pair.question, pair.reference, pair.answer) for pair in PAIRS])
    for mine, swapped in zip(one, other, strict=True):
        assert mine.as_a == pytest.approx(1 - swapped.as_b, abs=1e-6)
        assert mine.as_b == pytest.approx(1 - swapped.as_a, abs=1e-6)
        assert mine.score == 1 - swapped.score and mine.flipped == swapped.flipped
    assert len({round(found.as_a, 6) for found in one}) == 3, "it reads the texts"


def test_the_probability_is_that_of_the_letters_alone_after_the_documented_prompt(opinion):
    model, words = models.load(opinion.folder, models.Runtime("cpu", "float32", 1)), words_of("neox")
    pair = PAIRS[1]
    (found,) = ask(opinion, [pair])

    def log_likelihood(prompt: str, letter: str) -> float:
        context, whole = (words(text)["input_ids"] for text in (prompt, prompt + letter))
        with torch.no_grad():
            logs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        return sum(float(logs[at - 1, whole[at]]) for at in range(len(context), len(whole)))

    for order, mine in (((pair.answer, pair.reference), found.as_a), ((pair.reference, pair.answer), 1 - found.as_b)):
        prompt = judging.filled(judging.TEMPLATE, pair.question, *order)
        assert "{it}" in prompt and "{answer_b} of input" in prompt, "braces of a text are left alone"
        scores = torch.tensor([log_likelihood(prompt, letter) for letter in (" A", " B")])
        assert mine == pytest.approx(float(scores.softmax(0)[0]), abs=1e-5)


def test_a_judge_that_always_says_a_finds_ties_only(partial):
    found = ask(partial)
    assert all(one.as_a > 0.9 and one.as_b < 0.1 for one in found)
    assert [(one.score, one.flipped) for one in found] == [(0.5, True)] * 3


@pytest.mark.parametrize(
    ("as_a", "as_b", "score", "flipped"),
    [(0.9, 0.6, 1, False), (0.4, 0.1, 0, False), (0.9, 0.1, 0.5, True), (0.1, 0.9, 0.5, True), (0.5, 0.9, 0.5, False)],
)
def test_only_a_verdict_that_holds_in_both_orders_counts(as_a, as_b, score, flipped):
    assert (Judgement(as_a, as_b).score, Judgement(as_a, as_b).flipped) == (score, flipped)


def test_what_is_asked_together_changes_nothing(opinion):
    together, alone = ask(opinion), [ask(opinion, [pair], 1)[0] for pair in PAIRS]
    for one, other in zip(together, alone, strict=True):
        assert one.as_a == pytest.approx(other.as_a, abs=1e-5) and one.as_b == pytest.approx(other.as_b, abs=1e-5)


def test_answers_too_long_for_the_judge_are_cut_alike_in_both_orders_and_that_is_said(tmp_path):
    judge = Judge(saved(tmp_path / "short", max_position_embeddings=160), judging.TEMPLATE)
    long = Pair("Name a colour.", "Red, green and blue. " * 40, "It is good.")
    (found,), (swapped,) = ask(judge, [long]), ask(judge, [Pair(long.question, long.reference, long.answer)])
    assert found.cut and swapped.cut and found.as_a == pytest.approx(1 - swapped.as_b, abs=1e-6)
    assert not ask(judge, PAIRS[:1])[0].cut
    with pytest.raises(ConfigError, match=r"reads 160 tokens, and a question leaves no room for two answers: 'Why"):
        ask(judge, [Pair("Why? " * 200, "Yes.", "No.")])


def test_a_chat_judge_is_asked_through_its_own_template_and_one_without_it_is_refused(tmp_path, opinion):
    judge = Judge(saved(tmp_path / "chat", kind="chatml"), judging.TEMPLATE, chat=True)
    plain = Judge(judge.folder, judging.TEMPLATE)
    check(judge)
    assert ask(judge)[0].as_a != pytest.approx(ask(plain)[0].as_a, abs=1e-6)
    with pytest.raises(ConfigError, match="has no chat template; leave out `chat`"):
        check(Judge(opinion.folder, judging.TEMPLATE, chat=True))


def test_a_folder_that_cannot_judge_is_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match=r"expected a model folder with config\.json, found none at"):
        check(Judge(tmp_path / "none", judging.TEMPLATE))
    folder = saved(tmp_path / "mute")
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(ConfigError, match="expected a saved tokenizer"):
        check(Judge(folder, judging.TEMPLATE))


def test_a_judge_is_known_by_weights_and_tokenizer(tmp_path):
    folder = saved(tmp_path / "judge")
    before = fingerprint(folder)
    assert fingerprint(saved(tmp_path / "again")) == before
    words_of("opt").save_pretrained(folder)
    assert fingerprint(folder) != before


# --- judged tasks -----------------------------------------------------------------------------------------------------

TASK = {
    "task": "follow",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "test.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "Q: {{instruction}}\nA:",
    "doc_to_target": "{{output}}",
    "num_fewshot": 0,
    "generation_kwargs": {"until": ["."], "max_gen_toks": 6, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture
def tasks(tmp_path, monkeypatch) -> Path:
    """A task whose answers are written, and one whose answers are chosen."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tasks"
    write_rows(folder / "test.jsonl", [{"instruction": f"Say {n}.", "output": f"It is {n}"} for n in range(5)])
    chosen = TASK | {"task": "chosen", "output_type": "multiple_choice", "doc_to_choice": "{{['a', 'b']}}"}
    for task in (TASK, chosen | {"doc_to_target": 0, "metric_list": [{"metric": "acc"}]}):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    return folder


def test_a_judged_task_is_compared_by_the_judge_and_keeps_its_own_metrics(tokenizer, tasks, partial, opinion):
    model = a_model(tokenizer)
    plain, nothing = judged_tasks.examine(model, tokenizer, [Asked(Wanted("follow", tasks))], batch_size=4)
    found, told = judged_tasks.examine(model, tokenizer, [Asked(Wanted("follow", tasks), partial)], batch_size=4)
    assert not nothing and {item["metric"] for item in found.items if item["primary"]} == {"judge"}
    assert found.metrics["follow/score"] == found.metrics["follow/judge"] == 0.5
    assert found.metrics["follow/judge_flip"] == 1 and found.metrics["follow/judge_cut"] == 0
    assert found.metrics["follow/exact_match"] == plain.metrics["follow/exact_match"]
    mine = [item["item_hash"] for item in found.items if item["primary"]]
    assert mine == [item["item_hash"] for item in plain.items], "items pair with those of every other arm"
    assert [row["question"] for row in told] == [f"Say {n}." for n in range(5)]
    assert [row["reference"] for row in told] == [f"It is {n}" for n in range(5)]
    own = Asked(Wanted("follow", tasks, metric="exact_match"), opinion)
    chosen, _ = judged_tasks.examine(model, tokenizer, [own], batch_size=4)
    assert {item["metric"] for item in chosen.items if item["primary"]} == {"exact_match"}


def test_a_task_without_written_answers_cannot_be_judged(tokenizer, tasks, partial):
    with pytest.raises(ConfigError, match=r"'chosen': judge: expected a task whose answers are written"):
        judged_tasks.check([Asked(Wanted("chosen", tasks), partial)])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "expected either `path`"),
        (
            {"path": "judge", "template": "Which? {question} {answer_a}"},
            r"expected \{answer_b\} once, found it 0 times",
        ),
        ({"path": "judge", "template": judging.TEMPLATE + " "}, "expected no space at its end"),
        ({"path": "judge", "dtype": "float16"}, "float32"),
    ],
)
def test_a_judge_that_is_not_well_described_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        judging.Judge.model_validate(spec)
