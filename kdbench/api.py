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

        def terms(self, student, teacher, tokens):
            ...

Methods that change while training (schedules, adaptive state) override `at` and `observe`; those that must know the
student's own statistics of the whole batch override `probe` and `derive`. All of them are pure: what they return is
kept by whoever trains, and stands in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from kdbench.divergences import SUPPORTS, Dist, draw, kl_of, narrowed_kl
from kdbench.tokens import LossParts, Measured, Split, Step, Tokens
from kdbench.trajectories import CORPUS, Sampling, Trajectories

__all__ = [
    "Dist",
    "Divergence",
    "Field",
    "ForwardForm",
    "LossParts",
    "Measured",
    "Objective",
    "Sampling",
    "Source",
    "Split",
    "Step",
    "Tokens",
    "Trajectories",
    "Wrapper",
]

WATCHED = "watch/"  # a term of such a name is logged as a mean over tokens and takes no part in the loss


@dataclass(frozen=True)
class Source:
    """Where an objective was published, and how other trainers' functions of that name differ."""

    title: str
    year: int
    url: str = ""
    equation: str = ""
    bibtex: str = ""
    differs: str = ""


class Objective(BaseModel):
    """A published distillation objective. Its pydantic fields are its hyper-parameters, typed and bounded.

    Class attributes:
        name: how suites and the command line call it.
        source: the publication.
        needs_teacher: False for plain fine-tuning; such an arm runs once a seed, not once a teacher.
        needs_signal: False where only the teacher's text is learnt from.
        variants: settings under a name of their own: `atkd@release`.
        exempt: conformance checks that cannot hold, each with its reason (`kdbench check`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    source: ClassVar[Source]
    needs_teacher: ClassVar[bool] = True
    needs_signal: ClassVar[bool] = True
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    exempt: ClassVar[Mapping[str, str]] = {}

    @property
    def reads_teacher(self) -> bool:
        """Whether the loss reads the teacher's distributions."""
        return self.needs_teacher and self.needs_signal

    @property
    def reads_support(self) -> tuple[str, int]:
        """Which of the teacher's classes the loss reads, one of `SUPPORTS`, and how many; `full`: all of them."""
        return "full", 0

    @property
    def trajectories(self) -> Trajectories:
        """Whose text is learnt from; the corpus unless an objective says otherwise."""
        return CORPUS

    def terms(self, student: Dist, teacher: Dist | None, tokens: Tokens) -> dict[str, Tensor]:
        """Return each term of the loss, one number a token: name → `[N]`, in nats."""
        raise NotImplementedError(f"objective {self.name!r} has no terms()")

    def weights(self, tokens: Tokens) -> Mapping[str, Tensor]:
        """Return how much each token counts in each term: name → `[N]`.

        `"*"` stands for all terms that are not named; without it these count 1/N everywhere.
        """
        return {}

    def split(self, student: Dist, teacher: Dist, tokens: Tokens) -> Split:
        """Return the divergence decoupled into its target and its diversity part, for wrappers such as ATKD."""
        raise NotImplementedError(f"objective {self.name!r} cannot be decoupled: it has no split()")

    @property
    def can_split(self) -> bool:
        """Whether `split` is there for these settings."""
        return type(self).split is not Objective.split

    def cross_entropy(self, student: Dist) -> dict[str, Tensor]:
        """Return the term of cross-entropy that is mixed in beside a divergence, if there is one."""
        return {}

    def probe(self, student: Dist, teacher: Dist | None, tokens: Tokens) -> Mapping[str, Tensor]:
        """Return what must be known of every token of the batch before any loss is made: name → `[N]`, no gradient.

        Costs a forward pass of the student; made once for each generated batch, else once a step.
        """
        return {}

    def derive(self, tokens: Tokens) -> Mapping[str, Tensor]:
        """Return what follows from all tokens of the batch together, such as an advantage or a rank: name → `[N]`."""
        return {}

    @property
    def probes(self) -> bool:
        """Whether `probe` has anything to say."""
        return type(self).probe is not Objective.probe

    @property
    def weighs(self) -> bool:
        """Whether what is known of all tokens decides anything."""
        own = type(self)
        return own.weights is not Objective.weights or own.derive is not Objective.derive or self.probes

    def at(self, step: Step) -> Objective:
        """Return the objective as it stands at a step: itself, unless it has a schedule or a state."""
        return self

    def observe(self, step: Step, measured: Measured) -> Mapping[str, float]:
        """Return the state after a step."""
        return step.state

    @property
    def label(self) -> str:
        """The short name in tables: `kl`, `reverse_kl+atkd`, `atkd(hard_fraction=0.7)`, `atkd@release`."""
        return self.name + self._settings()

    def _settings(self, hidden: tuple[str, ...] = ()) -> str:
        shown = {key: info.default for key, info in type(self).model_fields.items() if key not in hidden}
        changed = {key: getattr(self, key) for key, default in shown.items() if getattr(self, key) != default}
        named = ((name, {k: v for k, v in values.items() if v != shown[k]}) for name, values in self.variants.items())
        variant = next((name for name, settings in named if settings == changed), None)
        if variant:
            return f"@{variant}"
        return f"({','.join(f'{key}={value}' for key, value in changed.items())})" if changed else ""

    def spec(self) -> dict[str, Any]:
        """Return the whole specification as plain data: `kdbench.objective(o.spec()) == o`."""
        values = {key: getattr(self, key) for key in type(self).model_fields}
        return {"name": self.name} | {k: v.spec() if isinstance(v, Objective) else v for k, v in values.items()}


