"""The contract between kdbench and a distillation objective.

An objective is *terms* (what is measured at one token) × *weights* (how much each token counts) × *trajectories*
(whose text is learnt from). The loss of one optimiser step is Σ_term Σ_token weight · term: no mean hides in a term,
so cutting the batch into micro-batches, chunks or ranks cannot change it. A whole plugin:

    from kdbench.api import Objective, Source
    from kdbench.divergences import kl

    class SkewKL(Objective):
        \"\"\"Forward KL to a mixture of teacher and student.\"\"\"

        name = "my_skew_kl"
        source = Source(title="DistiLLM", year=2024, url="https://arxiv.org/abs/2402.03898", equation="SKL")
        alpha: float = Field(0.1, ge=0, lt=1)

        def terms(self, student, teacher, target):
            ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from kdbench.divergences import Dist

__all__ = ["Dist", "Field", "LossParts", "Objective", "Source", "Split", "Tokens", "Trajectories", "Wrapper"]


@dataclass(frozen=True)
class Source:
    """Where an objective was published, and how other trainers' functions of that name differ."""

    title: str
    year: int
    url: str = ""
    equation: str = ""
    bibtex: str = ""
    differs: str = ""


@dataclass(frozen=True)
class Trajectories:
    """Whose text is learnt from. `corpus`: the data as given. Other kinds are generated while training."""

    kind: Literal["corpus", "teacher", "student", "mixture"] = "corpus"


CORPUS = Trajectories()


@dataclass(frozen=True)
class Tokens:
    """What is known of *all* valid tokens of one optimiser step before its loss is made (`N` tokens).

    Attributes:
        sequence: `[N]` int64, which sequence of the global batch a token belongs to.
        log_prob_target: `[N]`, the teacher's log p(target); None where there is no teacher.
        teacher_entropy: `[N]`, nats; None where there is no teacher.
        sampled: `[N]` bool, whether the student sampled the token; None means that none was.
    """

    sequence: Tensor
    log_prob_target: Tensor | None = None
    teacher_entropy: Tensor | None = None
    sampled: Tensor | None = None

    def __len__(self) -> int:
        return self.sequence.numel()

    @cached_property
    def uncertainty(self) -> Tensor:
        """UNC = 1 − p(target) under the teacher, `[N]` (ATKD's uncertainty coefficient)."""
        if self.log_prob_target is None:
            raise ValueError("these tokens have no teacher, so no uncertainty")
        return -torch.expm1(self.log_prob_target)


@dataclass(frozen=True)
class Split:
    """A divergence decoupled at the target: D = target + coefficient · diversity, each `[N]`."""

    target: Tensor
    diversity: Tensor
    coefficient: Tensor


@dataclass(frozen=True)
class LossParts:
    """A loss and what it is made of.

    Attributes:
        total: scalar, differentiable.
        terms: term name → its weighted sum (detached scalars; they add up to `total`).
        tokens: number of valid tokens.
    """

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0


class Objective(BaseModel):
    """A published distillation objective. Its pydantic fields are its hyper-parameters, typed and bounded.

    Class attributes:
        name: how suites and the command line call it.
        source: the publication.
        needs_teacher: False for plain fine-tuning; such an arm runs once a seed, not once a teacher.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    source: ClassVar[Source]
    needs_teacher: ClassVar[bool] = True

    @property
    def trajectories(self) -> Trajectories:
        """Whose text is learnt from; the corpus unless an objective says otherwise."""
        return CORPUS

    def terms(self, student: Dist, teacher: Dist | None, target: Tensor) -> dict[str, Tensor]:
        """Return each term of the loss, one number a token: name → `[N]`, in nats."""
        raise NotImplementedError(f"objective {self.name!r} has no terms()")

    def weights(self, tokens: Tokens) -> Mapping[str, Tensor]:
        """Return how much each token counts in each term: name → `[N]`. A term not named counts 1/N everywhere."""
        return {}

    def split(self, student: Dist, teacher: Dist, target: Tensor) -> Split:
        """Return the divergence decoupled into its target and its diversity part, for wrappers such as ATKD."""
        raise NotImplementedError(f"objective {self.name!r} cannot be decoupled: it has no split()")

    @property
    def label(self) -> str:
        """The short name in tables: `kl`, `reverse_kl+atkd`, `atkd(hard_fraction=0.7)`."""
        return self.name + self._settings()

    def _settings(self, hidden: tuple[str, ...] = ()) -> str:
        changed = [
            f"{key}={getattr(self, key)}"
            for key, info in type(self).model_fields.items()
            if key not in hidden and getattr(self, key) != info.get_default(call_default_factory=True)
        ]
        return f"({','.join(changed)})" if changed else ""

    def spec(self) -> dict[str, Any]:
        """Return the whole specification as plain data: `kdbench.objective(o.spec()) == o`."""
        values = {key: getattr(self, key) for key in type(self).model_fields}
        return {"name": self.name} | {k: v.spec() if isinstance(v, Objective) else v for k, v in values.items()}


class Wrapper(Objective):
    """An objective wrapped round another, `base`: it decides which tokens count, or which part of a divergence."""

    base: Objective
    default_base: ClassVar[str] = "kl"

    @property
    def trajectories(self) -> Trajectories:
        return self.base.trajectories

    @property
    def label(self) -> str:
        stem = self.name if self.base.label == self.default_base else f"{self.base.label}+{self.name}"
        return stem + self._settings(hidden=("base",))
