"""Accelerators that a suite may be planned for, by the makers' data sheets, and how much of them is assumed to be used.

Peaks are dense bf16 products with fp32 sums (sheets often print twice that, with sparsity); memory is in 1e9 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdbench.errors import ConfigError, did_you_mean

UTILISATION = 0.35  # of the peak, in training and forward passes of models of this size: assumed, not measured
BANDWIDTH_UTILISATION = 0.6  # of the memory's rate, where text is written: assumed
LAYER_S = 4e-4  # a layer's launches, at each token that is written: assumed, of transformers' generation loop
TF32_COST = 2.0  # the heads' products, which keep TF32, against bf16: on all of these sheets half the rate
RESERVED_BYTES = 1.5e9  # of the device's memory, for its context and libraries: assumed


@dataclass(frozen=True)
class Device:
    """An accelerator.

    Attributes:
        flops: peak bf16 floating point operations a second, dense.
        memory: bytes.
        bandwidth: of its memory, bytes a second.
        source: where the numbers stand.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    source: str

    def compute_s(self, flop: float) -> float:
        """Return the seconds of so many operations at the assumed utilisation."""
        return flop / (self.flops * UTILISATION)

    def writing_s(self, steps: float, weight_bytes: float, layers: int, flop: float) -> float:
        """Return the seconds of `steps` tokens written one after another, of all rows at once.

        Each step reads all weights once and launches every layer; the operations themselves rarely matter.
        """
        step = max(weight_bytes / (self.bandwidth * BANDWIDTH_UTILISATION), layers * LAYER_S)
        return max(steps * step, self.compute_s(flop))

    @property
    def usable(self) -> float:
        """Bytes that a cell may take."""
        return self.memory - RESERVED_BYTES


DEVICES = {
    device.name: device
    for device in (
        Device("A100", 312e12, 80e9, 2.039e12, "NVIDIA A100 80GB SXM data sheet"),
        Device("H100", 989e12, 80e9, 3.35e12, "NVIDIA H100 SXM data sheet: 1,979 TFLOP/s with sparsity, half without"),
        Device("H200", 989e12, 141e9, 4.8e12, "NVIDIA H200 SXM data sheet: 1,979 TFLOP/s with sparsity, half without"),
        Device("4090", 165.2e12, 24e9, 1.008e12, "NVIDIA Ada architecture paper, GeForce RTX 4090, fp32 accumulation"),
    )
}

DEFAULT = "H100"  # where a plan must name some device, and the user has named none


def find(name: str) -> Device:
    """Return a device by name, whatever its case.

    Raises:
        ConfigError: with a did-you-mean, when there is none.
    """
    key = name.upper().removeprefix("RTX").strip(" -_")
    if key not in DEVICES:
        raise ConfigError(f"--device-name: unknown device {name!r}.{did_you_mean(key, DEVICES)}")
    return DEVICES[key]
