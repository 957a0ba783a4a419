"""Instruction records: what is read, where it goes, which tokens are learnt, and what models write after.

python -m pytest tests/distill/test_instructions.py
"""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch

from kdbench.api import Sampling, Trajectories
from kdbench.distill import models, records
from kdbench.distill.data import load_blocks, save_blocks
from kdbench.distill.instructions import prompts, tokenise
from kdbench.distill.records import Record
from kdbench.distill.rollout import Limits, Writers, write
from kdbench.distill.source import TextSource
from kdbench.distill.teacher import read_states, write_cache
from kdbench.distill.templates import Form
from kdbench.errors import ConfigError
from kdbench.suite.instructions import Instructions
from tests.distill.tokenizers_of import KINDS, tokenizer

COLUMNS = {"instruction": "instruction", "input": "input", "response": "output"}
SOME = [
    Record("Name three colours.", "", "Red, green and blue."),
    Record("Repeat the word.", "rainbow", "rainbow"),
    Record("What is good?", "", "A response that completes the task\n\nand ends."),
]
TEMPLATES = ["alpaca", "vicuna", {"prompt": "Q: {instruction} {input}\nA:", "prompt_with_input": None}]
CASES = [(kind, template) for kind in KINDS for template in TEMPLATES] + [("chatml", "chat")]
each_case = pytest.mark.parametrize(("kind", "template"), CASES, ids=lambda value: str(value)[:12])


def row(instruction="Do it.", response="Done.", **more):
    return {"instruction": instruction, "output": response} | more


def many(count: int) -> list[dict[str, str]]:
    return [row(f"Say the number {n}.", f"It is {n}.") for n in range(count)]


def spec(tmp_path, rows, name="records.json", **settings) -> dict:
    text = json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
    (tmp_path / name).write_text(text, encoding="utf-8")
    return Instructions.model_validate({"file": name} | settings).model_dump()


# --- which tokens are learnt ------------------------------------------------------------------------------------------


@each_case
def test_a_row_is_the_prompt_as_asked_then_the_response_then_eos_which_alone_are_targets(kind, template):
    known, record = tokenizer(kind), SOME[1]
    blocks, _ = tokenise([record], known, template, 256)
    ids, mask = blocks.ids[0].tolist(), blocks.mask[0].tolist()
    begin, end = mask.index(True), len(mask) - mask[::-1].index(True)
    asked = known.encode(Form(template, known).prompt(record), add_special_tokens=template != "chat")
    assert ids[:begin] == asked and begin == int(blocks.prompt[0, 0])
    assert all(mask[begin:end]) and not any(mask[end:])
    assert known.decode(ids[begin : end - 1]).strip() == record.response
    assert ids[end - 1] == known.eos_token_id


@each_case
def test_special_tokens_stand_where_they_belong_and_once(kind, template):
    known = tokenizer(kind)
    blocks, _ = tokenise(SOME, known, template, 256)
    for ids, mask, (prompt, special) in zip(blocks.ids, blocks.mask, blocks.prompt.tolist(), strict=True):
        end = prompt + int(mask.sum())
        assert (ids[prompt : end - 1] != known.eos_token_id).all()  # EOS ends the response and nothing before it
        assert special == (1 if kind in ("opt", "llama") else 0)
        if special:
            assert ids[0] == known.bos_token_id and (ids[1:prompt] != known.bos_token_id).all()
        if template == "chat":
            assert ids[:prompt].tolist().count(known.convert_tokens_to_ids("<|im_start|>")) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_eos_is_learnt_and_padding_never_is_also_where_they_are_one_id(kind):
    known = tokenizer(kind)
    blocks, _ = tokenise(SOME, known, "alpaca", 256)
    targets = blocks.ids[blocks.mask].tolist()
    assert targets.count(known.eos_token_id) == len(SOME)
    answers = sum(len(known.encode(one.response, add_special_tokens=False)) for one in SOME)
    assert abs(len(targets) - len(SOME) - answers) <= len(SOME)  # a dummy space more or less a record
    assert not blocks.mask[:, 0].any()


