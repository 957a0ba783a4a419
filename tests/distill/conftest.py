"""Tiny models with random weights."""

from __future__ import annotations

import pytest
import torch

from kdbench.distill import models
from kdbench.distill.data import Blocks

VOCABULARY, LENGTH = 61, 12


def tiny(seed: int, width: int = 16, architecture: str = "opt", **fields):
    """Return a small causal language model."""
    init = {
        "architecture": architecture,
        "hidden_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    } | fields
    config = models.architecture_config(init, VOCABULARY, LENGTH, (0, 1), dropout=False)
    return models.make(config, seed)


@pytest.fixture
def student():
    return tiny(0)


@pytest.fixture
def teacher_model():
    return tiny(1, width=24).eval().requires_grad_(False)


@pytest.fixture
def blocks() -> Blocks:
    """Twenty-four rows; some end in padding."""
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(2, VOCABULARY, (24, LENGTH), generator=rng, dtype=torch.int32)
    mask = torch.ones(24, LENGTH, dtype=torch.bool)
    mask[::3, 8:] = False
    mask[5] = False
    mask[:, 0] = False
    return Blocks(ids, mask)
