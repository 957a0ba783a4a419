"""Nobody is told what is run: the switches by which the libraries underneath send nothing home."""

from __future__ import annotations

import os

OFF = {
    "DO_NOT_TRACK": "true",  # what MLflow, huggingface_hub and others agree on
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # of transformers, datasets and evaluate too, whose requests it signs
    "RAY_USAGE_STATS_ENABLED": "0",
}


def switch_off() -> None:
    """Set the switches for this process and all that it starts; to be called before these libraries are imported."""
    os.environ |= OFF
