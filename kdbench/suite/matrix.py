"""The cells of a suite: which student learns what from whom with which seed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from kdbench.suite.schema import Suite, needs_teacher

FLOOR, CEILING = "floor", "ceiling"


@dataclass(frozen=True)
class Cell:
    """One arm at one size and seed.

    Attributes:
        arm: an objective's label, or `floor` (the untouched student), or `ceiling` (the teacher itself).
        spec: the objective; None for floor and ceiling.
        student: None for the ceiling.
        teacher: None where none is needed.
        seed: None where nothing is drawn: the ceiling, and the floor of a student that is the same for all seeds.
    """

    arm: str
    spec: dict[str, Any] | None
    student: str | None
    teacher: str | None
    seed: int | None

    @property
    def title(self) -> str:
        """A short name for progress lines and MLflow runs."""
        return title(self.arm, self.student, self.teacher, self.seed)


def title(arm: str, student: str | None, teacher: str | None, seed: int | None) -> str:
    """Return a cell's short name: `atkd · opt-64x2 ← opt-128x4 · seed 2`."""
    pair = " ← ".join(part for part in (student, teacher) if part)
    return f"{arm} · {pair}" + ("" if seed is None else f" · seed {seed}")


def split_labels(text: str) -> list[str]:
    """Split a list of arms at its commas; a label's own, in brackets, are left: `kl,atkd(lam=0.5,ties=exact)`."""
    return [part.strip() for part in re.split(r",(?![^(]*\))", text)]


def cells(suite: Suite) -> list[Cell]:
    """Return the cells of a suite, with the arms that every comparison needs. A teacher-free arm runs once a seed."""
    found = [Cell(CEILING, None, None, teacher, None) for teacher in suite.teachers]
    for student in suite.students:
        per_seed = suite.models[student].init_seed == "run"
        found += [Cell(FLOOR, None, student, None, seed) for seed in (suite.seeds if per_seed else (None,))]
        for seed in suite.seeds:
            for entry in suite.objectives:
                teachers = suite.teachers if needs_teacher(entry["spec"]) else (None,)
                found += [Cell(entry["label"], entry["spec"], student, teacher, seed) for teacher in teachers]
    return found
