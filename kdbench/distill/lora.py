"""Students that learn through low-rank adapters (LoRA, Hu et al., ICLR 2022), by peft; the saved student is whole."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn

from kdbench.errors import ConfigError
from kdbench.seeding import derive, fenced


def installed() -> str:
    """Return peft's version, which is part of a key.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return version("peft")
    except PackageNotFoundError:
        raise ConfigError(
            "train.lora: expected the package peft, found none; install it: pip install 'kdbench[lora]'"
        ) from None


def adapt(model: nn.Module, settings: Mapping[str, Any], seed: int) -> Any:
    """Put adapters into a model, in place, and freeze all else; return peft's tuner, which can merge them.

    Args:
        settings: r, alpha, and targets: ends of module names; none: every linear layer but the output head.
        seed: of the run; the adapters' first factor is drawn from it, the second is 0, so nothing changes yet.

    Raises:
        ConfigError: peft is not installed, or no module has such a name.
    """
    installed()
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    targets = list(settings["targets"]) or "all-linear"
    config = LoraConfig(r=settings["r"], lora_alpha=settings["alpha"], target_modules=targets, lora_dropout=0.0)
    try:
        with fenced(derive(seed, "adapters"), "adapters"):
            tuner = LoraModel(model, config, "default")
    except ValueError as error:
        ends = sorted({name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, nn.Linear)})
        raise ConfigError(
            f"train.lora.targets: expected ends of module names of {model.config.model_type}, such as {ends}, "
            f"found {targets} ({str(error).splitlines()[0][:200]})"
        ) from None
    return tuner


def adapted(model: nn.Module, train: Mapping[str, Any], seed: int) -> Any:
    """Put adapters into a student if its training settings ask for them; return what can merge them, or None."""
    return adapt(model, train["lora"], seed) if train.get("lora") else None


def merge(tuner: Any) -> nn.Module:
    """Fold the adapters into the weights they adapt; return the plain model, all of it trainable again."""
    model = tuner.merge_and_unload(safe_merge=True)
    return model.requires_grad_(True)
