"""Agreement with the packages that others train with. Without the extra `reference` these tests are skipped.

python -m pytest tests/reference
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # it warns of every import from trl.experimental

BATCH, LENGTH, VOCABULARY = 3, 5, 17
IGNORED = -100


def imported(package: str, module: str = "") -> ModuleType:
    """Import a module of a package, or skip the whole file where the package is not installed.

    A package that is there but has no such module is an error: then it has changed under us. What packages warn of
    while they are imported is not ours to mend.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(package)
        return importlib.import_module(module or package)


def case(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Return student's and teacher's logits `[B, T, V]`, and labels `[B, T]` of which some are ignored."""
    rng = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(BATCH, LENGTH, VOCABULARY, generator=rng, dtype=dtype) for _ in range(2))
    labels = torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=rng)
    labels[torch.rand(BATCH, LENGTH, generator=rng) < 0.3] = IGNORED
    assert (labels == IGNORED).any()
    return student, teacher, labels


def targets(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return labels without the ignored ones' sign, and the mask of those that count: what `kdbench.loss` takes."""
    return labels.clamp(min=0), labels != IGNORED


def value_and_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return a loss and its gradient at some logits."""
    leaf = logits.clone().requires_grad_()
    value = loss(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def assert_equal(theirs: tuple[Tensor, ...], ours: tuple[Tensor, ...], tolerance: float) -> None:
    """Compare values and gradients, relative to the largest number in each."""
    for one, other in zip(theirs, ours, strict=True):
        scale = one.abs().max().item()
        torch.testing.assert_close(one.to(other.dtype), other, rtol=0, atol=tolerance * max(scale, 1e-3))
