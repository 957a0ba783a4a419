"""Odd values where a plan looks: paths, globs, packages, sizes of models. Planned or refused, in one clear sentence.

python -m pytest tests/fuzz/test_planned.py
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.conftest import SUITE, sentences
from tests.fuzz import LEAVES, ends_well, fuzzed

NUL, HALF, LARGE = r'"a\0b"', r'"\ud800"', 9223372036854775806
RECORDS = "data={{instructions: {{%s}}, tokenizer: {{bpe: 320}}, length: 32}}"
PATHS = (
    "data.corpus.folder={}",
    RECORDS % "file: {}",
    "data.tokenizer={{path: {}}}",
    "models.small={{path: {}}}",
    "models.small={{gguf: {{file: {}}}}}",
    "arms=[{{external: {{label: x, path: {}}}}}]",
    "examine.lm_eval=[{{task: own, path: {}}}]",
    "examine.lm_eval=[{{task: piqa, judge: {{path: {}}}}}]",
)
GLOBS = (
    "data.corpus.files={}",
    RECORDS % "package: numpy, files: {}",
    "models.small={{gguf: {{package: numpy, file: {}}}}}",
)
PACKAGES = (
    "data.corpus={{package: {}}}",
    RECORDS % "package: {}, files: '*'",
    "models.small={{gguf: {{package: {}, file: '*'}}}}",
)
SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim", "vocab_size", "max_position_embeddings",
    "word_embed_proj_dim", "dropout", "attention_dropout", "layerdrop", "pad_token_id", "bos_token_id", "eos_token_id",
    "activation_function", "init_std", "dtype", "do_layer_norm_before",
)  # fmt: skip


def planned(folder: Path, change: str) -> Any:
    """Plan a tiny suite with one change, from the command line; nothing may be written."""
    path, corpus = folder / "tiny.yaml", folder / "corpus"
    if not corpus.exists():
        corpus.mkdir()
        for number in range(20):
            (corpus / f"{number:02d}.txt").write_text(sentences(random.Random(number), 60))
        path.write_text(SUITE.format(corpus=corpus))
    shown = ends_well("plan", path, "--set", change, "--results-dir", folder / "results")
    assert {one.name for one in folder.iterdir()} == {"corpus", "tiny.yaml"}
    return shown


def test_the_suite_that_is_changed_here_can_be_planned(tmp_path):
    assert planned(tmp_path, "seeds=[0]").exit_code == 0


@pytest.mark.fault("H1", "a pipe and a folder in the place of records: refused, not waited for")
@pytest.mark.parametrize("what", ["pipe", "folder"])
@pytest.mark.parametrize("ending", ["json", "parquet"])
def test_what_is_no_file_of_records_is_refused(ending, what, tmp_path):
    path, folder = tmp_path / f"records.{ending}", tmp_path / "suite"
    folder.mkdir()
    os.mkfifo(path) if what == "pipe" else path.mkdir()
    shown = planned(folder, PATHS[1].format(path))
    assert shown.exit_code == 2 and f"expected a file of records at {path}, found something else" in shown.stderr


@pytest.mark.fault("H8", "a loop of links in the place of a suite's folders and models")
@pytest.mark.parametrize("setting", [PATHS[0], PATHS[2], PATHS[3]])
def test_a_loop_of_links_is_one_error(setting, tmp_path):
    loop, folder = tmp_path / "loop", tmp_path / "suite"
    loop.symlink_to(loop)
    folder.mkdir()
    shown = planned(folder, setting.format(loop))
    assert shown.exit_code == 2 and str(loop) in shown.stderr


@pytest.mark.fault("H1", "NUL, globs that are none, Python's own modules: in every path, glob and package of a suite")
@pytest.mark.parametrize(
    ("change", "message"),
    [(place.format(NUL), "expected text without NUL") for place in (*PATHS, *GLOBS, *PACKAGES)]
    + [(place.format("'**.txt'"), "expected `**` to stand alone") for place in GLOBS]
    + [(place.format("''"), "glob such as '*.txt', found ''") for place in GLOBS[:2]]
    + [(PATHS[1].format("''"), "at least 1 character, found ''")]
    + [(place.format("'./.'"), "glob such as '*.txt', found './.'") for place in GLOBS]
    + [(place.format("../*"), "without '..' or a leading '/'") for place in GLOBS]
    + [(place.format("''"), "name of an installed package, found ''") for place in PACKAGES]
    + [(place.format("__main__"), "name of an installed package, found '__main__'") for place in PACKAGES]
    + [
        (f"objectives=[sft, {{name: kl, label: {HALF}}}]", "halves of characters, found '\\ud800'"),
        (f"question={HALF}", "halves of characters"),
        (f"models.small.init.activation_function={HALF}", "halves of characters"),
        (f"models={{{HALF}: 1}}", "halves of characters"),
    ],
)
def test_a_text_that_names_nothing_is_refused_by_plan(change, message, tmp_path):
    shown = planned(tmp_path, change)
    assert shown.exit_code == 2 and message in shown.stderr


@pytest.mark.fault("H1", "a model to be made with sizes, chances and tokens that it cannot have")
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_size", -16, "hidden_size from 1 to 1,000,000, found -16"),
        ("hidden_size", LARGE, f"hidden_size from 1 to 1,000,000, found {LARGE}"),
        ("ffn_dim", -5, "negative dimension -5"),
        ("num_attention_heads", 0, "opt cannot be made"),
        ("num_attention_heads", -2, "num_attention_heads from 0 to 1,000, found -2"),
        ("num_hidden_layers", -3, "num_hidden_layers from 1 to 1,000, found -3"),
        ("num_hidden_layers", 0, "num_hidden_layers from 1 to 1,000, found 0"),
        ("num_hidden_layers", 1_000_000_000, "num_hidden_layers from 1 to 1,000, found 1000000000"),
        ("dropout", -1, "dropout from 0 to 1, found -1"),
        ("max_position_embeddings", 16, "max_position_embeddings: expected at least data.length = 32, found 16"),
        ("vocab_size", 100, "vocab_size: expected at least 320, the tokenizer's entries, found 100"),
        ("pad_token_id", -5, "pad_token_id: expected an entry of the tokenizer, 0 to 319, found -5"),
        ("eos_token_id", 320, "eos_token_id: expected an entry of the tokenizer, 0 to 319, found 320"),
    ],
)
@pytest.mark.parametrize("name", ["small", "big"])
def test_a_model_that_cannot_be_made_or_trained_is_refused_by_plan(name, field, value, message, tmp_path):
    shown = planned(tmp_path, f"models.{name}.init.{field}={value}")
    assert shown.exit_code == 2 and f"models.{name}: " in shown.stderr and message in shown.stderr


@pytest.mark.fault("H1", "a student whose first step would fail: refused by plan, with what it said")
def test_a_student_that_cannot_take_a_step_is_refused_by_plan(tmp_path):
    llama = "{architecture: llama, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, head_dim: 3}"
    shown = planned(tmp_path, f"models.small.init={llama}")
    assert shown.exit_code == 2 and "models.small: expected a model that trains on rows of data.length" in shown.stderr


@pytest.mark.fault("H1", "settings under which no cell could end, or nothing be compared")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.betas=[2.0, -1.0]", "train.betas.1: expected greater than or equal to 0, found -1.0"),
        ("train.betas=[1.0, 1.0]", "train.betas.0: expected less than 1, found 1.0"),
        ("compare.tasks=[]", "compare.tasks: expected a task to compare by, found none"),
        ("compare.contrasts=[[kl, kl]]", "compare.contrasts: expected two different arms, found 'kl' twice"),
    ],
)
def test_what_could_only_fail_after_hours_is_refused_by_plan(change, message, tmp_path):
    shown = planned(tmp_path, change)
    assert shown.exit_code == 2 and message in shown.stderr


@st.composite
def changes(draw: st.DrawFn) -> str:
    """An odd value in one path, glob, package or field of a model."""
    place = draw(st.sampled_from((*PATHS, *GLOBS, *PACKAGES, *(f"models.small.init.{one}={{}}" for one in SIZES))))
    odd = st.sampled_from(["**", "**x", "[", "*" * 40, ".", "./", "~", "nope", "__main__", -3, 0, 7, LARGE, 1.5])
    return place.format(json.dumps(draw(odd | LEAVES)))


@fuzzed(20, 1500, change=changes())
@pytest.mark.fault("H1", "odd values in the paths and models of a suite, planned from the command line (Hypothesis)")
def test_any_path_and_any_size_is_planned_or_refused(tmp_path, change):
    planned(tmp_path, change)
