"""A teacher that one device does not hold: spread over several devices by accelerate, or kept in 8 or 4 bits.

Where its layers lie changes nothing that is computed. Fewer bits do: such a teacher is another one, so that the bits
and the version of bitsandbytes, which rounds, stand in every key that reads it. Embeddings and the output head stay
in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.distill import models
from kdbench.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

STATES_BYTES = 18  # of a parameter that learns: fp32 weight, gradient, two moments, and autocast's bf16 copy
SPARE_BYTES = 2 * 2**30  # of the student's device, for its activations and a chunk of the loss


@dataclass(frozen=True)
class Form:
    """How a frozen model is held.

    Attributes:
        spread: its layers over all devices there are, then the machine's memory; None: all on one device.
        bits: `8bit` or `4bit`; None: as it was saved.
        reserve: bytes of the first device that are left for a student.
    """

    spread: bool = False
    bits: str | None = None
    reserve: int = 0


PLAIN = Form()


def quantizer(bits: str, device: str) -> dict[str, str]:
    """Return what a key says of a teacher in few bits.

    Raises:
        ConfigError: bitsandbytes is not installed, or cannot work on such a device.
    """
    try:
        found = version("bitsandbytes")
    except PackageNotFoundError:
        raise ConfigError(
            "teacher.quantize: expected the package bitsandbytes, found none; install it: pip install "
            "'kdbench[quantize]'"
        ) from None
    import bitsandbytes

    able = getattr(bitsandbytes, "supported_torch_devices", {"cuda"})  # of older versions
    if device not in able:
        raise ConfigError(
            f"teacher.quantize: bitsandbytes {found} works on {', '.join(sorted(able))}, found device: {device}; "
            "run on a GPU, or leave quantize out"
        )
    return {"bits": bits, "bitsandbytes": found}


def form(inputs: dict[str, Any], context: dict[str, Any], student: Path | None = None) -> Form:
    """Return how a job holds its teacher.

    Args:
        inputs, context: of the job.
        student: folder of the model that learns beside it, for which room is left.
    """
    spread, bits = context.get("placement") == "auto", inputs.get("quantize", {}).get("bits")
    if not (spread and student):
        return Form(spread, bits)
    return Form(spread, bits, STATES_BYTES * models.parameters(models.load_config(student)) + SPARE_BYTES)


def load(folder: Path, runtime: models.Runtime, form: Form = PLAIN) -> nn.Module:
    """Load a model that does not learn, held as `form` says; its hidden states and head are on the first device.

    Raises:
        ConfigError: as `models.load`; or the devices together, and the machine's memory, do not hold it.
    """
    if form == PLAIN:
        model = models.load(folder, runtime)
    else:
        model = models.load(folder, runtime, options=_options(runtime, form))
        if next(model.parameters()).device.type != runtime.device:
            raise ConfigError(
                f"teacher.placement: expected room for the teacher's embeddings on {runtime.device}, beside "
                f"{form.reserve / 2**30:,.1f} GiB for the student, found none; take a larger device or fewer workers"
            )
    return model.requires_grad_(False)


def _options(runtime: models.Runtime, form: Form) -> dict[str, Any]:
    """Return what `from_pretrained` is told."""
    options: dict[str, Any] = {"device_map": {"": runtime.device}}
    if form.spread:
        options = {"device_map": "auto"} | ({"max_memory": _room(form.reserve)} if form.reserve else {})
    if form.bits:
        options["quantization_config"] = _settings(runtime, form.bits)
    return options


def _room(reserve: int) -> dict[Any, int]:
    """Return what each device may take, with so many bytes of the first GPU left alone."""
    from accelerate.utils import get_max_memory

    room = get_max_memory()
    if 0 in room:
        room[0] = max(0, room[0] - reserve)
    return room


def _settings(runtime: models.Runtime, bits: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    computed = torch.bfloat16 if runtime.precision == "bfloat16" else torch.float32
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=computed)
