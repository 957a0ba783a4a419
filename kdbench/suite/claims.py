"""`claims:` of a suite: what a paper says about objectives, in the terms that a suite can put to the test."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from pydantic import Field, model_validator

from kdbench.errors import did_you_mean
from kdbench.suite.part import Part

Kind = Literal["mean", "up_to", "monotone_drop", "repaired_drop"]
DROPS = ("monotone_drop", "repaired_drop")
PERPLEXITY = "perplexity"
FLOOR = "floor"  # the untouched student, an arm of every suite


class Scope(Part):
    """The models that a claim speaks of."""

    student: tuple[str, ...] = Field((), description="default: all of the suite")
    teacher: tuple[str, ...] = Field((), description="default: all of the suite")


class Needs(Part):
    """A condition under which a claim's mechanism can be at work."""

    uncertainty_below: float = Field(
        gt=0, le=1, description="median UNC = 1 − p(target) of the largest teacher of the claim"
    )


class Mechanism(Part):
    """Why the source expects what it claims."""

    says: str = Field(min_length=1, description="the mechanism, in words")
    needs: Needs | None = Field(None, description="when it is present; None: nobody knows how to tell")


class Claim(Part):
    """One published sentence about objectives, and how a suite's results are held against it."""

    source: str = Field(min_length=1, description="where it stands: `ATKD, ACL 2024, abstract`")
    sentence: str = Field(min_length=1, description="what it says")
    contrast: tuple[str, str] | None = Field(None, description="[objective, baseline]")
    contrasts: tuple[tuple[str, str], ...] = Field((), description="several of them, where the claim is about them all")
    arm: str | None = Field(None, description="of `monotone_drop`: the arm that larger teachers are said to hurt")
    metric: Literal["acc", "word_log_likelihood"] = "acc"
    tasks: tuple[str, ...] = Field((), description="default: `compare.tasks`, or perplexity for word_log_likelihood")
    scope: Scope = Scope()
    kind: Kind = Field(
        "mean",
        description="mean: over contrasts and models; up_to: the largest single difference; monotone_drop: an arm "
        "loses from the scope's smallest teacher to its largest; repaired_drop: objective loses less than baseline",
    )
    each: Literal["pair", "contrast"] = Field(
        "pair", description="of `up_to`: one difference is a contrast at one (student, teacher), or its mean over all"
    )
    points: float | None = Field(
        None, gt=0, description="size in points of accuracy, or nats a word; null: only a direction is claimed"
    )
    deviations: tuple[str, ...] = Field((), description="how this suite's protocol differs from the source's")
    mechanism: Mechanism | None = None

    @model_validator(mode="after")
    def _fits(self) -> Claim:
        given = [name for name in ("contrast", "contrasts", "arm") if getattr(self, name)]
        if self.kind == "monotone_drop":
            if given != ["arm"]:
                raise ValueError(f"`monotone_drop` is about one arm: expected `arm`, found {_listed(given)}")
        elif given not in (["contrast"], ["contrasts"]):
            raise ValueError(
                f"expected either `contrast: [objective, baseline]` or `contrasts`, found {_listed(given)}"
            )
        if self.each != "pair" and self.kind != "up_to":
            raise ValueError(f"each: goes with `up_to`, found kind: {self.kind}")
        if twice := next((a for a, b in self.pairs if a == b), None):
            raise ValueError(f"contrast: expected two different arms, found {twice!r} twice")
        graded = self.metric == "acc"
        if unfit := [task for task in self.tasks if (task == PERPLEXITY) == graded]:
            raise ValueError(f"tasks: {unfit} have no {self.metric}; {PERPLEXITY} has only word_log_likelihood")
        return self

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The contrasts (objective, baseline); none where the claim is about one arm."""
        return self.contrasts or ((self.contrast,) if self.contrast else ())

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms that the claim speaks of."""
        return tuple(dict.fromkeys([name for pair in self.pairs for name in pair] + ([self.arm] if self.arm else [])))


def _listed(names: Sequence[str]) -> str:
    return " and ".join(f"`{name}`" for name in names) or "neither"


def problems(
    claims: Sequence[Claim],
    arms: Collection[str],
    students: Collection[str],
    teachers: Collection[str],
    tasks: Collection[str],
) -> list[str]:
    """Return a sentence for everything in `claims` that does not fit the rest of the suite.

    Args:
        arms: labels of all arms of the suite.
        tasks: those that are examined.
    """
    found = []
    known = {"arm": {*arms, FLOOR}, "student": students, "teacher": teachers}
    for index, claim in enumerate(claims):
        named = [("arm", name) for name in claim.arms]
        named += [("student", name) for name in claim.scope.student]
        named += [("teacher", name) for name in claim.scope.teacher]
        found += [
            f"claims[{index}]: unknown {what} {name!r}.{did_you_mean(name, known[what])}"
            for what, name in named
            if name not in known[what]
        ]
        absent = [task for task in claim.tasks or _own_task(claim) if task not in tasks]
        if absent:
            found.append(f"claims[{index}]: {absent} are not examined; examine.tasks has {list(tasks)}")
        if claim.kind in DROPS and len(claim.scope.teacher or teachers) < 2:
            found.append(f"claims[{index}]: `{claim.kind}` needs at least two teachers in its scope")
    return found


def _own_task(claim: Claim) -> tuple[str, ...]:
    return (PERPLEXITY,) if claim.metric == "word_log_likelihood" else ()
