"""Several processes that train one student: each holds a part of its weights and reads a part of every batch.

The weights are cut by torch's FSDP2 (`fully_shard`) and put together a layer at a time, where they are used. The loss
is that of one process: rows are added up and never averaged, and an objective's weights are made from every token of
the global batch, of which all processes tell each other what they know.

`fully_shard` is called directly. accelerate's plugin for it prepares a model for `model(...)`, while the loss is made
from hidden states and the head; and it runs on GPUs alone, so that it could not be tested without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from kdbench.errors import ConfigError

if TYPE_CHECKING:
    from kdbench.distill.train import Batch, Sums

T = TypeVar("T")


class Alone:
    """A training of one process. Everything that several must agree on is here, and does nothing."""

    rank, size = 0, 1

    def shard(self, model: nn.Module) -> None:
        """Cut a model's weights, in place."""

    def inside(self, work: Callable[[], T]) -> T:
        """Return `work()`, in which the student may be asked for hidden states and for its whole head."""
        return work()

    def rows(self, count: int) -> slice:
        """Return the rows of a global batch that are read here."""
        return slice(0, count)

    def part(self, batch: Batch) -> Batch:
        """Return what this process reads of a global batch, whose teacher's signal is of these rows alone."""
        return batch

    def joined(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put what each process found of its tokens one after another."""
        return found

    def everyone(self, value: T) -> list[T]:
        """Return the value of every process."""
        return [value]

    def first(self, value: T) -> T:
        """Return the first process' value."""
        return value

    def in_turn(self, work: Callable[[], T]) -> T:
        """Return `work()`, done by the first process before all others."""
        return work()


class Ranks(Alone):
    """One of several processes, each with a device of its own.

    Args:
        rank, size: which one, of how many.
        device: on which it computes.
        meeting: a file that does not exist yet, where the processes of one training find each other.
    """

    def __init__(self, rank: int, size: int, device: torch.device, meeting: Path):
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh

        self.rank, self.size, self.device, self.dist = rank, size, device, dist
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=size)
        self.mesh = init_device_mesh(device.type, (size,))
        self.root: nn.Module | None = None

    def leave(self) -> None:
        """End the group; every process does."""
        self.dist.destroy_process_group()

    def shard(self, model: nn.Module) -> None:
        """Cut the weights: each layer is a unit, and what is outside the layers is one, tied weights with it."""
        from torch.distributed.fsdp import fully_shard

        for layer in layers(model):
            fully_shard(layer, mesh=self.mesh, reshard_after_forward=True)
        self.root = _Root(model)
        # Cut again after each forward pass, or a pass without gradients would leave weights behind that grow stale.
        fully_shard(self.root, mesh=self.mesh, reshard_after_forward=True)
        model._is_fsdp_managed_module = True  # transformers' sign to keep generation in step

    def inside(self, work: Callable[[], T]) -> T:
        assert self.root is not None
        return self.root(work)

    def rows(self, count: int) -> slice:
        """Return the rows that are read here: contiguous, so that tokens keep their order; sizes differ by one."""
        if count < self.size:
            raise ConfigError(f"fsdp: expected a batch of at least {self.size} rows, one a process, got {count}")
        least, more = divmod(count, self.size)
        begin = self.rank * least + min(self.rank, more)
        return slice(begin, begin + least + (self.rank < more))

    def part(self, batch: Batch) -> Batch:
        """As `Alone.part`; all processes get as many rows, so that they take as many passes: one may be empty."""
        mine, count = self.rows(len(batch.ids)), len(batch.ids)
        signal = batch.signal
        if signal is not None:
            told = {"log_prob_target": signal.log_prob_target, "entropy": signal.entropy}
            told |= {} if signal.drawn is None else {"drawn": signal.drawn}
            signal = replace(signal, **self.joined(told))
        tokens = replace(batch, signal=signal).tokens()
        rows = torch.arange(mine.start, mine.stop, device=batch.ids.device)
        mask = batch.mask[rows]
        if len(rows) < -(-count // self.size):
            rows = torch.cat([rows, rows[:1]])
            mask = torch.cat([mask, torch.zeros_like(mask[:1])])
        return replace(
            batch,
            ids=batch.ids[rows],
            mask=mask,
            signal=signal,
            sampled=batch.sampled[rows],
            positions=None if batch.positions is None else batch.positions[rows],
            of_all=tokens,
            first=int(batch.mask[: mine.start].sum()),
        )

    def joined(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        every = self.everyone({name: values.cpu() for name, values in found.items()})
        names = dict.fromkeys(name for one in every for name in one)  # one without tokens may have found nothing
        return {name: torch.cat([one[name] for one in every if name in one]).to(self.device) for name in names}

    def everyone(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.size
        self.dist.all_gather_object(found, value)
        return found

    def first(self, value: T) -> T:
        found = [value]
        self.dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
        return found[0]

    def in_turn(self, work: Callable[[], T]) -> T:
        if self.rank == 0:
            found = work()
            self.everyone(None)
            return found
        self.everyone(None)  # waits for the first
        return work()


class _Root(nn.Module):
    """What FSDP takes for the model: weights outside the layers are whole while its forward pass lasts."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], T]) -> T:
        return work()


def layers(model: Any) -> list[nn.Module]:
    """Return the layers of a transformers model, which it names as those that stay whole on a device.

    Raises:
        ConfigError: it names none.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    found = [part for part in model.modules() if type(part).__name__ in names and not isinstance(part, nn.Embedding)]
    if not found:
        raise ConfigError(f"fsdp: {model.config.model_type} of transformers names no layers to cut it by")
    return found


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that may be cut over processes, put together on the CPU; all of them must ask."""
    return tensor.full_tensor().cpu() if hasattr(tensor, "full_tensor") else tensor


def like(value: Tensor, other: Tensor) -> Tensor:
    """Return a whole tensor on the device of another one, and cut as that one is."""
    if not hasattr(other, "full_tensor"):
        return value.to(other.device)
    from torch.distributed.tensor import distribute_tensor

    cut = distribute_tensor(value.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
    return cut.clone()  # a view of the whole would keep all of it in memory


def clip(model: nn.Module, most: float) -> float:
    """Scale a model's gradient down to a norm of `most`; return the norm that it had."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), most)
    return float(whole(norm))


def total(parts: list[Sums]) -> Sums:
    """Add up `Sums` of several processes, in their order."""
    first, *others = parts
    for other in others:
        first.join(other)
    return first
