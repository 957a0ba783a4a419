"""Students trained elsewhere: folders that a suite examines beside its own cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, model_validator

from kdbench.errors import did_you_mean
from kdbench.suite.part import Part

ARM = "external"  # what inputs call the arm
ABSENT = "absent"  # the key under which inputs name a folder that is not there; also such a cell's state
CONTROL = "not trained under kdbench's control"
PLACES = ("student", "teacher", "seed")
_BRACES = re.compile(r"\{([^{}]*)\}")


class External(Part):
    """An arm of saved students that kdbench examines and did not train."""

    path: str = Field(
        min_length=1,
        description="Hugging Face folder, relative to the suite file; `{student}`, `{teacher}` and `{seed}` stand for "
        "the suite's names. Without `{teacher}` the arm needs none, without `{seed}` one model stands for all seeds",
    )
    label: str = Field(min_length=1, max_length=60, description="the arm's name in tables and contrasts")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] | None = Field(
        None, min_length=1, description="what `{seed}` stands for; default: the suite's seeds"
    )
    seeds_correspond: bool = Field(
        False, description="whether a seed means here what it means in the suite: the same start and the same batches"
    )

    @model_validator(mode="after")
    def _fits(self) -> External:
        names = _BRACES.findall(self.path)
        for name in names:
            if name not in PLACES:
                raise ValueError(f"path: unknown placeholder {{{name}}}.{did_you_mean(name, PLACES)}")
        if "{" in _BRACES.sub("", self.path) or "}" in _BRACES.sub("", self.path):
            raise ValueError(f"path: expected braces in pairs round a name, found {self.path!r:.80}")
        if "seed" not in names and (self.seeds or self.seeds_correspond):
            raise ValueError("seeds: expected {seed} in path, found none, so one model stands for all seeds")
        if self.seeds and self.seeds_correspond:
            raise ValueError("seeds_correspond: seeds that correspond are the suite's own; leave `seeds` out")
        if self.seeds and len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: an entry stands twice in {list(self.seeds)}")
        return self

    def has(self, place: str) -> bool:
        """Whether the path depends on `student`, `teacher` or `seed`."""
        return f"{{{place}}}" in self.path

    def folder(self, student: str, teacher: str | None, seed: int | None) -> str:
        """Return the path of one model."""
        values = {"student": student, "teacher": teacher, "seed": seed}
        return _BRACES.sub(lambda found: str(values[found[1]]), self.path)

    def numbers(self, seeds: Sequence[int]) -> tuple[int | None, ...]:
        """Return the seeds that the arm has in a suite of `seeds`; (None,) where one model stands for all."""
        return (self.seeds or tuple(seeds)) if self.has("seed") else (None,)

    def stands_beside(self, seed: int | None, seeds: Sequence[int]) -> int | None:
        """Return the seed of the suite that one of the arm's seeds is set against.

        Seeds that do not correspond are each set against the suite's next seed, by their place in the list: fixed
        before any score is known, never with their like. A difference then varies by the seeds of both sides, which is
        what an unpaired comparison has to count, and gains nothing from a pairing that nobody vouches for. Seeds beyond
        the suite's number have no partner and get a number that no other has.
        """
        if seed is None or self.seeds_correspond:
            return seed
        own = self.numbers(seeds)
        place = own.index(seed)
        if place < len(seeds):
            return seeds[(place + 1) % len(seeds)]
        return max((*seeds, *(number for number in own if number is not None))) + place


class Arm(Part):
    """An entry of `arms:`."""

    external: External


def problems(arms: Sequence[Arm], labels: Sequence[str], teachers: Sequence[str]) -> list[str]:
    """Return a sentence for each arm that does not fit the rest of the suite.

    Args:
        labels: of the suite's objectives.
        teachers: of the suite.
    """
    found = []
    for number, arm in enumerate(arms):
        label, before = arm.external.label, [*labels, *(one.external.label for one in arms[:number])]
        if label in before or label in ("floor", "ceiling"):
            found.append(f"arms: {label!r} stands twice, or is an arm of every suite; choose another `label:`")
        if arm.external.has("teacher") and not teachers:
            found.append(f"arms: the path of {label!r} holds {{teacher}}, and the suite has none")
    return found
