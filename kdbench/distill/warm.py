"""A student made of its teacher's own layers: embeddings, head, final norm and the chosen layers are copied.

The usual warm start of distillation (DistilBERT, Sanh et al. 2019, took every second layer). Works for every
architecture whose body holds its layers in one list: OPT, GPT-NeoX, Llama, Qwen, GPT-2 are tested.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdbench.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


def shortened(config: Any, layers: Sequence[int]) -> Any:
    """Return a model's config with these layers alone; lists that say something of each layer are cut likewise.

    Raises:
        ConfigError: a layer that the model has not.
    """
    count = config.num_hidden_layers
    absent = [index for index in layers if not 0 <= index < count]
    if absent:
        raise ConfigError(f"init.layers: expected numbers from 0 to {count - 1}, found {absent}")
    found = copy.deepcopy(config)
    for name, value in config.to_dict().items():
        if "layer" in name and isinstance(value, list) and len(value) == count:
            setattr(found, name, [value[index] for index in layers])
    found.num_hidden_layers = len(layers)
    return found


def keep_layers(model: nn.Module, layers: Sequence[int]) -> nn.Module:
    """Return a new model with copies of everything but the layers that are left out.

    Args:
        layers: growing, counted from 0.

    Raises:
        ConfigError: a layer that the model has not, or an architecture whose layers stand in no single list.
    """
    from kdbench.distill import models

    prefix, place = f"{_layer_list(model)}.", {old: new for new, old in enumerate(layers)}
    student = models.make(shortened(model.config, layers), 0).to(next(model.parameters()).dtype)
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(prefix):
            number, _, rest = name[len(prefix) :].partition(".")
            if int(number) in place:
                state[f"{prefix}{place[int(number)]}.{rest}"] = tensor
        else:
            state[name] = tensor
    student.load_state_dict(state, strict=True)
    student.tie_weights()
    return student.eval()


def _layer_list(model: nn.Module) -> str:
    """Return the name of the one list of layers in a model's body."""
    from torch import nn

    count = model.config.num_hidden_layers
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    found = [name for name, module in lists if len(module) == count]
    outermost = [name for name in found if not any(name.startswith(f"{other}.") for other in found if other != name)]
    if len(outermost) != 1:
        raise ConfigError(
            f"init.from: expected one list of {count} layers in a {model.config.model_type} model, found "
            f"{outermost or 'none'}; its layers cannot be chosen"
        )
    return outermost[0]
