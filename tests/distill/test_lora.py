"""Adapters learn, all else is frozen, and what is saved is a plain model.

python -m pytest tests/distill/test_lora.py
"""

from __future__ import annotations

import copy

import pytest
import torch

from kdbench.distill import checkpoint, lora, models
from kdbench.errors import ConfigError, Interrupted
from tests.distill.conftest import tiny
from tests.distill.test_train import learn, live, weights

pytest.importorskip("peft", reason="the package peft is not installed (extra: lora)")
SETTINGS = {"r": 4, "alpha": 16, "targets": ["q_proj", "v_proj", "fc1"]}
IDS = torch.arange(2, 14)[None]


def test_new_adapters_change_nothing_and_learn_alone(blocks, teacher_model, tmp_path):
    model = tiny(0)
    before, plain = models.body(model, IDS).detach(), copy.deepcopy(dict(model.named_parameters()))
    lora.adapt(model, SETTINGS, 3)
    assert torch.equal(models.body(model, IDS), before)
    learn(model, "kl", blocks, live(teacher_model, blocks), tmp_path)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            assert parameter.requires_grad
        else:
            assert torch.equal(parameter, plain[name.replace(".base_layer", "")]), name
    assert not model.get_output_embeddings().weight.requires_grad
    assert not torch.allclose(models.body(model, IDS), before)
    saved = checkpoint.load(tmp_path).tensors
    assert saved and all("lora_" in name for name in saved)


@pytest.mark.parametrize("architecture", ["opt", "gpt_neox", "llama"])
def test_the_merged_student_is_the_adapted_one_and_an_ordinary_folder(architecture, blocks, tmp_path):
    fields = {"intermediate_size": 32} if architecture != "opt" else {}
    model, untouched = tiny(0, architecture=architecture, **fields), tiny(0, architecture=architecture, **fields)
    tuner = lora.adapt(model, SETTINGS | {"targets": []}, 3)
    learn(model, "sft", blocks, None, tmp_path / "c")
    adapted = models.body(model, IDS).detach()
    merged = lora.merge(tuner)
    assert torch.allclose(models.body(merged, IDS), adapted, atol=1e-5)
    assert not torch.allclose(models.body(untouched, IDS), adapted, atol=1e-3)
    merged.save_pretrained(tmp_path / "m")
    again = models.load(tmp_path / "m", models.Runtime("cpu", "float32", 1))
    assert torch.equal(models.body(again, IDS), models.body(merged, IDS))
    assert set(again.state_dict()) == set(untouched.state_dict())
    assert not (tmp_path / "m" / "adapter_config.json").exists()


def test_an_interrupted_training_of_adapters_ends_with_the_same_bytes(blocks, teacher_model, tmp_path):
    def adapted():
        model = tiny(0)
        return model, lora.adapt(model, SETTINGS, 3)

    undisturbed, one = adapted()
    learn(undisturbed, "atkd", blocks, live(teacher_model, blocks), tmp_path / "a")
    stops = iter([0, 0, 0, 143])
    with pytest.raises(Interrupted):
        learn(
            adapted()[0], "atkd", blocks, live(teacher_model, blocks), tmp_path / "b", should_stop=lambda: next(stops)
        )
    resumed, two = adapted()
    learn(resumed, "atkd", blocks, live(teacher_model, blocks), tmp_path / "b")
    assert torch.equal(weights(lora.merge(one)), weights(lora.merge(two)))


def test_adapters_are_drawn_from_the_seed_and_leave_the_global_rng_alone():
    state, drawn = torch.get_rng_state(), []
    for seed in (3, 3, 4):
        model = tiny(0)
        lora.adapt(model, SETTINGS, seed)
        drawn.append(torch.cat([p.flatten() for _, p in checkpoint.trained(model)]))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_a_target_that_is_not_there_names_those_that_are():
    with pytest.raises(ConfigError, match=r"q_proj.*query"):
        lora.adapt(tiny(0), SETTINGS | {"targets": ["query"]}, 0)


def test_without_peft_one_error_names_the_extra(monkeypatch):
    from importlib.metadata import PackageNotFoundError

    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(lora, "version", absent)
    with pytest.raises(ConfigError, match=r"kdbench\[lora\]"):
        lora.installed()
