"""Small models and text for the groups that train: random weights with the spread of trained ones, random tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdbench.distill import models
from kdbench.distill.data import EOS, PAD, Blocks

if TYPE_CHECKING:
    from torch import nn

STUDENT = (64, 2)  # width, layers
TEACHERS = {"16x": (256, 4), "30x": (256, 8)}  # times the student's parameters, at a vocabulary of 2,048
SMOKE = {"16x": (32, 1), "30x": (48, 2)}
EOS_ID, PAD_ID = 0, 1
SHARPER = 8.0  # fresh weights say nearly the same of every token; a teacher must have something to teach


def model(shape: tuple[int, int], vocabulary: int, length: int, seed: int, teacher: bool = False) -> nn.Module:
    """Make an OPT model; a teacher's output distributions are made as sharp as a trained one's."""
    width, layers = shape
    init = {
        "architecture": "opt",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 32),
        "ffn_dim": 4 * width,
        "max_position_embeddings": max(length, 64),
    }
    made = models.make(models.architecture_config(init, vocabulary, length, (EOS_ID, PAD_ID), False), seed)
    if teacher:
        with torch.no_grad():
            made.get_output_embeddings().weight.mul_(SHARPER)
    return made.eval()


def blocks(rows: int, length: int, vocabulary: int) -> Blocks:
    """Return random text without padding; a block's first token is no target, as always."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, vocabulary, (rows, length), generator=generator, dtype=torch.int32)
    mask = torch.ones(rows, length, dtype=torch.bool)
    mask[:, 0] = False
    return Blocks(ids, mask)


def tokenizer(vocabulary: int) -> Any:
    """Return a tokenizer of as many words, for trainers that want one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {EOS: EOS_ID, PAD: PAD_ID} | {f"w{i}": i for i in range(2, vocabulary)}
    made = Tokenizer(models.WordLevel(words, unk_token=EOS))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=EOS, eos_token=EOS, pad_token=PAD)


def save(made: nn.Module, tokens: Any, folder: Path) -> None:
    """Write an ordinary Hugging Face folder."""
    made.save_pretrained(folder)
    tokens.save_pretrained(folder)


def parameters(made: nn.Module) -> int:
    """Count parameters, tied ones once."""
    return sum(one.numel() for one in made.parameters())
