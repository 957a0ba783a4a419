"""Refuse a model's config that no model can be made of, or none that ends: before a module of it is built."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kdbench.errors import ConfigError, one_line

MOST_PARTS = 1_000  # layers, heads, experts: published models have some hundreds, and layers are built one by one
NEEDED = {  # what every part of a plan reads, under the names that transformers gives to all architectures
    "vocab_size": 10_000_000,
    "hidden_size": 1_000_000,
    "num_hidden_layers": MOST_PARTS,
}
_PARTS = re.compile(r"(^|_)(layers?|heads?|experts|blocks)$")  # n_layer, num_hidden_layers, num_local_experts
_CHANCE = re.compile(r"(dropout|pdrop|layerdrop)(_prob|_rate)?$")


def check(config: Any, where: str) -> None:
    """Refuse a config whose sizes are missing, impossible, or beyond what any model has.

    Args:
        where: what errors call the place of the config.

    Raises:
        ConfigError: naming the field.
    """
    for name, most in NEEDED.items():
        value = getattr(config, name, None)
        if value is None:
            raise ConfigError(
                f"{where}: expected a causal language model, whose config has {name}, found a {config.model_type} "
                "without it"
            )
        if not _is_whole(value) or not 1 <= value <= most:
            raise ConfigError(f"{where}: expected {name} from 1 to {most:,}, found {value!r:.60}")
    try:
        told = config.to_dict()
    except Exception as error:  # a field of a kind that transformers cannot write down
        raise ConfigError(f"{where}: its config cannot be written: {one_line(error)}") from None
    for name, value in _fields(told):
        if _PARTS.search(name) and _is_whole(value) and not 0 <= value <= MOST_PARTS:
            raise ConfigError(f"{where}: expected {name} from 0 to {MOST_PARTS:,}, found {value}")
        if _CHANCE.search(name) and isinstance(value, int | float) and not 0 <= value <= 1:
            raise ConfigError(f"{where}: expected {name} from 0 to 1, found {value!r:.60}")


def check_made(init: Mapping[str, Any], config: Any, vocabulary: int, length: int) -> None:
    """Refuse a model to be made that the suite's text does not fit into.

    Args:
        init: the fields that the suite gives.
        vocabulary, length: size of the tokenizer, and of a block.

    Raises:
        ConfigError: naming the field and what it must be.
    """
    if config.vocab_size < vocabulary:
        raise ConfigError(
            f"init.vocab_size: expected at least {vocabulary:,}, the tokenizer's entries, found {config.vocab_size:,}"
        )
    check_positions(config, length, "init.max_position_embeddings")
    for name, value in init.items():
        if name.endswith("_token_id") and value is not None and not (_is_whole(value) and value in range(vocabulary)):
            raise ConfigError(
                f"init.{name}: expected an entry of the tokenizer, 0 to {vocabulary - 1:,}, found {value!r:.60}"
            )


def check_positions(config: Any, length: int, where: str) -> None:
    """Refuse a model with fewer positions than a block has tokens: it would fail at the first, or answer nonsense.

    Raises:
        ConfigError: naming both.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if _is_whole(positions) and positions < length:
        raise ConfigError(f"{where}: expected at least data.length = {length:,}, found {positions:,}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _fields(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every field of a config, those of its parts among them."""
    for name, value in settings.items():
        yield from _fields(value) if isinstance(value, dict) else [(str(name), value)]
