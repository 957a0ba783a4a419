"""What a teacher cache holds of a token, and how it becomes a distribution again.

    hidden    the final hidden state: exact for every objective but for the rounding of its dtype
    topk      the K likeliest classes with their log-probs: exact for the forward forms that keep no more of them
    sampled   K draws from p, equal ones counted: right on average for the forward form that draws

A sparse layout gives back a distribution over all classes: the kept ones as they were, the rest of the mass spread
evenly over the others. What a forward form asks of p (the kept classes, and the mass of the others together) is then
the same as of the teacher itself. Legend: `N` tokens, `V` vocabulary, `K` kept or drawn, `M` kept of all tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.divergences import draw, log_tail
from kdbench.gradients import EXCLUDED
from kdbench.seeding import derive, uniform

LOGIT_ROWS = 512
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENS_A_ROW = 2**16  # the longest block that a suite may ask for


@dataclass(frozen=True)
class Layout:
    """What is stored: `kind` hidden, topk or sampled; the dtype of states or log-probs; `k` classes or draws."""

    kind: str = "hidden"
    dtype: torch.dtype = torch.float32
    k: int = 0

    @property
    def sparse(self) -> bool:
        """Whether only some classes are kept."""
        return self.kind != "hidden"

    @property
    def read_dtype(self) -> torch.dtype:
        """In which dtype the teacher's states are to be made: as stored, or exact where classes are taken of them."""
        return torch.float32 if self.sparse else self.dtype


@dataclass(frozen=True)
class SparseRows:
    """The kept classes of some tokens. It stands where hidden states stand: times the output head it gives logits.

    Attributes:
        ids: `[N, K]` int64; a class may stand in a row twice.
        log_probs: `[N, K]`, of these classes.
        log_other: `[N]`, log-prob of each class that is not kept.
    """

    ids: Tensor
    log_probs: Tensor
    log_other: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice) -> SparseRows:
        return SparseRows(self.ids[rows], self.log_probs[rows], self.log_other[rows])

    def to(self, *_: object) -> SparseRows:
        """Return itself: log-probs stay fp32, whatever the head's dtype."""
        return self

    def __matmul__(self, head: Tensor) -> Tensor:
        """Return log-probs over all classes, `[N, V]`; of the head `[H, V]` only the width is used."""
        filled = self.log_other[:, None].expand(len(self), head.shape[1])
        return filled.scatter(-1, self.ids, self.log_probs)


def token_numbers(rows: Tensor, counts: Tensor) -> Tensor:
    """Return a number for each valid token of some rows of the distillation set, `[N]`: the seed of its draws."""
    inside = torch.cat([torch.arange(int(count)) for count in counts])
    return (derive(0, "teacher draws") >> 24) + rows.repeat_interleave(counts) * TOKENS_A_ROW + inside


def keep(layout: Layout, hidden: Tensor, head: Tensor, numbers: Tensor) -> dict[str, Tensor]:
    """Take the kept classes out of states `[N, H]`, `LOGIT_ROWS` tokens at a time; what a sparse shard stores."""
    take = _top if layout.kind == "topk" else _drawn
    parts = []
    for begin in range(0, max(1, len(hidden)), LOGIT_ROWS):
        window = slice(begin, begin + LOGIT_ROWS)
        log_p = (hidden[window].to(head.dtype) @ head.t()).float().log_softmax(-1)
        parts.append(take(layout, log_p, numbers[window].to(log_p.device)))
    found = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
    if "kept" in found:
        kept = found.pop("kept").cumsum(0)
        offsets = torch.cat([kept.new_zeros(1), kept])
        found["kept_offsets"] = offsets.int() if int(offsets[-1]) < 2**31 else offsets
    return found


def _top(layout: Layout, log_p: Tensor, numbers: Tensor) -> dict[str, Tensor]:
    top, ids = log_p.topk(layout.k, -1)
    top = top.to(layout.dtype)
    other = _each_other(log_p, ids, log_p.shape[-1] - layout.k)
    other = other.minimum(top[:, -1].float())  # rounding may not make another class likelier than a kept one
    return {"ids": ids.int(), "log_probs": top, "log_other": other}


def _drawn(layout: Layout, log_p: Tensor, numbers: Tensor) -> dict[str, Tensor]:
    ids = draw(log_p, uniform(numbers, layout.k)).sort(-1).values
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    at = first.flatten().nonzero()[:, 0]
    kept = first.sum(-1)
    return {
        "ids": ids.flatten()[at].int(),
        "log_probs": log_p.gather(-1, ids).flatten()[at].to(layout.dtype),
        "counts": torch.diff(at, append=at.new_tensor([first.numel()])).short(),
        "kept": kept,
        "log_other": _each_other(log_p, ids, log_p.shape[-1] - kept),
    }


def _each_other(log_p: Tensor, ids: Tensor, others: int | Tensor) -> Tensor:
    """log-prob of each class outside `ids`, `[N]`, if their mass is spread evenly."""
    count = torch.as_tensor(others, device=log_p.device).to(log_p.dtype)
    return (log_tail(log_p, ids)[:, 0] - count.log()).clamp(min=EXCLUDED)


def cut(shard: Mapping[str, Tensor], begin: int, end: int) -> dict[str, Tensor]:
    """Return what a shard holds of the tokens `begin … end`."""
    columns = {name: tensor for name, tensor in shard.items() if name not in ("offsets", "kept_offsets")}
    flat = (begin, end)
    if "kept_offsets" in shard:
        flat = tuple(int(shard["kept_offsets"][token]) for token in (begin, end))
    return {
        name: tensor[slice(*flat)] if name in ("ids", "log_probs", "counts") else tensor[begin:end]
        for name, tensor in columns.items()
    }


def unpack(columns: Mapping[str, Tensor]) -> tuple[Tensor | SparseRows, Tensor | None]:
    """Return what stands for the states of some tokens, and the drawn classes `[N, K]` of a sampled layout.

    Args:
        columns: what `cut` gave, of some rows one after another.
    """
    if "hidden" in columns:
        return columns["hidden"], None
    ids, log_probs, tokens = columns["ids"].long(), columns["log_probs"].float(), len(columns["log_other"])
    if "counts" not in columns:
        return SparseRows(ids, log_probs, columns["log_other"]), None
    at = torch.repeat_interleave(columns["counts"].long())
    drawn, logs = (flat.index_select(0, at).view(tokens, len(at) // max(1, tokens)) for flat in (ids, log_probs))
    return SparseRows(drawn, logs, columns["log_other"]), drawn