def test_where_prompt_and_response_would_share_a_token_the_prompt_keeps_its_own():
    known = tokenizer("neox")
    joined = next(
        (a, b) for a, b in [("in", "st"), ("re", "s"), ("Re", "s"), ("a", "n"), ("o", "n")]
        if known.encode(a + b)[: len(known.encode(a))] != known.encode(a)
    )  # fmt: skip
    template = {"prompt": "{instruction}", "prompt_with_input": None}
    blocks, counts = tokenise([Record(joined[0], "", joined[1])], known, template, 16)
    prompt = int(blocks.prompt[0, 0])
    assert counts["boundary"] == 1
    assert blocks.ids[0, :prompt].tolist() == known.encode(joined[0])
    assert known.decode(blocks.ids[0][blocks.mask[0]][:-1]) == joined[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_too_long_loses_its_beginning_but_not_bos_and_the_response_stays_whole(kind):
    known, length = tokenizer(kind), 48
    long = Record("word " * 200 + "end of the prompt", "", "blue")
    blocks, counts = tokenise([long], known, "alpaca", length)
    prompt, special = blocks.prompt[0].tolist()
    asked = known.encode(Form("alpaca", known).prompt(long))
    assert counts["prompts_cut"] == 1 and counts["responses_cut"] == 0
    assert blocks.ids[0, :special].tolist() == asked[:special]
    assert blocks.ids[0, special:prompt].tolist() == asked[len(asked) - (prompt - special) :]
    assert known.decode(blocks.ids[0][blocks.mask[0]][:-1]).strip() == "blue"
    assert prompt + int(blocks.mask.sum()) == length


def test_a_response_longer_than_a_row_is_cut_and_its_cut_is_not_learnt_as_its_end():
    known = tokenizer("opt")
    blocks, counts = tokenise([Record("Name it.", "", "blue " * 300)], known, "alpaca", 64)
    assert counts["responses_cut"] == 1
    assert int(blocks.prompt[0, 0]) == 32 and blocks.mask[0, 32:].all()
    assert known.eos_token_id not in blocks.ids[0][blocks.mask[0]]


def test_a_record_that_spells_a_special_token_is_dropped_and_counted():
    known = tokenizer("opt")
    tricks = [Record("Stop</s>now", "", "no"), Record("Say it.", "", "an </s> end"), SOME[0]]
    blocks, counts = tokenise(tricks, known, "alpaca", 128)
    assert len(blocks) == 1 and counts["special_tokens"] == 2


def test_text_that_looks_like_a_place_of_the_template_is_left_as_it_is():
    form = Form({"prompt": "{instruction}|{input}", "prompt_with_input": None}, tokenizer("opt"))
    assert form.prompt(Record("a {input} b", "{instruction}", "")) == "a {input} b|{instruction}"


def test_packed_rows_hold_whole_records_that_do_not_see_each_other():
    known = tokenizer("neox")
    alone, _ = tokenise(SOME * 3, known, "alpaca", 256)
    packed, _ = tokenise(SOME * 3, known, "alpaca", 256, pack=True)
    assert len(packed) < len(alone) and int(packed.mask.sum()) == int(alone.mask.sum())
    for number in range(len(packed)):
        starts = (packed.positions[number] == 0).nonzero().flatten().tolist()
        for begin, end in pairwise([*starts, packed.length]):
            part = packed.mask[number, begin:end]
            assert not part[0]
            if part.any():
                assert packed.ids[number, begin:end][part][-1] == known.eos_token_id


def test_the_teachers_cache_holds_response_positions_alone(tmp_path):
    from safetensors.torch import load_file

    known = tokenizer("opt")
    blocks, _ = tokenise(SOME, known, "alpaca", 160)
    teacher = model(known)
    write_cache(
        tmp_path, blocks, lambda part, *_: read_states(teacher, part, len(known), "float32", torch.float32),
        lambda *_: None,
    )  # fmt: skip
    shard = load_file(tmp_path / "shard-000000.safetensors")
    assert len(shard["hidden"]) == len(shard["log_prob_target"]) == int(blocks.mask.sum())
    assert shard["offsets"].diff().tolist() == blocks.mask.sum(1).tolist()


# --- what models write after ------------------------------------------------------------------------------------------


def model(known, architecture="opt"):
    init = {"architecture": architecture, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    extra = {"opt": {"ffn_dim": 32}, "gpt_neox": {"intermediate_size": 32}, "llama": {"intermediate_size": 32}}
    ids = (known.eos_token_id, known.eos_token_id)
    config = models.architecture_config(init | extra[architecture], len(known), 160, ids, dropout=False)
    return models.make(config, 1).eval()


def limits(known, prompt=80, new=12):
    pad = known.eos_token_id if known.pad_token_id is None else known.pad_token_id
    return Limits(prompt, new, 160, eos=known.eos_token_id, pad=pad, vocabulary=len(known))


@pytest.mark.parametrize(("kind", "architecture"), [("opt", "opt"), ("neox", "gpt_neox"), ("llama", "llama")])
def test_text_after_prompts_of_many_lengths_is_the_text_after_each_alone(kind, architecture):
    known = tokenizer(kind)
    varied = [*SOME, Record("word " * 100, "", "long"), Record("x", "", "short")]
    blocks, _ = tokenise(varied, known, {"prompt": "{instruction}{input}:", "prompt_with_input": None}, 160)
    given = prompts(blocks, limits(known))
    assert len({len(prompt) for prompt in given}) > 3
    writers = Writers(model(known, architecture), None, "float32")
    greedy = Sampling("student", greedy=True)
    together, _ = write(greedy, writers, given, limits(known), 0)
    for number, prompt in enumerate(given):
        alone, _ = write(greedy, writers, [prompt], limits(known), 0)
        assert torch.equal(alone.ids[0], together.ids[number]) and torch.equal(alone.mask[0], together.mask[number])


def test_what_is_written_after_is_the_records_own_prompt_and_a_long_one_keeps_bos():
    known = tokenizer("opt")
    blocks, _ = tokenise(SOME, known, "alpaca", 160)
    for ids, mask, prompt in zip(blocks.ids, blocks.mask, prompts(blocks, limits(known, 160)), strict=True):
        assert torch.equal(prompt, ids[: int(mask.float().argmax())].long())
    for whole, cut in zip(prompts(blocks, limits(known, 160)), prompts(blocks, limits(known, 9)), strict=True):
        assert cut.tolist() == [known.bos_token_id, *whole[-8:].tolist()]


def test_a_rollout_of_a_batch_continues_the_batchs_own_records(tmp_path):
    known = tokenizer("opt")
    blocks, _ = tokenise(SOME, known, "alpaca", 160)
    save_blocks(blocks, tmp_path / "rows.safetensors")
    stored = load_blocks(tmp_path / "rows.safetensors")
    writers = Writers(model(known), None, "float32")
    source = TextSource(stored, 0, 3, limits=limits(known))
    source.write = lambda sampling, given, seed: write(sampling, writers, given, limits(known), seed)
    text = source.text(0, Trajectories(rollout=Sampling("student"), chance=1.0))
    for number, row_ in enumerate(source.corpus_rows(0).tolist()):
        given = prompts(blocks.select(torch.tensor([row_])), limits(known))[0]
        assert torch.equal(text.blocks.ids[number, : len(given)].long(), given)
        assert not text.blocks.mask[number, : len(given)].any() and text.blocks.mask[number, len(given)]


# --- templates that cannot be used ------------------------------------------------------------------------------------


def test_a_chat_template_that_is_missing_or_ends_a_turn_otherwise_is_refused():
    import copy

    with pytest.raises(ConfigError, match="no chat template"):
        Form("chat", tokenizer("opt"))
    other = copy.deepcopy(tokenizer("chatml"))
    other.eos_token = "<|endoftext|>"
    with pytest.raises(ConfigError, match=r"ends with EOS .*set the tokenizer's eos_token"):
        Form("chat", other)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"prompt": "no place"}, "expected {instruction} in it"),
        ({"prompt": "{instructon}"}, "Did you mean 'instruction'"),
        ({"prompt": "{instruction}", "prompt_with_input": "{instruction}"}, "expected {input} in it"),
    ],
)
def test_a_template_without_its_places_is_refused(template, message):
    with pytest.raises(ValueError, match=message):
        Instructions.model_validate({"file": "a.json", "template": template})


