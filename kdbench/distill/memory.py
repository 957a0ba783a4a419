"""Fit a step into memory: halve the micro-batch where it does not, or keep no activations inside the layers.

Where nothing can be cut, a shortage is one error with sizes and advice.
"""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from kdbench.errors import ConfigError, OutOfMemory

T = TypeVar("T")
WORDS = ("bad_alloc", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
RAISED = (RuntimeError, MemoryError, OSError)  # torch's own is the first of these
RECORDED = "micro_batch"  # in a step's record, from the first step on that had to be cut smaller
ADVICE = (
    "set train.gradient_checkpointing: true, train.lora, a smaller data.length, precision: bfloat16, or take a larger "
    "device; fewer jobs that share the device (--workers, --gpu-share) help too"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out: CUDA's, the CPU allocator's, the system's, accelerate's."""
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):  # a file that cannot be mapped, a process that cannot be started
        return error.errno == errno.ENOMEM
    text = str(error)
    return isinstance(error, RuntimeError) and (should_reduce_batch_size(error) or any(word in text for word in WORDS))


def _in_short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def explained(what: str, sizes: Callable[[], str] = str) -> Iterator[None]:
    """Turn a shortage of memory inside into the error that a user can do something about.

    Raises:
        OutOfMemory: `what` does not fit; `sizes` says what it holds.
    """
    try:
        yield
    except RAISED as error:
        if not is_out_of_memory(error):
            raise
        found = "; ".join(part for part in (sizes(), _in_short(error)) if part)
        raise OutOfMemory(f"out of memory: {what} does not fit ({found}); {ADVICE}") from error


@dataclass
class MicroBatch:
    """How many rows go through a model at once; halved where memory runs out, never raised again.

    The global batch stays: rows are added up, so nothing but the order of additions changes.

    Attributes:
        rows: None: the whole batch.
        whole: rows of the global batch.
        halved: whether it was, in this training.
        processes: that train together; none of them can take smaller steps than the others.
    """

    rows: int | None
    whole: int
    halved: bool = False
    processes: int = 1

    @classmethod
    def resumed(
        cls, asked: int | None, whole: int, history: Sequence[Mapping[str, Any]], processes: int = 1
    ) -> MicroBatch:
        """Go on with what fitted before an interruption."""
        found = history[-1].get(RECORDED) if history else None
        return cls(found or asked, whole, found is not None, processes)

    def fit(self, compute: Callable[[int | None], T], sizes: Callable[[], str]) -> T:
        """Return `compute(rows)`, with fewer rows each time that memory runs out.

        Raises:
            OutOfMemory: a single row does not fit, or of several processes one has no room; `sizes` says for what.
        """
        while True:
            try:
                return compute(self.rows)
            except RAISED as error:
                if not is_out_of_memory(error):
                    raise
                reason = _in_short(error)
            self._halve(reason, sizes)  # outside `except`: the error holds the tensors of the frames that failed

    def _halve(self, reason: str, sizes: Callable[[], str]) -> None:
        if self.processes > 1:
            mine = -(-self.whole // self.processes)
            raise OutOfMemory(
                f"out of memory: {min(self.rows or mine, mine)} rows at once do not fit into one of {self.processes} "
                f"processes ({sizes()}; {reason}); set a smaller train.micro_batch, a larger fsdp, or {ADVICE}"
            )
        rows = min(self.rows or self.whole, self.whole)
        if rows == 1:
            raise OutOfMemory(f"out of memory: a micro-batch of one row does not fit ({sizes()}; {reason}); {ADVICE}")
        self.rows, self.halved = rows // 2, True
        give_back()

    def record(self) -> dict[str, int]:
        """Return what a step's record says of it: nothing where the plan's own size fits."""
        return {RECORDED: int(self.rows or self.whole)} if self.halved else {}


def give_back() -> None:
    """Let the device have the memory that nothing holds any more; torch keeps it otherwise."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def facts(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what DONE.json says of micro-batches that had to be cut: rows of each, by the first step that had it."""
    found: dict[int, int] = {}
    for record in history:
        if RECORDED in record:
            found.setdefault(record[RECORDED], record["step"])
    return {"micro_batches_cut": [{"rows": rows, "from_step": step} for rows, step in found.items()]} if found else {}


def sizes(model: nn.Module, rows: int, length: int, vocabulary: int) -> str:
    """Say in words what a step holds: weights, of those that learn gradients and two moments, and its rows."""
    total = sum(parameter.numel() for parameter in model.parameters())
    learnt = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    held = sum(p.numel() * p.element_size() for p in model.parameters()) + 12 * learnt
    return (
        f"{total:,} parameters, {learnt:,} trained, take {held / 2**20:,.0f} MiB with gradients and moments; "
        f"rows of {length:,} tokens, {vocabulary:,} classes, {rows:,} rows in the batch"
    )


@contextmanager
def checkpointed(model: nn.Module, enabled: bool, dropout: bool) -> Iterator[None]:
    """Let transformers keep a layer's inputs alone and compute the rest again in the backward pass, while inside.

    Its layers do so in training mode only. Where the architecture's dropout is not wanted, its rates are 0 meanwhile.

    Raises:
        ConfigError: the architecture cannot.
    """
    if not enabled:
        yield
        return
    _enable(model)
    training, rates = model.training, [] if dropout else list(_rates(model))
    for module, name, _ in rates:
        setattr(module, name, 0.0)
    model.train()
    try:
        yield
    finally:
        for module, name, rate in rates:
            setattr(module, name, rate)
        model.train(training)
        _disable(model)


def _enable(model: Any) -> None:
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ConfigError(f"train.gradient_checkpointing: {model.config.model_type} of transformers cannot do it")
    if hasattr(model, "activation_checkpointing_enable"):  # its name from transformers 5.24 on
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _disable(model: Any) -> None:
    newer = getattr(model, "activation_checkpointing_disable", None)
    (newer or model.gradient_checkpointing_disable)()


def _rates(model: nn.Module) -> Iterator[tuple[nn.Module, str, float]]:
    """Yield every dropout rate of a model, wherever its modules keep one."""
    for module in model.modules():
        names = ["p"] if isinstance(module, nn.Dropout) else [name for name in vars(module) if "drop" in name]
        for name in names:
            if isinstance(value := getattr(module, name), float):
                yield module, name, value
