"""Two processes that train one student together do what one does alone.

python -m pytest tests/distill/test_group.py
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from kdbench.distill import checkpoint, memory
from kdbench.distill.group import Alone, layers
from kdbench.errors import ConfigError, OutOfMemory
from tests.distill import ranks
from tests.distill.conftest import tiny


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A folder with what two processes found, each in `rank-N`."""
    from torch.multiprocessing import start_processes

    folder = tmp_path_factory.mktemp("ranks")
    start_processes(ranks.main, args=(2, folder), nprocs=2, start_method="spawn")
    return folder


def found(folder, rank: int, name: str):
    place = folder / f"rank-{rank}"
    return json.loads((place / f"{name}.json").read_text()), load_file(place / f"{name}.safetensors")


def close(a, b, **tolerance) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], **tolerance) for name in a)


@pytest.mark.parametrize("case", ranks.GRADIENTS, ids=str)
def test_two_processes_find_the_loss_and_gradient_of_one(case, together):
    """ATKD ranks the tokens of both; 7 rows are cut into 4 and 3; one of the 24 rows holds no target."""
    facts, gradients = ranks.gradient(Alone(), *case)
    for rank in (0, 1):
        theirs, their_gradients = found(together, rank, f"gradient {case}")
        assert theirs["total"] == pytest.approx(facts["total"], rel=1e-5)
        assert theirs["terms"] == pytest.approx(facts["terms"], rel=1e-4, abs=1e-6)
        assert close(their_gradients, gradients, atol=1e-6, rtol=1e-4)
    assert max(float(one.abs().max()) for one in gradients.values()) > 1e-3


@pytest.mark.parametrize("spec", ranks.TRAININGS)
def test_two_processes_end_with_the_student_of_one(spec, together, tmp_path):
    """With the same text where the student writes it, and the same steering where an objective adapts."""
    history, weights = ranks.training(Alone(), spec, tmp_path)
    for rank in (0, 1):
        theirs, their_weights = found(together, rank, f"training {spec}")
        assert [one["loss"] for one in theirs] == pytest.approx([one["loss"] for one in history], rel=1e-3)
        assert [one["grad_norm"] for one in theirs] == pytest.approx([o["grad_norm"] for o in history], rel=1e-3)
        assert close(their_weights, weights, atol=2e-3)


def test_adapters_are_trained_by_two_processes_as_by_one(together, tmp_path):
    pytest.importorskip("peft", reason="the package peft is not installed (extra: lora)")
    _, weights = ranks.training(Alone(), "kl", tmp_path, adapters=True)
    assert close(found(together, 0, "adapters")[1], weights, atol=2e-3)
    assert all("lora_" in name for name in weights)


def test_the_first_process_writes_the_checkpoint_that_one_would(together, tmp_path):
    ranks.training(Alone(), "atkd", tmp_path)
    alone, theirs = checkpoint.load(tmp_path), checkpoint.load(together / "checkpoints" / "atkd")
    assert alone.step == theirs.step == 6
    assert close(theirs.tensors, alone.tensors, atol=2e-3)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        p.name for p in (together / "checkpoints" / "atkd").iterdir()
    )


def test_a_training_stopped_twice_ends_with_the_same_bytes(together):
    for rank in (0, 1):
        assert found(together, rank, "stopped 1")[0] == found(together, rank, "stopped 2")[0] == {"code": 143}
        history, weights = found(together, rank, "resumed")
        undisturbed, expected = found(together, rank, "training atkd")
        assert history == undisturbed
        assert weights.keys() == expected.keys() and all(torch.equal(weights[n], expected[n]) for n in weights)


def test_a_batch_that_does_not_fit_is_not_cut_where_others_would_wait():
    micro = memory.MicroBatch(None, 8, processes=2)

    def full(rows):
        raise MemoryError

    with pytest.raises(OutOfMemory, match=r"4 rows at once do not fit into one of 2 processes.*train\.micro_batch"):
        micro.fit(full, lambda: "sizes")


def test_a_model_that_names_no_layers_is_refused(monkeypatch):
    model = tiny(0)
    monkeypatch.setattr(model, "_no_split_modules", None)
    with pytest.raises(ConfigError, match=r"fsdp: opt"):
        layers(model)
