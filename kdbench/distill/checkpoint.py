"""Checkpoints of one training: a safetensors file, then a JSON marker with its sha256, each written atomically.

The marker also holds the metric history, so that replayed steps never appear twice, and a sha256 of itself. The newest
marker that verifies, as does its file, wins; a damaged pair is set aside and the one before it is taken.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench import failpoints
from kdbench.distill.group import like, whole
from kdbench.errors import StoreError
from kdbench.files import atomic_write, read_json, sealed, sha256_file, write_json

KEPT = 2
BROKEN = ".corrupt"
DAMAGED = "damaged_checkpoints"  # in an entry's timing: how many were set aside, where there were any


@dataclass
class State:
    """Where a training stands.

    Attributes:
        step: steps done.
        tensors: weights, the optimiser's moments, buffers of text; by name.
        history: one record of metrics a step.
        kept: what the objective keeps between steps.
    """

    step: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[str, float] = field(default_factory=dict)


def save(folder: Path, state: State) -> None:
    """Write a checkpoint and drop those that are no longer needed."""
    from safetensors.torch import save as to_bytes

    path = folder / f"step-{state.step:08d}.safetensors"
    failpoints.hit("checkpoint")
    atomic_write(path, to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}))
    facts = {"step": state.step, "tensors": sha256_file(path), "history": state.history, "kept": state.kept}
    write_json(path.with_suffix(".json"), sealed(facts))
    for marker in _markers(folder)[KEPT:]:
        failpoints.hit("prune")
        marker.unlink(missing_ok=True)
        marker.with_suffix(".safetensors").unlink(missing_ok=True)


def load(folder: Path) -> State:
    """Return the newest whole checkpoint, or a fresh state where there is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for marker in _markers(folder):
        path = marker.with_suffix(".safetensors")
        try:
            entry = read_json(marker)
            if entry != sealed(entry) or sha256_file(path) != entry["tensors"]:
                raise StoreError("sha256 differs")
            return State(int(entry["step"]), load_file(path), list(entry["history"]), dict(entry["kept"]))
        except (StoreError, OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError):
            for broken in (marker, path):
                if broken.exists():
                    os.replace(broken, broken.with_name(broken.name + BROKEN))
    return State()


def facts(folder: Path) -> dict[str, int]:
    """Return how many damaged checkpoints were set aside, for an entry's timing; {} where none was."""
    found = {path.name.partition(".")[0] for path in folder.glob(f"step-*{BROKEN}")}
    return {DAMAGED: len(found)} if found else {}


def _markers(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.json"), reverse=True)


def trained(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """Return the parameters that learn, with their names; frozen ones are what they were."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def pack(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return a model's trained parameters and AdamW's moments by name; tied parameters stand once.

    Of a model that is cut over processes all of them must ask; each gets the whole tensors.
    """
    tensors = {}
    for name, parameter in trained(model):
        tensors[f"model/{name}"] = whole(parameter)
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = whole(value)
    return tensors


@torch.no_grad()
def take_weights(folder: Path, model: torch.nn.Module) -> list[dict[str, Any]]:
    """Give a model the weights of its newest checkpoint, which other processes wrote; return the history."""
    state = load(folder)
    for name, parameter in trained(model):
        parameter.copy_(state.tensors[f"model/{name}"])
    return state.history


@torch.no_grad()
def unpack(tensors: dict[str, Tensor], model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put back what `pack` returned."""
    # In one order everywhere: processes that train together gather them again in the order in which they are put back.
    keys = sorted({name.split("/")[1] for name in tensors if name.startswith("optimizer/")})
    for name, parameter in trained(model):
        parameter.copy_(like(tensors[f"model/{name}"], parameter))
        for key in keys:
            value = tensors[f"optimizer/{key}/{name}"]
            optimizer.state[parameter][key] = value if key == "step" else like(value, parameter)
