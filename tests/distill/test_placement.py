"""A teacher that is spread says the same; one in few bits says nearly the same, under another key.

python -m pytest tests/distill/test_placement.py
"""

from __future__ import annotations

import pytest
import torch

from kdbench.distill import models, placement
from kdbench.distill.placement import Form
from kdbench.distill.teacher import read_states, write_cache
from kdbench.errors import ConfigError
from kdbench.files import sha256_file
from tests.distill.saved import LLAMA, VOCABULARY, made

CPU = models.Runtime("cpu", "float32", 1)
IDS = torch.arange(2, 14)[None]
WIDE = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 128}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved Llama of four layers."""
    path = tmp_path_factory.mktemp("teacher")
    made("llama", seed=1, **WIDE).save_pretrained(path)
    return path


def read(model, blocks):
    return read_states(model, blocks, VOCABULARY, "float32", torch.float32)


def test_placement_auto_stores_the_same_bytes(folder, blocks, tmp_path):
    for name, form in (("single", placement.PLAIN), ("auto", Form(spread=True))):
        model = placement.load(folder, CPU, form)
        assert not any(parameter.requires_grad for parameter in model.parameters())
        write_cache(tmp_path / name, blocks, lambda part, model=model: read(model, part), lambda *_: None)
    names = sorted(path.name for path in (tmp_path / "single").iterdir())
    assert "shard-000000.safetensors" in names
    for name in names:
        assert sha256_file(tmp_path / "single" / name) == sha256_file(tmp_path / "auto" / name)


def test_a_teacher_whose_last_layers_and_head_lie_elsewhere_says_the_same(folder, blocks, tmp_path):
    """accelerate keeps them on the disk, and nothing of them in memory, until each is used."""
    away = {"model.layers.2": "disk", "model.layers.3": "disk", "model.norm": "disk", "lm_head": "disk"}
    here = {name: "cpu" for name in ("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1")}
    model = models.load(folder, CPU, options={"device_map": here | away, "offload_folder": str(tmp_path)})
    assert model.model.layers[3].mlp.up_proj.weight.device.type == "meta"
    assert model.get_output_embeddings().weight.device.type == "cpu"  # it was brought here, to be read by chunks
    assert torch.equal(model(IDS).logits, models.load(folder, CPU)(IDS).logits)
    found, expected = read(model, blocks), read(models.load(folder, CPU), blocks)
    assert torch.equal(found.states.hidden, expected.states.hidden)
    assert torch.equal(found.states.head, expected.states.head)
    assert torch.equal(found.log_prob_target, expected.log_prob_target)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_teacher_in_few_bits_is_smaller_and_nearly_as_good(bits, folder, blocks):
    pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed (extra: quantize)")
    model, whole = placement.load(folder, CPU, Form(bits=bits)), models.load(folder, CPU)
    assert model.model.layers[0].mlp.up_proj.weight.dtype in (torch.int8, torch.uint8)
    assert models.head(model, VOCABULARY).dtype == torch.float32
    found, expected = read(model, blocks), read(whole, blocks)
    apart = (found.log_prob_target - expected.log_prob_target).abs()
    assert 0 < apart.mean() < {"8bit": 0.02, "4bit": 0.2}[bits] * expected.log_prob_target.abs().mean()
    assert torch.equal(found.states.head, expected.states.head)


@pytest.mark.parametrize("bits", [None, "8bit", "4bit"])
def test_a_budget_counts_the_bytes_that_the_weights_take(bits, folder):
    from kdbench.run.budget import size_of
    from kdbench.suite import footprint

    if bits:
        pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed (extra: quantize)")
    model = placement.load(folder, CPU, Form(bits=bits))
    said = footprint.frozen(size_of(model.config), LLAMA["vocab_size"], bits)
    scales = [one.quant_state.absmax for one in model.parameters() if getattr(one, "quant_state", None) is not None]
    # transformers leaves these out; fp32, though a CPU that multiplies bfloat16 packs them into half of that
    really = model.get_memory_footprint() + sum(4 * one.numel() for one in scales)
    assert said == pytest.approx(really, rel=0.02)


def test_without_the_package_one_error_names_the_extra(monkeypatch):
    from importlib.metadata import PackageNotFoundError

    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(placement, "version", absent)
    with pytest.raises(ConfigError, match=r"teacher\.quantize.*kdbench\[quantize\]"):
        placement.quantizer("8bit", "cuda")


def test_a_device_on_which_bitsandbytes_cannot_work_is_named(monkeypatch):
    library = pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed (extra: quantize)")
    monkeypatch.setattr(library, "supported_torch_devices", {"cuda"}, raising=False)
    with pytest.raises(ConfigError, match=r"teacher\.quantize: bitsandbytes .* works on cuda, found device: cpu"):
        placement.quantizer("4bit", "cpu")
    assert placement.quantizer("4bit", "cuda")["bits"] == "4bit"


def test_room_is_left_for_the_student_that_learns_beside_a_spread_teacher(folder):
    parameters = sum(one.numel() for one in models.load(folder, CPU).parameters())
    asked = placement.form({"quantize": {"bits": "8bit"}}, {"placement": "auto"}, folder)
    assert asked == Form(True, "8bit", 18 * parameters + 2 * 2**30)
    assert placement.form({}, {}, folder) == placement.PLAIN
    assert placement.load(folder, CPU, Form(True, None, asked.reserve)) is not None
