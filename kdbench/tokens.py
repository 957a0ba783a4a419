"""What an objective may know: of the tokens of a step, of where training stands; and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kdbench.compiling import once
from kdbench.seeding import uniform


@dataclass(frozen=True)
class Step:
    """Where training stands: a 0-based step of `total`, and what the objective keeps between steps."""

    index: int = 0
    total: int = 1
    state: Mapping[str, float] = field(default_factory=dict)

    @property
    def done(self) -> float:
        """Share of the training that is over, 0 ≤ done < 1."""
        return self.index / self.total


@dataclass(frozen=True)
class Measured:
    """What an objective may learn from after a step.

    Attributes:
        loss: of the step.
        watched: means over its tokens of what the objective watches.
        validate: makes the student's cross-entropy on held-out text, nats a token; costs a pass over it.
    """

    loss: float
    watched: Mapping[str, float] = field(default_factory=dict)
    validate: Callable[[], float] = lambda: float("nan")


@dataclass(frozen=True)
class Tokens:
    """What is known of valid tokens before their loss is made: of *all* of an optimiser step, or of a part of them.

    Attributes:
        sequence: `[N]` int64, which sequence of the global batch a token belongs to; ascending.
        log_prob_target: `[N]`, the teacher's log p(target); None where there is no teacher.
        teacher_entropy: `[N]`, nats; None where there is no teacher.
        sampled: `[N]` bool, whether the token was generated while training; None means that none was.
        target: `[N]` int64, the token that really follows.
        number: `[N]` int64, a number that no other token of the training has: the seed of its noise.
        drawn: `[N, K]` int64, classes that were drawn from the teacher when its cache was written, equal ones side by
            side; None where the teacher's whole distribution is at hand.
        known: what the objective's `probe` and `derive` found, each `[N]`.
    """

    sequence: Tensor
    log_prob_target: Tensor | None = None
    teacher_entropy: Tensor | None = None
    sampled: Tensor | None = None
    target: Tensor | None = None
    number: Tensor | None = None
    drawn: Tensor | None = None
    known: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.sequence.numel()

    def part(self, window: slice) -> Tokens:
        """Return what is known of some of them."""
        columns = {name: getattr(self, name) for name in COLUMNS} | {"number": self._numbers}
        cut = {name: None if column is None else column[window] for name, column in columns.items()}
        return Tokens(**cut, known={name: column[window] for name, column in self.known.items()})

    def knowing(self, found: Mapping[str, Tensor]) -> Tokens:
        """Return these tokens with more that is known of them."""
        return replace(self, known={**self.known, **found})

    @once
    def uncertainty(self) -> Tensor:
        """UNC = 1 − p(target) under the teacher, `[N]` (ATKD's uncertainty coefficient)."""
        if self.log_prob_target is None:
            raise ValueError("these tokens have no teacher, so no uncertainty")
        return -torch.expm1(self.log_prob_target)

    @once
    def from_student(self) -> Tensor:
        """`[N]` bool: generated while training."""
        return torch.zeros_like(self.sequence, dtype=torch.bool) if self.sampled is None else self.sampled

    def uniform(self, draws: int) -> Tensor:
        """Return `[N, draws]` numbers in [0, 1) that depend on the token alone, not on batch, chunk or global RNG."""
        return uniform(self._numbers, draws)

    @property
    def _numbers(self) -> Tensor:
        return torch.arange(len(self), device=self.sequence.device) if self.number is None else self.number


COLUMNS = ("sequence", "log_prob_target", "teacher_entropy", "sampled", "target", "number", "drawn")


@dataclass(frozen=True)
class Split:
    """A divergence decoupled at the target: D = target + coefficient · diversity, each `[N]`."""

    target: Tensor
    diversity: Tensor
    coefficient: Tensor

    def times(self, scale: float) -> Split:
        """Return the split of scale · D."""
        return Split(scale * self.target, scale * self.diversity, self.coefficient)


@dataclass(frozen=True)
class LossParts:
    """A loss and what it is made of.

    Attributes:
        total: scalar, differentiable.
        terms: term name → its weighted sum (detached scalars; they add up to `total`).
        tokens: number of valid tokens.
        watched: what an objective only wants logged, such as the mass that a top-k keeps; means over tokens.
    """

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0
    watched: dict[str, Tensor] = field(default_factory=dict)
