"""Where the text of an optimiser step comes from: the corpus, the teacher's text, fresh rollouts, or a replay buffer.

Everything is a function of (seed, step) and of what `pack` returns, which stands in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kdbench.api import Sampling, Trajectories
from kdbench.distill.data import Blocks, batch_rows
from kdbench.distill.instructions import prompts
from kdbench.distill.rollout import Limits
from kdbench.seeding import derive, generator

Write = Callable[[Sampling, Sequence[Tensor], int], tuple[Blocks, dict[str, float]]]


@dataclass(frozen=True)
class Text:
    """The text of one global batch: rows of the corpus first, then rows that were written.

    Attributes:
        rows: the corpus rows, `[R]`; their teacher's signal may be cached.
        blocks: all rows, `[B, T]`, the first R of them the corpus'.
        sampled: `[B]` bool, written while training.
        stats: what is to be logged of the writing.
    """

    rows: Tensor
    blocks: Blocks
    sampled: Tensor
    stats: dict[str, float] = field(default_factory=dict)


@dataclass
class TextSource:
    """Gives each step its text.

    Args:
        corpus: the distillation set.
        teacher_text: what the teacher wrote after the same rows' prompts; None where no objective asks for it.
        limits: of generation; None where nothing is generated.
        write: writes after prompts, given a seed.
    """

    corpus: Blocks
    seed: int
    batch_rows: int
    teacher_text: Blocks | None = None
    limits: Limits | None = None
    write: Write | None = None
    held: Text | None = None
    known: dict[str, Tensor] = field(default_factory=dict)
    replay: Blocks | None = None

    def text(self, step: int, wanted: Trajectories) -> Text:
        """Return the text of a step; what a rollout's first step found in `known` is kept while it is reused."""
        first = step - step % wanted.reuse
        if wanted.rollout is not None and first != step and self.held is not None:
            return self.held
        self.known, self.held = {}, None
        found = self._text(first, wanted)
        if wanted.reuse > 1 and bool(found.sampled.any()):
            self.held = replace(found, stats={})
        return found

    def corpus_rows(self, step: int) -> Tensor:
        """Return the rows of the corpus that a step reads, `[R]`, or whose prompts it writes after."""
        return batch_rows(self.seed, step, len(self.corpus), self.batch_rows)

    def _text(self, step: int, wanted: Trajectories) -> Text:
        rows = self.corpus_rows(step)
        if wanted.rollout is None:
            return self._fixed(rows, wanted)
        if wanted.paired:
            some = rows[: max(1, len(rows) // 2)]
            return _join(self._fixed(some, wanted), self._written(step, wanted, some))
        draw = float(torch.rand((), generator=generator(self.seed, "source", step), dtype=torch.float64))
        if draw >= wanted.chance:
            return self._fixed(rows, wanted)
        if not wanted.replay or draw < wanted.chance * wanted.fresh or self._stored() < wanted.replay:
            return self._written(step, wanted, rows)
        return self._replayed(step)

    def _fixed(self, rows: Tensor, wanted: Trajectories) -> Text:
        none = torch.zeros(len(rows), dtype=torch.bool)
        if wanted.fixed == "corpus":
            return Text(rows, self.corpus.select(rows), none)
        assert self.teacher_text is not None
        return Text(rows[:0], self.teacher_text.select(rows), none)

    def _written(self, step: int, wanted: Trajectories, rows: Tensor) -> Text:
        assert self.limits is not None and self.write is not None and wanted.rollout is not None
        given = prompts(self.corpus.select(rows), self.limits)
        blocks, stats = self.write(wanted.rollout, given, derive(self.seed, "rollout", step))
        if wanted.replay:
            old = blocks if self.replay is None else _stack(self.replay, blocks)
            self.replay = Blocks(old.ids[-wanted.replay :], old.mask[-wanted.replay :])
        return Text(rows[:0], blocks, torch.ones(len(rows), dtype=torch.bool), stats)

    def _stored(self) -> int:
        return 0 if self.replay is None else len(self.replay)

    def _replayed(self, step: int) -> Text:
        assert self.replay is not None
        drawn = torch.randint(len(self.replay), (self.batch_rows,), generator=generator(self.seed, "replay", step))
        return Text(drawn[:0], self.replay.select(drawn), torch.ones(len(drawn), dtype=torch.bool), {"replayed": 1.0})

    def pack(self) -> dict[str, Tensor]:
        """Return what the next step needs, as tensors by name."""
        found = {f"known/{name}": value for name, value in self.known.items()} if self.held else {}
        for name, blocks in (("held", self.held and self.held.blocks), ("replay", self.replay)):
            if blocks is not None:
                found |= {f"{name}/ids": blocks.ids, f"{name}/mask": blocks.mask}
            if blocks is not None and blocks.positions is not None:
                found[f"{name}/positions"] = blocks.positions
        if self.held:
            found |= {"held/rows": self.held.rows, "held/sampled": self.held.sampled}
        return found

    def unpack(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `pack` returned."""
        if "replay/ids" in tensors:
            self.replay = Blocks(tensors["replay/ids"], tensors["replay/mask"])
        if "held/ids" in tensors:
            blocks = Blocks(tensors["held/ids"], tensors["held/mask"], tensors.get("held/positions"))
            self.held = Text(tensors["held/rows"], blocks, tensors["held/sampled"])
            self.known = {n.removeprefix("known/"): t for n, t in tensors.items() if n.startswith("known/")}


def facts(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what DONE.json says of the writing while training: how many tokens, if any was."""
    found = [record["rollout/tokens"] for record in history if "rollout/tokens" in record]
    return {"generated_tokens": int(sum(found))} if found else {}


def _join(a: Text, b: Text) -> Text:
    sampled = torch.cat([a.sampled, b.sampled])
    return Text(torch.cat([a.rows, b.rows]), _stack(a.blocks, b.blocks), sampled, {**a.stats, **b.stats})


def _stack(a: Blocks, b: Blocks) -> Blocks:
    places = None
    if a.positions is not None or b.positions is not None:
        places = torch.cat([_places(a), _places(b)])
    return Blocks(torch.cat([a.ids, b.ids]), torch.cat([a.mask, b.mask]), places)


def _places(blocks: Blocks) -> Tensor:
    """Return positions; those of rows that are one piece of text simply count."""
    if blocks.positions is not None:
        return blocks.positions
    return torch.arange(blocks.length, dtype=torch.int32).expand(blocks.ids.shape)