# --- reading and splitting --------------------------------------------------------------------------------------------


def test_what_cannot_be_learnt_from_is_dropped_and_counted():
    rows = [
        row(),
        row("Do it."),
        row(response=" "),
        row(instruction=""),
        row(response=None),
        "text",
        row("Do it \ud83d."),
        row("do  IT.", "No."),
    ]
    kept, counts = records.clean(rows, COLUMNS)
    assert [one.response for one in kept] == ["Done.", "No."]
    assert counts == {
        "read": 8, "duplicate": 1, "no_response": 1, "no_instruction": 1, "incomplete": 3, "same_prompt": 1
    }  # fmt: skip


def test_the_same_prompt_never_stands_on_two_sides_of_a_split(tmp_path):
    rows = [row(f"Say the number {n}.", f"{word} {n}.") for n in range(60) for word in ("One", "two", "three")]
    rows += [row(f"say THE  number {n}.", "other") for n in range(60)]
    found = records.load(spec(tmp_path, rows, dev=0.2, test=0.2), tmp_path)
    sides = {name: {one.prompt_key for one in members} for name, members in found.splits.items()}
    assert sum(map(len, sides.values())) == 60 == len(set().union(*sides.values()))
    assert all(sides.values())


def test_no_record_moves_to_another_split_when_others_come(tmp_path):
    few = records.load(spec(tmp_path, many(100), dev=0.1, test=0.1), tmp_path)
    more = records.load(spec(tmp_path, [*reversed(many(300))], "m.jsonl", dev=0.1, test=0.1), tmp_path)
    for name, members in few.splits.items():
        assert {one.instruction for one in members} <= {one.instruction for one in more.splits[name]}
    assert 15 < len(more.splits["test"]) < 50


