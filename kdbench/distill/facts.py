"""The config of a model that is not here, as the suite declares it; and what differs once its files are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdbench.distill.models import plain_config
from kdbench.errors import ConfigError, one_line


def declared(facts: Mapping[str, Any]) -> Any:
    """Return the transformers config of `architecture` with the declared fields.

    Raises:
        ConfigError: unknown architecture or field, with a did-you-mean.
    """
    from transformers import AutoConfig

    name, settings = facts["architecture"], {key: facts[key] for key in facts if key != "architecture"}
    plain_config("config", name, settings)
    try:
        return AutoConfig.for_model(name, **settings)
    except Exception as error:  # the config classes validate in ways of their own
        raise ConfigError(f"config: {name} refuses these fields: {one_line(error)}") from None


def check(facts: Mapping[str, Any], config: Any) -> None:
    """Hold the declared fields against the model's own config.

    Raises:
        ConfigError: naming every field that differs, with both values.
    """
    own = {key: getattr(config, key, None) for key in facts if key != "architecture"}
    own["architecture"] = config.model_type
    differ = [
        f"{key}: declared {facts[key]!r}, its config.json says {own[key]!r}" for key in facts if facts[key] != own[key]
    ]
    if differ:
        raise ConfigError(f"config: {'; '.join(differ)}; write what the model says")
