"""The teacher's signal: final hidden states, cached on disk or made live, through one interface.

What enters the output head is `H` numbers a token; the logits are `V`. The former are stored, exact for every
objective, with log p(target) and the entropy beside them, so that ATKD can rank a whole global batch without a logit.
Sparse layouts (`layouts.py`) store some classes instead.

A cache is a folder of immutable safetensors shards of `SHARD_ROWS` blocks, and a manifest, replaced atomically after
each shard, that lists the complete ones with their sha256. Whoever writes holds the cache's lock. Readers map shards
into memory: the pages belong to the file, so any number of workers share them, and what is not read costs nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kdbench import failpoints
from kdbench.api import Dist
from kdbench.distill import memory
from kdbench.distill.data import Blocks
from kdbench.distill.layouts import LOGIT_ROWS, Layout, cut, keep, token_numbers, unpack
from kdbench.distill.loss import TeacherStates
from kdbench.distill.memory import MicroBatch
from kdbench.distill.models import body, head
from kdbench.errors import StoreError
from kdbench.evaluate.token_scores import quantiles
from kdbench.files import atomic_write, is_broken, read_json, sealed, sha256_file, write_json

SHARD_ROWS = 64
FORWARD_ROWS = 16  # fixed, so that a shard's bytes do not depend on who asked for it; fewer where memory runs out
OPEN_SHARDS = 256  # mapped at once by a process; opening one again costs a tenth of a millisecond


@dataclass(frozen=True)
class Signal:
    """What the teacher says of the valid tokens of some blocks, in reading order (`N` tokens).

    Attributes:
        states: of a sparse layout the kept classes stand where the hidden states stand.
        log_prob_target, entropy: `[N]`, of the whole distribution.
        drawn: `[N, K]` int64, the classes drawn from the teacher; of a sampled layout alone.
    """

    states: TeacherStates
    log_prob_target: Tensor
    entropy: Tensor
    drawn: Tensor | None = None


def joined(parts: list[Signal]) -> Signal:
    """Put signals of one teacher one after another."""
    if len(parts) == 1:
        return parts[0]
    hidden = torch.cat([part.states.hidden for part in parts])
    return Signal(
        TeacherStates(hidden, parts[0].states.head),
        torch.cat([part.log_prob_target for part in parts]),
        torch.cat([part.entropy for part in parts]),
    )


class Teacher(Protocol):
    """A source of signals."""

    model: nn.Module

    def signal(self, rows: Tensor) -> Signal:
        """Return the signal of the distillation set's given rows."""
        ...

    def expect(self, rows: Tensor) -> None:
        """Be told which rows are asked for next."""
        ...

    def read(self, blocks: Blocks) -> Signal:
        """Return the signal of other text."""
        ...


def forward_rows(processes: int = 1) -> MicroBatch:
    """Return how many rows are read at once; who reads often keeps it, so that what does not fit is tried once."""
    return MicroBatch(FORWARD_ROWS, FORWARD_ROWS * processes, processes=processes)


@torch.no_grad()
def read_states(
    model: nn.Module,
    blocks: Blocks,
    vocabulary: int,
    precision: str,
    dtype: torch.dtype,
    at_once: MicroBatch | None = None,
) -> Signal:
    """Run the teacher over blocks, fewer rows at once where memory runs out; keep the valid positions only.

    Statistics are made from the states as they will be stored, so that cached and live teachers agree.

    Raises:
        OutOfMemory: a single row does not fit.
    """
    weight, at_once = head(model, vocabulary), at_once or forward_rows()

    def read(part: Blocks, rows: int | None) -> Signal:
        cuts = torch.arange(len(part)).split(rows or FORWARD_ROWS)
        return joined([_forward(model, weight, part.select(cut), precision, dtype) for cut in cuts])

    def sizes() -> str:
        return memory.sizes(model, FORWARD_ROWS, blocks.length, vocabulary)

    parts = [blocks.select(part) for part in torch.arange(len(blocks)).split(FORWARD_ROWS)]
    return joined([at_once.fit(partial(read, part), sizes) for part in parts])


