"""Rollouts through vLLM, which writes many rows at once, in place of transformers' own generation loop.

The engine holds a copy of the student on the same GPU and takes its current weights before every text. What is drawn
depends on the weights, the prompts and the seed, each row having a seed of its own; it is other text than the built-in
loop draws from the same seed, and the same text where decoding is greedy, but for ties in the last digits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kdbench import failpoints
from kdbench.api import Sampling
from kdbench.distill import rollout
from kdbench.distill.data import Blocks
from kdbench.distill.rollout import Limits
from kdbench.errors import ConfigError
from kdbench.seeding import derive

WHOLE = 2**31  # vLLM's seeds are smaller than 2⁶³, as derive's are, but torch's of some devices are not


@dataclass(frozen=True)
class Request:
    """One row to be written, in vLLM's words.

    Attributes:
        prompt: token ids.
        settings: the fields of `SamplingParams`.
    """

    prompt: list[int]
    settings: dict[str, Any]


class Backend(Protocol):
    """What writes: vLLM, or what stands for it in tests."""

    vocabulary: int

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Take over a model's weights, under the names of its checkpoint."""
        ...

    def generate(self, requests: Sequence[Request]) -> list[list[int]]:
        """Return the tokens written for each request, the one that ended it among them."""
        ...


@dataclass(frozen=True)
class Engine:
    """Writes a student's text; called as the built-in loop is."""

    model: nn.Module
    backend: Backend

    def write(
        self, sampling: Sampling, given: Sequence[Tensor], limits: Limits, seed: int
    ) -> tuple[Blocks, dict[str, float]]:
        """Continue prompts; as `rollout.write`, whose targets, padding and numbers to be logged these are too."""
        room = min(limits.new_tokens, limits.length - max(len(prompt) for prompt in given))
        if room <= 0:
            return rollout._assemble(given, [prompt[:0] for prompt in given], limits)
        failpoints.hit("rollout")
        self.backend.load(weights(self.model))
        asked = requests(sampling, given, limits, room, seed, self.backend.vocabulary)
        found = self.backend.generate(asked)
        # Names of rollout.py are taken as they are: its source stands in the keys of finished cells.
        written = [rollout._until_eos(torch.tensor(ids, dtype=torch.long), limits.eos) for ids in found]
        return rollout._assemble(given, written, limits)


def weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a model's weights by name; tied ones stand once, as in its checkpoint."""
    for name, parameter in model.named_parameters():
        yield name, parameter.detach()


def requests(
    sampling: Sampling, given: Sequence[Tensor], limits: Limits, room: int, seed: int, vocabulary: int
) -> list[Request]:
    """Return what is asked of the engine for each prompt.

    Args:
        room: tokens that may be written at most.
        vocabulary: classes of the model's head; those beyond the tokenizer's are never drawn.
    """
    drawn = {"temperature": 0.0}
    if not sampling.greedy:
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or -1}
    common = {
        "max_tokens": room,
        "stop_token_ids": [limits.eos],
        "ignore_eos": True,  # of the model's own config, which may name another
        "detokenize": False,
    } | drawn
    if vocabulary > limits.vocabulary:
        common["allowed_token_ids"] = list(range(limits.vocabulary))
    return [
        Request(prompt.tolist(), common | {"seed": derive(seed, "row", row) % WHOLE})
        for row, prompt in enumerate(given)
    ]


def installed(device: str) -> str:
    """Return vLLM's version, which is part of a key.

    Raises:
        ConfigError: it is not installed, or the suite does not run on a GPU.
    """
    try:
        found = version("vllm")
    except PackageNotFoundError:
        raise ConfigError(
            "rollouts.engine: expected the package vllm, found none; install it: pip install 'kdbench[vllm]', or take "
            "engine out: transformers writes too, more slowly"
        ) from None
    if device != "cuda":
        raise ConfigError(f"rollouts.engine: vllm writes on a CUDA device, found device: {device}; take engine out")
    return found


@dataclass(frozen=True)
class Vllm:
    """vLLM in this process, which can therefore be handed tensors."""

    llm: Any
    vocabulary: int

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Take over a model's weights: vLLM's own loader fuses and casts them as it does those of a file."""
        self.llm.apply_model(lambda model: len(model.load_weights(weights) or ()))

    def generate(self, requests: Sequence[Request]) -> list[list[int]]:
        """Write all rows together."""
        from vllm import SamplingParams

        prompts = [{"prompt_token_ids": one.prompt} for one in requests]
        settings = [SamplingParams(**one.settings) for one in requests]
        return [list(row.outputs[0].token_ids) for row in self.llm.generate(prompts, settings, use_tqdm=False)]


def start(model: nn.Module, folder: Path, precision: str, length: int, share: float) -> Engine:
    """Return what writes a student's text.

    Args:
        model: the student.
        folder: where it was loaded from.
        length: of a row, prompt and text.
        share: of the GPU's memory, for vLLM's copy of the weights and its KV cache.
    """
    return Engine(model, _vllm(folder, precision, length, share))


@lru_cache(maxsize=1)
def _vllm(folder: Path, precision: str, length: int, share: float) -> Vllm:
    """Start vLLM, which takes a minute, once for all cells of one student."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are handed over inside this process
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    from vllm import LLM

    llm = LLM(
        model=str(folder),
        skip_tokenizer_init=True,
        dtype=precision,
        max_model_len=length,
        gpu_memory_utilization=share,
        enable_prefix_caching=False,  # what is cached would be of older weights
        enforce_eager=True,  # captured graphs may hold on to weights that have been replaced
        seed=0,
    )
    from kdbench.distill.models import load_config

    return Vllm(llm, int(load_config(folder).vocab_size))
