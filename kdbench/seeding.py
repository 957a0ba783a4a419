"""Randomness as a function of (seed, purpose, step): nothing to save, nothing to restore."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, purpose: str, step: int = 0) -> int:
    """Return a 63-bit seed for one purpose at one step; different purposes never share a stream."""
    text = f"{seed}/{purpose}/{step}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """Return a CPU torch generator for (seed, purpose, step)."""
    import torch

    return torch.Generator().manual_seed(derive(seed, purpose, step))


@contextmanager
def fenced(seed: int, purpose: str) -> Iterator[None]:
    """Run foreign code (lm-eval, model initialisation) with RNGs set from `seed`, and put all global state back.

    That is the state of every RNG, torch's default dtype and its number of threads.
    """
    import numpy
    import torch

    state = random.getstate(), numpy.random.get_state()
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    with torch.random.fork_rng():
        value = derive(seed, purpose)
        random.seed(value)
        numpy.random.seed(value % 2**32)
        torch.manual_seed(value)
        try:
            yield
        finally:
            random.setstate(state[0])
            numpy.random.set_state(state[1])
            torch.set_default_dtype(dtype)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


def uniform(numbers: torch.Tensor, draws: int) -> torch.Tensor:
    """Return `[N, draws]` float64 in [0, 1), a hash of each of the `[N]` int64 numbers: no state, no order.

    SplitMix64 (Steele, Lea & Flood 2014) over number · 2²⁰ + draw, its upper 53 bits.
    """
    import torch

    def shifted(value: torch.Tensor, bits: int) -> torch.Tensor:
        return (value >> bits) & ((1 << (64 - bits)) - 1)

    counter = numbers[:, None] * 2**20 + torch.arange(draws, device=numbers.device)
    mixed = counter * -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number
    mixed = (mixed ^ shifted(mixed, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    mixed = (mixed ^ shifted(mixed, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return shifted(mixed ^ shifted(mixed, 31), 11).double() / 2**53