def _forward(model: nn.Module, weight: Tensor, blocks: Blocks, precision: str, dtype: torch.dtype) -> Signal:
    device = weight.device  # of a spread model, parameters may lie anywhere
    ids, mask = blocks.ids.long().to(device), blocks.mask[:, 1:].to(device)
    places = None if blocks.positions is None else blocks.positions[:, :-1].to(device)
    hidden = body(model, ids[:, :-1], precision, places)[mask].to(dtype)
    target = ids[:, 1:][mask]
    log_probs, entropies = [], []
    for part in range(0, max(1, len(target)), LOGIT_ROWS):  # once at least, so that no token gives empty tensors
        window = slice(part, part + LOGIT_ROWS)
        dist = Dist(hidden[window].to(weight.dtype) @ weight.t(), target[window])
        log_probs.append(dist.log_prob_target)
        entropies.append(dist.entropy)
    return Signal(TeacherStates(hidden, weight), torch.cat(log_probs), torch.cat(entropies))


@dataclass
class LiveTeacher:
    """Runs the teacher again for every batch: exact, and the only way for text made while training."""

    model: nn.Module
    blocks: Blocks | None
    vocabulary: int
    precision: str
    dtype: torch.dtype = torch.float32
    at_once: MicroBatch = field(default_factory=forward_rows)

    def expect(self, rows: Tensor) -> None:
        """Read nothing ahead: the model has one stream of work."""

    def signal(self, rows: Tensor) -> Signal:
        """Return the signal of the given rows."""
        assert self.blocks is not None
        return self.read(self.blocks.select(rows))

    def read(self, blocks: Blocks) -> Signal:
        """Return the signal of any text."""
        return read_states(self.model, blocks, self.vocabulary, self.precision, self.dtype, self.at_once)


@dataclass
class CachedTeacher:
    """Reads stored states. The caller has verified the cache against its sha256 sums.

    Text that is not stored goes to the `live` teacher of the same weights and dtype.
    """

    folder: Path
    live: LiveTeacher
    _shards: OrderedDict[int, dict[str, Tensor]] = field(default_factory=OrderedDict)

    @property
    def model(self) -> nn.Module:
        """The teacher itself."""
        return self.live.model

    @cached_property
    def head(self) -> Tensor:
        """The teacher's output head."""
        return head(self.live.model, self.live.vocabulary)

    def read(self, blocks: Blocks) -> Signal:
        """Return the signal of any text."""
        return self.live.read(blocks)

    def signal(self, rows: Tensor) -> Signal:
        """Return the signal of the given rows."""
        columns = self._ahead.take(rows) or self._read(rows)
        states, drawn = unpack(columns)
        return Signal(TeacherStates(states, self.head), columns["log_prob_target"], columns["entropy"], drawn)

    def expect(self, rows: Tensor) -> None:
        """Read the signal of these rows in the background, since they are asked for next."""
        self._ahead.start(rows)

    def _read(self, rows: Tensor) -> dict[str, Tensor]:
        device = self.head.device
        parts = [self._row(int(row)) for row in rows]
        return {name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]}

    @cached_property
    def _ahead(self) -> _Ahead:
        return _Ahead(self._read)

    def _row(self, row: int) -> dict[str, Tensor]:
        shard = self._shard(row // SHARD_ROWS)
        begin, end = shard["offsets"][row % SHARD_ROWS : row % SHARD_ROWS + 2].tolist()
        return cut(shard, begin, end)

    def _shard(self, number: int) -> dict[str, Tensor]:
        """Return a mapped shard; the one not read for longest makes room."""
        if number not in self._shards:
            from safetensors.torch import load_file

            self._shards[number] = load_file(self.folder / _shard_name(number))
            if len(self._shards) > OPEN_SHARDS:
                self._shards.popitem(last=False)
        self._shards.move_to_end(number)
        return self._shards[number]


@dataclass
class _Ahead:
    """One read in a thread of its own; whoever takes waits for it, so that two never read at once."""

    read: Callable[[Tensor], dict[str, Tensor]]
    rows: Tensor | None = None
    pending: Future[dict[str, Tensor]] | None = None
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "teacher states"))

    def start(self, rows: Tensor) -> None:
        if self.pending is None:
            self.rows, self.pending = rows, self.pool.submit(self.read, rows)

    def take(self, rows: Tensor) -> dict[str, Tensor] | None:
        """Return what was read if it is of these rows; None if it was of others, or nothing was."""
        if self.pending is None:
            return None
        pending, expected = self.pending, self.rows
        self.pending = self.rows = None
        found = pending.result()
        return found if expected is not None and torch.equal(expected, rows) else None


