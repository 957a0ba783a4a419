"""The peers' loss heads. Imports stand in the functions: a package that is absent is a row that says so."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.measure import Absent
from benchmarks.states import States

BETAS = {"kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}  # the same numbers in TRL and in Liger
CHUNKS = 8  # torchtune's default


def trl(x: States, objective: str) -> float:
    """TRL's chunked kernel, which its DistillationTrainer uses."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    given = (x.student_hidden, x.student_head, None, x.teacher_hidden, x.teacher_head, None)
    per_token, _ = ChunkedDivergenceFunction.apply(*given, BETAS[objective])
    value = per_token.mean()
    value.backward()
    return float(value.detach())


def liger(x: States, objective: str) -> float:
    """Liger's chunked JSD, not compiled: on CPU compiling takes longer than the work."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=BETAS[objective], compiled=x.student_hidden.is_cuda
    )
    value = loss(x.student_hidden, x.student_head, x.teacher_hidden, x.teacher_head, x.targets)
    value.backward()
    return float(value.detach())


def torchtune(x: States, objective: str) -> float:
    """torchtune's chunked losses; the model makes the logits in as many chunks."""
    import torch

    losses = _torchtune_losses()
    if objective == "jsd":
        raise Absent("has no such objective")
    kind = {"kl": losses.ForwardKLWithChunkedOutputLoss, "reverse_kl": losses.ReverseKLWithChunkedOutputLoss}
    with torch.no_grad():
        taught = [part[None] @ x.teacher_head.t() for part in x.teacher_hidden.chunk(CHUNKS)]
    student: list[Any] = [part[None] @ x.student_head.t() for part in x.student_hidden.chunk(CHUNKS)]
    value = kind[objective](CHUNKS)(student, taught, x.targets[None])
    value.backward()
    return float(value.detach())


@cache
def _torchtune_losses() -> ModuleType:
    """Load the losses' file alone: importing torchtune asks for torchao, which these do not need."""
    found = importlib.util.find_spec("torchtune")
    if found is None or not found.submodule_search_locations:
        raise Absent("not installed: torchtune")
    path = Path(found.submodule_search_locations[0]) / "modules" / "loss" / "kd_losses.py"
    spec = importlib.util.spec_from_file_location("torchtune_kd_losses", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
