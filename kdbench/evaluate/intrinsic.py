"""How near a student has come to the language, and to its teacher, on held-out text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.api import Dist
from kdbench.distill.data import Blocks
from kdbench.distill.models import body, head
from kdbench.divergences import kl
from kdbench.evaluate import token_scores

ROWS = 16


@dataclass(frozen=True)
class Intrinsic:
    """What held-out text says of a model.

    metrics: means over the tokens: `nats_per_token`, `entropy` (nats) and `calibration_error` (of the likeliest token,
        15 bins of equally many tokens); with a teacher also `kl_to_teacher` KL(p‖q), `reverse_kl_to_teacher` KL(q‖p),
        both in nats, and `top1_agreement`, the share of tokens where both find the same token likeliest.
    tokens: name → `[N]`, a number a token: `row` of the held-out blocks, `position` in it and `target` id (int32), and
        what `token_scores.score` knows.
    """

    metrics: dict[str, float]
    tokens: dict[str, np.ndarray]


def measure(
    student: nn.Module, teacher: nn.Module | None, blocks: Blocks, tokens: int, vocabulary: int, precision: str
) -> dict[str, float]:
    """Return the metrics of `examine` alone."""
    return examine(student, teacher, blocks, tokens, vocabulary, precision).metrics


@torch.no_grad()
def examine(
    student: nn.Module, teacher: nn.Module | None, blocks: Blocks, tokens: int, vocabulary: int, precision: str
) -> Intrinsic:
    """Read the first blocks, `tokens` tokens in all, and score every valid one; one forward pass a model."""
    sums: dict[str, float] = {}
    parts: list[dict[str, Tensor]] = []
    for place, q, p in _read(student, teacher, blocks, tokens, vocabulary, precision):
        scores = token_scores.score(q, p)
        found = {"nats_per_token": -scores["log_prob"], "entropy": scores["entropy"]}
        if p is not None:
            found |= {name: scores[name] for name in ("kl_to_teacher", "top1_agreement")}
            found["reverse_kl_to_teacher"] = kl(q.log_probs, p.log_probs)
        for name, values in found.items():
            sums[name] = sums.get(name, 0.0) + float(values.double().sum())
        parts.append({name: values.cpu() for name, values in (place | scores).items()})
    columns = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    metrics = {name: total / len(columns["target"]) for name, total in sums.items()}
    metrics["calibration_error"] = token_scores.calibration_error(columns["top1_prob"], columns["top1_correct"])
    return Intrinsic(metrics, columns)


def _read(
    student, teacher, blocks: Blocks, tokens: int, vocabulary: int, precision: str
) -> Iterator[tuple[dict[str, Tensor], Dist, Dist | None]]:
    """Yield, a few blocks at a time, where the valid tokens stand and what student and teacher expect there."""
    rows = min(len(blocks), max(1, tokens // blocks.length))
    device = next(student.parameters()).device
    for begin in range(0, rows, ROWS):
        part = slice(begin, min(begin + ROWS, rows))
        ids, mask = blocks.ids[part].long().to(device), blocks.mask[part, 1:].to(device)
        target = ids[:, 1:][mask]
        places = None if blocks.positions is None else blocks.positions[part, :-1].to(device)
        row, column = mask.nonzero(as_tuple=True)
        place = {"row": row + begin, "position": column + 1, "target": target}
        q, p = (
            None if model is None else _dist(model, ids, mask, target, vocabulary, precision, places)
            for model in (student, teacher)
        )
        assert q is not None
        yield {name: values.int() for name, values in place.items()}, q, p


def _dist(model, ids, mask, target, vocabulary, precision, places) -> Dist:
    hidden = body(model, ids[:, :-1], precision, places)[mask]
    weight = head(model, vocabulary)
    return Dist(hidden.to(weight.dtype) @ weight.t(), target)