def _shard_name(number: int) -> str:
    return f"shard-{number:06d}.safetensors"


def write_cache(
    folder: Path,
    blocks: Blocks,
    read: Callable[[Blocks], Signal],
    on_shard: Callable[[int, int], None],
    layout: Layout | None = None,
) -> None:
    """Store the signal of all blocks.

    Args:
        read: runs the teacher over blocks, states in the layout's `read_dtype`.
        on_shard: as for `write_shards`.
        layout: what is stored of a token; default: its hidden state.
    """
    layout = layout or Layout()
    write_shards(folder, blocks, lambda number, part: _tensors(read(part), part, layout, number), on_shard)


def write_shards(
    folder: Path,
    blocks: Blocks,
    make: Callable[[int, Blocks], dict[str, Tensor]],
    on_shard: Callable[[int, int], None],
) -> None:
    """Store what is made of all blocks; the caller holds the folder's lock. Goes on after the last whole shard.

    Args:
        make: given a shard's number and its blocks, returns its tensors.
        on_shard: told of each finished shard and of how many there are; may raise to stop.
    """
    from safetensors.torch import save

    manifest = {"shard_rows": SHARD_ROWS, "shards": _manifest(folder)["shards"]}  # facts are recorded at the end
    count = -(-len(blocks) // SHARD_ROWS)
    for number in range(count):
        path = folder / _shard_name(number)
        entry = manifest["shards"].get(str(number))
        if entry is None or not path.is_file() or sha256_file(path) != entry:
            chosen = blocks.select(torch.arange(number * SHARD_ROWS, min((number + 1) * SHARD_ROWS, len(blocks))))
            failpoints.hit("shard")
            atomic_write(path, save(make(number, chosen)))
            manifest["shards"][str(number)] = sha256_file(path)
            write_json(folder / "manifest.json", sealed(manifest))
        on_shard(number + 1, count)


def record(folder: Path, **facts: Any) -> None:
    """Add facts to a cache's manifest, such as the measured effect of its layout."""
    write_json(folder / "manifest.json", sealed(_manifest(folder) | facts))


def uncertainty(folder: Path) -> dict[str, float]:
    """Return mean, quartiles and deciles over a cache's tokens of the teacher's UNC = 1 − p(target) (ATKD, §3)."""
    from safetensors import safe_open

    parts = []
    for number in range(len(_manifest(folder)["shards"])):
        with safe_open(folder / _shard_name(number), "pt") as shard:
            parts.append(-torch.expm1(shard.get_tensor("log_prob_target").double()))
    unsure = torch.cat(parts)
    if not len(unsure):
        return {}
    return {"mean": float(unsure.mean())} | quantiles(unsure.numpy())


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / "manifest.json")
        if found["shard_rows"] == SHARD_ROWS and isinstance(found["shards"], dict) and not is_broken(found):
            return found
    except (StoreError, KeyError, TypeError):
        pass
    return {"shard_rows": SHARD_ROWS, "shards": {}}


def _tensors(signal: Signal, blocks: Blocks, layout: Layout, number: int) -> dict[str, Tensor]:
    counts = blocks.mask[:, 1:].sum(1)
    if layout.sparse:
        rows = number * SHARD_ROWS + torch.arange(len(blocks))
        stored = keep(layout, signal.states.hidden, signal.states.head, token_numbers(rows, counts))
    else:
        stored = {"hidden": signal.states.hidden.cpu()}
    return stored | {
        "log_prob_target": signal.log_prob_target.float().cpu(),
        "entropy": signal.entropy.float().cpu(),
        "offsets": torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
    }
