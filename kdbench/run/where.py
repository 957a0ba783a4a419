"""Where a cluster is and what a job may take of it. Light: the command line makes it before anything is imported."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Where:
    """A Ray cluster.

    Attributes:
        address: HOST:PORT of its head, `auto` for the one this node is part of, `local` for a new one on this machine;
            None: RAY_ADDRESS, else `local`.
        gpu_share: GPUs that a job takes which runs a model; 0.5 lets two share one. Memory is not divided by it.
    """

    address: str | None = None
    gpu_share: float = 1.0
