"""From a pickled checkpoint to safetensors, without running anything that the pickle says.

transformers reads the pickle with torch's `weights_only`, memory-mapped, and renames and ties what its architecture
asks for; the result is loaded again and compared tensor by tensor.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.distill import hub, models
from kdbench.errors import ConfigError, StoreError
from kdbench.files import read_json

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Converted:
    """What a conversion made: the folder, tensors, parameters (tied ones once), and tensors without a place in it."""

    folder: Path
    tensors: int
    parameters: int
    left_out: tuple[str, ...]


def convert(source: Path, target: Path) -> Converted:
    """Write the model of a folder with `pytorch_model*.bin` as safetensors, its tokenizer beside it.

    Raises:
        ConfigError: no config or pickle, a shard missing, a model that needs code of its own, a pickle that holds
            more than tensors, tensors that are missing, a target that is not empty, or a result that differs.
    """
    _check_source(source)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"expected an empty or absent folder to write to, found files in {target}")
    model, left_out = _read(source)
    try:
        model.save_pretrained(target)
        for name in hub.TOKENIZER:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
    except Exception as error:  # of the disk, by whoever noticed it
        raise StoreError(f"cannot write the model to {target}: {error}") from error
    tensors = _verify(model, target)
    return Converted(target, tensors, sum(one.numel() for one in model.parameters()), left_out)


def _check_source(source: Path) -> None:
    if not (source / "config.json").is_file():
        raise ConfigError(f"expected a model folder with config.json, found none at {source}")
    if list(source.glob("*.safetensors")):
        raise ConfigError(f"{source} has safetensors already; name it with `path:` as it is")
    if not list(source.glob("pytorch_model*.bin")):
        raise ConfigError(f"expected pytorch_model*.bin in {source}, found none")
    if not hub.whole_pickles(source):
        raise ConfigError(f"expected every shard that {hub.PICKLED_INDEX} names in {source}, found some missing")
    config = read_json(source / "config.json")
    if not isinstance(config, dict):
        raise ConfigError(f"expected an object in {source / 'config.json'}, found {type(config).__name__}")
    if code := config.get("auto_map"):
        named = next(iter(code.values())) if isinstance(code, dict) else code
        raise ConfigError(f"the model in {source} needs code of its own ({named!s:.80}), which kdbench never runs")


def _read(source: Path) -> tuple[nn.Module, tuple[str, ...]]:
    from transformers import AutoModelForCausalLM

    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            source, dtype="auto", use_safetensors=False, weights_only=True, local_files_only=True,
            trust_remote_code=False, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # of torch, of pickle and of transformers; what they have in common is that it failed
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"the pickles in {source} cannot be read as tensors only ({reason:.300}); a pickle that holds more may run "
            "code and is refused"
        ) from None
    if missing := sorted(told["missing_keys"]):
        raise ConfigError(f"{source}: expected every tensor of {model.config.model_type}, found none for {missing[:5]}")
    return model.eval(), tuple(sorted(told["unexpected_keys"]))


def _verify(model: nn.Module, target: Path) -> int:
    """Load the result again and compare; return the number of tensors."""
    import torch
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(
        target, dtype="auto", use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    before: dict[str, Any] = model.state_dict()
    after = again.state_dict()
    if before.keys() != after.keys():
        raise ConfigError(
            f"{target}: expected the tensors of the pickle, found {sorted(before.keys() ^ after.keys())[:5]}"
        )
    differ = [name for name in before if not torch.equal(before[name], after[name])]
    if differ:
        raise ConfigError(f"{target}: expected the numbers of the pickle, found others in {differ[:5]}")
    models.check_folder(target)
    return len(after)
