"""Model folders and GGUF files with anything in them: a plan that refuses in one clear sentence, and ends.

python -m pytest tests/fuzz/test_models.py
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from kdbench.distill import facts, gguf_header, models
from kdbench.errors import ConfigError
from tests.distill.saved import FAMILIES
from tests.fuzz import LEAVES, ends_well, fuzzed, within

RUNTIME = models.Runtime("cpu", "float32", 1)
DEEP = "[" * 100_000


def saved(folder: Path, changes: Any = ()) -> Path:
    """Save a tiny OPT, with another config.json: changed fields, or any text."""
    if not folder.exists():
        models.make(facts.declared(FAMILIES["opt"]), 0).save_pretrained(folder)
    path = folder / "config.json"
    text = changes if isinstance(changes, str) else json.dumps(json.loads(path.read_text()) | dict(changes))
    path.write_text(text)
    return folder


@pytest.fixture
def refused(suite_file):
    """Plan a suite whose student comes from such a place; return what the refusal says."""

    def plan(source: str) -> str:
        results = suite_file.parent / "results"
        shown = ends_well("plan", suite_file, "--set", f"models.small={{{source}}}", "--results-dir", results)
        assert shown.exit_code == 2 and not results.exists()
        return shown.stderr

    return plan


@pytest.mark.fault("H1", "a saved model whose config.json is broken, of another kind, or of no size that ends")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "x"}, "cannot be read: StrictDataclassFieldValidationError"),
        ({"hidden_size": None}, "cannot be read"),
        ({"vocab_size": None}, "cannot be read"),
        ({"model_type": ["opt"]}, "cannot be read: TypeError: unhashable type"),
        ({"model_type": "llama", "rope_parameters": [1]}, "cannot be read"),
        ({"dtype": "nope"}, "cannot be read: AttributeError"),
        ("null", "cannot be read: TypeError"),
        (DEEP, "cannot be read: RecursionError"),
        ('{"model_type": "opt", "x": ' + DEEP, "cannot be read: RecursionError"),
        ('{"model_type": "clip"}', "expected a causal language model, whose config has vocab_size, found a clip"),
        ({"hidden_size": -4}, "expected hidden_size from 1 to 1,000,000, found -4"),
        ({"num_hidden_layers": 10**9}, "expected num_hidden_layers from 1 to 1,000, found 1000000000"),
        ({"vocab_size": 400, "ffn_dim": -5}, "opt cannot be made: RuntimeError"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_folder_with_a_broken_config_is_refused_by_plan(changes, message, refused, tmp_path):
    said = refused(f"path: {saved(tmp_path / 'mine', changes)}")
    assert "models.small: " in said and message in said


@pytest.mark.fault("H1", "weights that are not those of the config beside them")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ffn_dim": 64}, r"asks for \S+fc1.bias of \(64,\), its safetensors hold one of \(32,\)"),
        (
            {"vocab_size": 100},
            r"asks for \S+embed_tokens.weight of \(100, 16\), .* hold one of \(64, 16\)",
        ),
        ({"num_hidden_layers": 5}, r"asks for 16 tensors that its safetensors lack, such as \S+layers.4.fc1.bias"),
    ],
)
def test_weights_of_another_model_are_refused_by_name_and_never_drawn_at_random(changes, message, tmp_path):
    folder = saved(tmp_path / "mine", changes)
    with pytest.raises(ConfigError, match=f"the model in {folder} cannot be loaded: its config.json {message}"):
        models.load(folder, RUNTIME)


FIELDS = ("model_type", "dtype", "torch_dtype", "architectures", "auto_map", "quantization_config", *FAMILIES["opt"])
SMALL = LEAVES.filter(lambda value: not isinstance(value, int) or value < 10_000)  # memory is not what is tried


@fuzzed(25, 800, name=st.sampled_from(FIELDS), value=SMALL | st.lists(SMALL, max_size=2))
@pytest.mark.fault("H1", "a saved model whose config.json holds anything (Hypothesis)")
def test_a_folder_with_any_config_is_counted_and_loaded_or_refused(tmp_path, name, value):
    saved(tmp_path / "mine", json.dumps(facts.declared(FAMILIES["opt"]).to_dict() | {name: value}))
    for read in (models.load_config, lambda folder: models.load(folder, RUNTIME)):
        try:
            with within():
                read(tmp_path / "mine")
        except ConfigError as error:
            assert "\n" not in str(error) and str(tmp_path) in str(error)


# --- GGUF ------------------------------------------------------------------------------------------------------------


def header(*values: bytes, tensors: int = 0, count: int | None = None) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(values) if count is None else count) + b"".join(values)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def array(kind: int, count: int, inner: bytes = b"") -> bytes:
    return text("a") + struct.pack("<IIQ", 9, kind, count) + inner


NESTED = text("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 3000 + struct.pack("<IQ", 4, 0)


@pytest.mark.fault("H1", "a GGUF file whose header claims what it does not hold: refused before its reader believes it")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(array(4, 2**36)), r"claims 274,877,906,944 more bytes where \d+ are left"),
        (header(array(8, 2**36)), "its header goes beyond its end"),
        (header(array(0, 2**64 - 1)), "more bytes where 0 are left"),
        (header(NESTED), "found an array of arrays"),
        (header(count=2**63), "its header goes beyond its end"),
        (header(tensors=2**63), "its header goes beyond its end"),
        (header(text("a") + struct.pack("<I", 99)), "unknown kind of value 99"),
        (header(struct.pack("<Q", 2**60)), "more bytes where 0 are left"),
        (header(text("t") + struct.pack("<I", 2**31), tensors=1, count=0), "more bytes where 0 are left"),
    ],
    ids=["numbers", "texts", "most", "nested", "values", "tensors", "kind", "name", "dimensions"],
)
def test_a_header_that_claims_too_much_is_refused_by_plan_at_once(content, message, refused, tmp_path):
    path = tmp_path / "mine.gguf"
    path.write_bytes(content)
    with within(5), pytest.raises(ConfigError, match=f"{path} cannot be read as a GGUF file: .*{message}"):
        gguf_header.check(path)
    assert "cannot be read as a GGUF file" in refused(f"gguf: {{file: {path}}}")


@fuzzed(60, 3000, at=st.integers(0, 900), put=st.binary(max_size=12), most=st.integers(0, 3000))
@pytest.mark.fault("H1", "a GGUF file with random bytes put in and cut off (Hypothesis)")
def test_a_gguf_file_with_bytes_put_in_is_read_or_refused(tmp_path, at, put, most):
    pytest.importorskip("gguf", reason="the package gguf is not installed (extra: smollm2)")
    from kdbench.run import origins
    from kdbench.suite.materials import Model
    from tests.distill.gguf_file import tiny_llama, train_bpe, write_gguf

    whole, path = tmp_path / "whole.gguf", tmp_path / "fuzz.gguf"
    if not whole.exists():
        bpe = train_bpe(["peace at home"], 262)
        write_gguf(whole, tiny_llama(bpe.get_vocab_size()), bpe)
    content = whole.read_bytes()
    path.write_bytes(content[:at] + put + content[at + len(put) :][: None if most > 1000 else most])
    try:
        with within():
            found = origins.gguf_file(Model.model_validate({"gguf": {"file": str(path)}}), tmp_path)
            origins.gguf_tokenizer(found)
            origins.gguf_config(Model.model_validate({"gguf": {"file": str(path)}}), tmp_path)
    except ConfigError as error:
        assert str(error).strip()