def test_json_lines_and_parquet_hold_the_same_records(tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(many(80)), tmp_path / "r.parquet")
    shares = {"dev": 0.1, "test": 0.1}
    found = [records.load(spec(tmp_path, many(80), name, **shares), tmp_path) for name in ("r.json", "r.jsonl")]
    as_parquet = Instructions.model_validate({"file": "r.parquet"} | shares).model_dump()
    found.append(records.load(as_parquet, tmp_path))
    assert found[0] == found[1] == found[2]
    assert len({records.fingerprint(as_parquet, one) for one in found}) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"file": "none.json"}, "no such file"),
        ({"file": "r.json", "fields": {"response": "outptu"}}, "fields.response: .*Did you mean 'output'"),
        ({"file": "r.csv"}, "expected a file ending in .json, .jsonl, .parquet"),
        ({"file": "few.json"}, "nothing is left for .*raise the shares"),
        ({"file": "map.json"}, "expected a list of records"),
        ({"file": "broken.json"}, "cannot be read"),
        ({"file": "broken.parquet"}, "cannot be read"),
        ({"package": "no_such_package", "files": "*.json"}, "data.instructions: the Python package .* not installed"),
    ],
)
def test_a_source_that_cannot_be_used_says_why(tmp_path, settings, message):
    (tmp_path / "r.json").write_text(json.dumps(many(300)))
    (tmp_path / "few.json").write_text(json.dumps(many(3)))
    (tmp_path / "map.json").write_text("{}")
    for name in ("broken.json", "broken.parquet"):
        (tmp_path / name).write_text("[")
    with pytest.raises(ConfigError, match=message):
        records.load(Instructions.model_validate(settings).model_dump(), tmp_path)


def test_a_hub_data_set_is_planned_by_its_commit_and_read_only_when_it_is_there(tmp_path):
    hub = {"id": "someone/records", "revision": "0" * 40}
    about = Instructions.model_validate({"hub": hub}).model_dump()
    other = Instructions.model_validate({"hub": hub | {"revision": "1" * 40}}).model_dump()
    assert records.fingerprint(about, None) != records.fingerprint(other, None)
    with pytest.raises(ConfigError, match=r"data.instructions.hub: someone/records at 0000.* cannot be loaded"):
        records.load(about, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected one of `hub`, `file` and `package`, found none"),
        ({"file": "a.json", "package": "b", "files": "*"}, "found file and package"),
        ({"hub": {"id": "a/b", "revision": "main"}}, "revision"),
        ({"package": "b"}, "go together"),
        ({"package": "b", "files": "../x"}, "without '..'"),
    ],
)
def test_a_source_is_named_once_and_a_hub_one_by_a_commit(settings, message):
    with pytest.raises(ValueError, match=message):
        Instructions.model_validate(settings)
