"""How near a student has come to the language, and to its teacher, on held-out text."""

from __future__ import annotations

import torch
from torch import nn

from kdbench.api import Dist
from kdbench.distill.data import Blocks
from kdbench.distill.models import body, head
from kdbench.divergences import kl

ROWS = 16


@torch.no_grad()
def measure(
    student: nn.Module, teacher: nn.Module | None, blocks: Blocks, tokens: int, vocabulary: int, precision: str
) -> dict[str, float]:
    """Return means over the valid tokens of the first blocks, `tokens` in all.

    Returns:
        `nats_per_token`; with a teacher also `kl_to_teacher` KL(p‖q), `reverse_kl_to_teacher` KL(q‖p), both in nats,
        and `top1_agreement`, the share of tokens where both find the same token likeliest.
    """
    rows = min(len(blocks), max(1, tokens // blocks.length))
    device = next(student.parameters()).device
    sums: dict[str, float] = {}
    count = 0
    for begin in range(0, rows, ROWS):
        part = slice(begin, min(begin + ROWS, rows))
        ids, mask = blocks.ids[part].long().to(device), blocks.mask[part, 1:].to(device)
        target = ids[:, 1:][mask]
        places = None if blocks.positions is None else blocks.positions[part, :-1].to(device)
        q = _dist(student, ids, mask, target, vocabulary, precision, places)
        found = {"nats_per_token": -q.log_prob_target}
        if teacher is not None:
            p = _dist(teacher, ids, mask, target, vocabulary, precision, places)
            found["kl_to_teacher"] = kl(p.log_probs, q.log_probs)
            found["reverse_kl_to_teacher"] = kl(q.log_probs, p.log_probs)
            found["top1_agreement"] = (p.logits.argmax(-1) == q.logits.argmax(-1)).float()
        for name, values in found.items():
            sums[name] = sums.get(name, 0.0) + float(values.double().sum())
        count += len(target)
    return {name: total / count for name, total in sums.items()}


def _dist(model, ids, mask, target, vocabulary, precision, places) -> Dist:
    hidden = body(model, ids[:, :-1], precision, places)[mask]
    weight = head(model, vocabulary)
    return Dist(hidden.to(weight.dtype) @ weight.t(), target)