class Divergence(Objective):
    """An objective that compares two distributions at every token, with the fields that all of them share.

    L = (1 − ce) · (tau² if tau_sq) · D(p, q at temperature tau) + ce · CE(target, q at temperature 1)
    """

    tau: float = Field(1.0, gt=0, description="temperature of both distributions")
    tau_sq: bool = Field(False, description="multiply by tau², which keeps the gradient's scale")
    ce: float = Field(0.0, ge=0, le=1, description="share of cross-entropy on the target (1 − ρ, ρ the 'kd_ratio')")

    def compare(self, student: Dist, teacher: Dist, tokens: Tokens) -> dict[str, Tensor]:
        """Return the divergence's terms, name → `[N]`; both distributions are at temperature `tau` already."""
        raise NotImplementedError(f"objective {self.name!r} has no compare()")

    def decouple(self, student: Dist, teacher: Dist, tokens: Tokens) -> Split:
        """Return the split of what `compare` measures."""
        raise NotImplementedError(f"objective {self.name!r} cannot be decoupled: it has no decouple()")

    @property
    def scale(self) -> float:
        """What the divergence is multiplied by."""
        return (1 - self.ce) * (self.tau**2 if self.tau_sq else 1.0)

    @property
    def can_split(self) -> bool:
        return type(self).decouple is not Divergence.decouple

    def terms(self, student, teacher, tokens):
        measured = self.compare(student.tempered(self.tau), teacher.tempered(self.tau), tokens)
        found = {k: v if k.startswith(WATCHED) or self.scale == 1 else self.scale * v for k, v in measured.items()}
        return found | self.cross_entropy(student)

    def cross_entropy(self, student):
        return {"ce": -self.ce * student.log_prob_target} if self.ce else {}

    def split(self, student, teacher, tokens):
        return self.decouple(student.tempered(self.tau), teacher.tempered(self.tau), tokens).times(self.scale)


class ForwardForm(Divergence):
    """A divergence of the form KL(p‖r), p the teacher, which a sparse teacher can serve too.

    Of p only some classes may be kept: `topk` renormalises p over its likeliest `support_size` classes; `topk_both`
    renormalises r over them too; `topk+tail` lumps all other classes of both into one (a lower bound); `sampled` draws
    `support_size` classes from p, which is right on average (Random Sampling KD, ACL 2025). The mass of p on the kept
    classes is logged as `retained_mass`.
    """

    support: Literal[SUPPORTS] = Field("full", description="which classes of the teacher are kept")
    support_size: int = Field(64, ge=1, description="how many, unless all are")

    @property
    def exempt(self) -> Mapping[str, str]:
        """What a sparse teacher costs: an estimate without a sign, or a target that is not p."""
        reasons = {
            "sampled": {"never_negative": "an estimate from drawn classes has no sign"},
            "topk": {"zero_when_student_equals_teacher": "p renormalised over its likeliest classes is not p"},
        }
        return reasons.get(self.support, {})

    @property
    def can_split(self) -> bool:
        return super().can_split and self.support == "full"

    @property
    def reads_support(self) -> tuple[str, int]:
        return self.support, 0 if self.support == "full" else self.support_size

    def forward_terms(self, student: Dist, teacher: Dist, tokens: Tokens) -> dict[str, Tensor]:
        """Return KL(p‖q) on the support as the term `kl`, and what is to be logged of it."""
        if self.support == "full":
            return {"kl": kl_of(teacher, student)}
        value, watched = self.forward_kl(teacher.log_probs, student.log_probs, tokens)
        return {"kl": value, **watched}

    def forward_kl(self, log_p: Tensor, log_r: Tensor, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        """Return KL(p‖r) on the support, `[N]`, and what is to be logged of it."""
        drawn = self._draws(log_p, tokens) if self.support == "sampled" else None
        value, mass = narrowed_kl(log_p, log_r, self.support, self.support_size, drawn)
        return value, {} if mass is None else {WATCHED + "retained_mass": mass}

    def _draws(self, log_p: Tensor, tokens: Tokens) -> Tensor:
        """Return `support_size` classes drawn from p, `[N, support_size]`: anew, or of those that a cache holds."""
        stored = tokens.drawn
        if stored is None:
            return draw(log_p, tokens.uniform(self.support_size))
        if self.support_size >= stored.shape[1]:
            return stored
        return stored.gather(-1, tokens.uniform(stored.shape[1]).argsort(-1)[:, : self.support_size])


class Wrapper(Objective):
    """An objective wrapped round another, `base`: it decides which tokens count, or which part of a divergence."""

    base: Objective
    default_base: ClassVar[str] = "kl"

    @property
    def trajectories(self) -> Trajectories:
        return self.base.trajectories

    def probe(self, student, teacher, tokens):
        return self.base.probe(student, teacher, tokens)

    def derive(self, tokens):
        return self.base.derive(tokens)

    @property
    def probes(self) -> bool:
        return self.base.probes or type(self).probe is not Wrapper.probe

    def at(self, step):
        base = self.base.at(step)
        return self if base is self.base else self.model_copy(update={"base": base})

    def observe(self, step, measured):
        return self.base.observe(step, measured)

    def scaled_weights(self, tokens: Tokens, factor: Tensor) -> Mapping[str, Tensor]:
        """Return the base's weights, each token's times its `factor` `[N]`, for wrappers that keep the base's terms."""
        uniform = torch.full_like(factor, 1 / len(tokens), dtype=torch.float64)
        return {name: row * factor for name, row in ({"*": uniform} | dict(self.base.weights(tokens))).items()}

    @property
    def label(self) -> str:
        stem = self.name if self.base.label == self.default_base else f"{self.base.label}+{self.name}"
        return stem + self._settings(hidden=("base",))
