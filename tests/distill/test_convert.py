"""Pickled checkpoints become safetensors, and nothing that a pickle says is ever run.

python -m pytest tests/distill/test_convert.py
"""

from __future__ import annotations

import json
import pickle

import pytest
import torch

from kdbench.distill import models
from kdbench.distill.convert import convert
from kdbench.errors import ConfigError, StoreError
from tests.conftest import call
from tests.distill.saved import FAMILIES, made, save_pickled


@pytest.mark.parametrize("family", FAMILIES)
def test_the_converted_model_is_the_pickled_one_tied_weights_and_all(family, tmp_path):
    model = made(family)
    found = convert(save_pickled(model, tmp_path / "old"), tmp_path / "new")
    again = models.load(tmp_path / "new", models.Runtime("cpu", "float32", 1))
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert found.parameters == models.parameters(model.config)
    assert not list((tmp_path / "new").glob("*.bin"))


def test_shards_without_the_models_prefix_and_in_half_precision_keep_their_numbers(tmp_path):
    model = made("opt").half()  # as facebook/opt-* are: float16, names from `decoder.`, no lm_head
    folder = save_pickled(model, tmp_path / "old")
    (folder / "pytorch_model.bin").unlink()
    state = {n.removeprefix("model."): t for n, t in model.state_dict().items() if n != "lm_head.weight"}
    names, parts = sorted(state), {}
    for number, some in enumerate((names[::2], names[1::2]), 1):
        shard = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: state[name] for name in some}, folder / shard)
        parts |= dict.fromkeys(some, shard)
    index = {"metadata": {}, "weight_map": parts}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    convert(folder, tmp_path / "new")
    again = models.load(tmp_path / "new", models.Runtime("cpu", "float32", 1), torch.float16)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


class Bomb:
    """Would make a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.fault("H6", "a pickle that would run code, given to convert")
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    folder, mark = save_pickled(made("opt"), tmp_path / "old"), tmp_path / "mark"
    torch.save({"weight": Bomb(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be read as tensors only"):
        convert(folder, tmp_path / "new")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ConfigError, match="cannot be read as tensors only"):
        convert(folder, tmp_path / "new")
    assert not mark.exists() and not (tmp_path / "new").exists()


@pytest.mark.fault("H6", "a model that needs code of its own, given to convert")
def test_a_model_that_needs_code_of_its_own_is_refused(tmp_path):
    folder = save_pickled(made("opt"), tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "own.Model"}}))
    with pytest.raises(ConfigError, match=r"needs code of its own \(own.Model\)"):
        convert(folder, tmp_path / "new")


@pytest.mark.parametrize(("content", "words"), [
    ("[]", "expected an object"), ('{"auto_map": ["own.Model"]}', "needs code of its own"),
    ('{"auto_map": {"AutoTokenizer": ["own.Tokenizer", null], "AutoModel": "own.Model"}}', "needs code of its own"),
])  # fmt: skip
def test_a_config_of_another_shape_is_refused(content, words, tmp_path):
    folder = save_pickled(made("opt"), tmp_path / "old")
    (folder / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=words):
        convert(folder, tmp_path / "new")


@pytest.mark.fault("C1", "a disk that is full while a converted model is written")
def test_a_disk_that_is_full_for_a_converted_model_is_one_error(tmp_path, monkeypatch):
    from transformers import PreTrainedModel

    def full(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(StoreError, match=r"cannot write the model to .*No space left on device"):
        convert(save_pickled(made("opt"), tmp_path / "old"), tmp_path / "new")


def test_a_missing_tensor_and_a_missing_shard_are_named(tmp_path):
    model = made("llama")
    folder = save_pickled(model, tmp_path / "old")
    state = model.state_dict()
    del state["model.norm.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"found none for \['model.norm.weight'\]"):
        convert(folder, tmp_path / "new")
    index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="found some missing"):
        convert(folder, tmp_path / "new")


def test_the_command_says_what_it_made_and_overwrites_nothing(tmp_path):
    folder = save_pickled(made("pythia"), tmp_path / "old")
    (folder / "tokenizer_config.json").write_text("{}")
    done = call("convert", folder, tmp_path / "new")
    assert done.exit_code == 0, done.output
    assert "parameters, equal to the pickle's" in done.stdout
    assert (tmp_path / "new" / "tokenizer_config.json").is_file()
    again = call("convert", folder, tmp_path / "new")
    assert again.exit_code == 2 and "expected an empty or absent folder" in again.output
