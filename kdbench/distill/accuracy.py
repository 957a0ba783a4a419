"""What a layout of the teacher cache loses, measured on a few tokens against the teacher's exact distribution.

The student is not known when a cache is written. The teacher at temperature 2 stands in for it: near enough to the
teacher to be a student, far enough that no error hides in a loss of nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kdbench.distill.data import Blocks
from kdbench.distill.layouts import Layout, keep, token_numbers, unpack
from kdbench.divergences import kl, narrowed_kl
from kdbench.errors import ConfigError

ROWS, TOKENS = 8, 64  # of the distillation set, and of each row
TEMPERATURE = 2.0
FORMS = {"hidden": ("full",), "topk": ("topk", "topk_both", "topk+tail"), "sampled": ("sampled",)}

ReadStates = Callable[[Blocks], tuple[Tensor, Tensor]]


def measure(layout: Layout, blocks: Blocks, read: ReadStates) -> dict[str, Any]:
    """Measure what `layout` loses on the first `TOKENS` tokens of `ROWS` rows at even distances.

    Args:
        read: returns a block's exact states `[N, H]`, in fp32, and the output head `[V, H]`.

    Returns:
        `tokens` and `stand_in_student`: on what it was measured. `retained_mass`: mean mass of p on what is kept.
        `max_log_prob_change`: the largest change of a log-prob over all classes, in nats (hidden alone). For each form
        of the loss that the layout serves, `kl_relative_error` of Σ KL(p‖q) and `gradient_relative_error`, in the
        Euclidean norm over tokens and classes, of its gradient at the logits of q. What draws do to a token's gradient
        is noise around the right value, which a batch averages out; what a top-k does is not.

    Raises:
        ConfigError: the states overflow in the layout's dtype.
    """
    sums = _Sums(layout)
    rows = torch.linspace(0, len(blocks) - 1, min(ROWS, len(blocks))).round().long().unique()
    for row in rows:
        some = blocks.select(row[None])
        mask = some.mask & (some.mask.cumsum(1) <= TOKENS)
        if bool(mask[:, 1:].any()):
            sums.add(*read(replace(some, mask=mask)), row)
    if not (math.isfinite(sums.change) and all(math.isfinite(off["kl"]) for off in sums.off.values())):
        raise ConfigError(
            f"teacher.dtype: the teacher's states do not fit into {str(layout.dtype).removeprefix('torch.')}: expected "
            "finite log-probs, found others; set bfloat16 or float32"
        )
    return sums.result()


class _Sums:
    """Squares, divergences and masses, added up over rows."""

    def __init__(self, layout: Layout):
        self.layout, self.tokens, self.mass, self.change = layout, 0, 0.0, 0.0
        self.exact = {"kl": 0.0, "square": 0.0}
        self.off = {form: {"kl": 0.0, "square": 0.0} for form in FORMS[layout.kind]}

    def add(self, hidden: Tensor, head: Tensor, row: Tensor) -> None:
        """Compare what would be stored of a row's tokens with what the teacher says."""
        logits = (hidden.to(head.dtype) @ head.t()).float()
        log_p = logits.log_softmax(-1)
        stored, drawn = _stored(self.layout, hidden, head, row)
        if not self.layout.sparse:
            self.change = max(self.change, float((stored - log_p).abs().max()))
        student = (logits / TEMPERATURE).requires_grad_()
        value, slope = _slope(kl(log_p, student.log_softmax(-1)), student)
        self.exact["kl"] += value
        self.exact["square"] += float(slope.double().square().sum())
        for form, off in self.off.items():
            found, mass = narrowed_kl(stored, student.log_softmax(-1), form, self.layout.k or logits.shape[-1], drawn)
            found_value, found_slope = _slope(found, student)
            off["kl"] += found_value
            off["square"] += float((found_slope - slope).double().square().sum())
        self.mass += float(len(hidden) if mass is None else mass.double().sum())
        self.tokens += len(hidden)

    def result(self) -> dict[str, Any]:
        """Return the errors over all rows."""
        count = max(1, self.tokens)
        student = f"the teacher at temperature {TEMPERATURE:g}"
        found = {"tokens": self.tokens, "stand_in_student": student, "retained_mass": self.mass / count}
        if not self.layout.sparse:
            found["max_log_prob_change"] = self.change
        least = torch.finfo(torch.float64).tiny
        found["forms"] = {
            form: {
                "kl_relative_error": abs(off["kl"] - self.exact["kl"]) / max(least, self.exact["kl"]),
                "gradient_relative_error": (off["square"] / max(least, self.exact["square"])) ** 0.5,
            }
            for form, off in self.off.items()
        }
        return found


def _slope(divergence: Tensor, logits: Tensor) -> tuple[float, Tensor]:
    (slope,) = torch.autograd.grad(divergence.sum(), logits)
    return float(divergence.detach().double().sum()), slope


def _stored(layout: Layout, hidden: Tensor, head: Tensor, row: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return log-probs `[N, V]` as they come back from disk, and the drawn classes of a sampled layout."""
    if not layout.sparse:
        states = hidden.to(layout.dtype).to(head.dtype)
        return (states @ head.t()).float().log_softmax(-1), None
    numbers = token_numbers(row[None], torch.tensor([len(hidden)]))
    states, drawn = unpack(keep(layout, hidden, head, numbers))
    log_p = (states @ head.t().cpu()).log_softmax(-1)
    return log_p.to(hidden.device), None if drawn is None else drawn.to(hidden.device)


def in_words(found: dict[str, Any]) -> str:
    """Say it in a line, for whoever watches a run."""
    parts = [
        f"{form}: KL off by {_percent(off['kl_relative_error'])}, a token's gradient by "
        f"{_percent(off['gradient_relative_error'])}"
        for form, off in found["forms"].items()
    ]
    kept = f"keeps {100 * found['retained_mass']:.1f} % of the mass; " if "max_log_prob_change" not in found else ""
    return kept + "; ".join(parts) + f" ({found['tokens']} tokens, stand-in student)"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 1 else f"{100 * share:.2g} %"
