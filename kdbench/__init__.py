"""kdbench: which knowledge-distillation objective should I use, and how sure can I be?

Public functions, stable from 0.1 on. Nothing heavy is imported before one of them is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdbench.analysis.lm_eval import load_lm_eval
    from kdbench.analysis.results import load_scores
    from kdbench.analysis.verdict import Comparison, compare
    from kdbench.api import LossParts, Objective
    from kdbench.distill.linear import linear_loss
    from kdbench.distill.loss import loss
    from kdbench.registry import objective

PROTOCOL = "1.0"  # results are comparable only within the same major.minor

_HOMES = {
    "objective": "kdbench.registry",
    "loss": "kdbench.distill.loss",
    "linear_loss": "kdbench.distill.linear",
    "compare": "kdbench.analysis.verdict",
    "load_scores": "kdbench.analysis.results",
    "load_lm_eval": "kdbench.analysis.lm_eval",
    "Objective": "kdbench.api",
    "LossParts": "kdbench.api",
    "Comparison": "kdbench.analysis.verdict",
}
__all__ = [
    "PROTOCOL",
    "Comparison",
    "LossParts",
    "Objective",
    "compare",
    "linear_loss",
    "load_lm_eval",
    "load_scores",
    "loss",
    "objective",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kdbench' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
