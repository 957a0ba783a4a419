"""Students trained elsewhere, as files: what a folder must hold, and what is said where there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdbench.distill import models
from kdbench.errors import ConfigError
from kdbench.suite.external import ABSENT


def fingerprint(folder: Path, check: Callable[[Path], Any]) -> str:
    """Return the sha256 of a student's config and weights, after all that a plan can check.

    Args:
        check: refuses what does not fit the suite (architecture, vocabulary).

    Raises:
        ConfigError: no config, no safetensors, an adapter without its base, or what `check` refuses.
    """
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"expected a whole model, found an adapter (PEFT) in {folder}; save it merged: "
            "model.merge_and_unload().save_pretrained(FOLDER)"
        )
    check(folder)
    return models.folder_fingerprint(folder)


def why_absent(inputs: Mapping[str, Any]) -> str:
    """Say that a cell's folder is missing, and what to do."""
    return f"no model folder at {inputs[ABSENT]}; put the student there and run again"
