"""The cells of a suite: which student learns what from whom with which seed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdbench.suite.external import External
from kdbench.suite.schema import Suite, needs_teacher

FLOOR, CEILING = "floor", "ceiling"
Place = tuple[str, str | None, str | None]  # arm, student, teacher: what is tuned together


@dataclass(frozen=True)
class Cell:
    """One arm at one size and seed.

    Attributes:
        arm: an objective's label, or `floor` (the untouched student), or `ceiling` (the teacher itself).
        spec: the objective; None for floor and ceiling.
        student: None for the ceiling.
        teacher: None where none is needed.
        seed: None where nothing is drawn: the ceiling, and the floor of a student that is the same for all seeds.
        folder: of a student trained elsewhere, relative to the suite file; None for all that is trained here.
        settings: of its training, where they are not the suite's.
        trial: whether it is there to choose settings by, and so examined on the dev split alone.
        instead_of: the arm that it is, trained for as long as its baseline took; None for all others.
    """

    arm: str
    spec: dict[str, Any] | None
    student: str | None
    teacher: str | None
    seed: int | None
    folder: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    trial: bool = False
    instead_of: str | None = None

    @property
    def title(self) -> str:
        """A short name for progress lines and MLflow runs."""
        named = title(self.arm, self.student, self.teacher, self.seed)
        return f"{named} · tuning: {point_title(self.settings)}" if self.trial else named


def title(arm: str, student: str | None, teacher: str | None, seed: int | None) -> str:
    """Return a cell's short name: `atkd · opt-64x2 ← opt-128x4 · seed 2`."""
    pair = " ← ".join(part for part in (student, teacher) if part)
    return " · ".join(part for part in (arm, pair, "" if seed is None else f"seed {seed}") if part)


def point_title(settings: Mapping[str, Any]) -> str:
    """Return settings as a person reads them: `lr 0.003, warmup 0.1`."""
    return ", ".join(
        f"{name} {f'{value:g}' if isinstance(value, float) else value}" for name, value in settings.items()
    )


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
                teachers = suite.teachers_of(student) if needs_teacher(entry["spec"]) else (None,)
                own = entry.get("train", {})
                found += [
                    Cell(entry["label"], entry["spec"], student, teacher, seed, settings=own) for teacher in teachers
                ]
        found += [cell for arm in suite.arms for cell in external_cells(suite, arm.external, student)]
    return found


def trials(suite: Suite, points: Sequence[dict[str, Any]]) -> list[Cell]:
    """Return the cells by which `tune:` chooses: every objective, at every pair, point and seed of the tuning."""
    if suite.tune is None:
        return []
    return [
        Cell(entry["label"], entry["spec"], student, teacher, seed, settings=entry.get("train", {}) | point, trial=True)
        for student in suite.students
        for entry in suite.objectives
        for teacher in (suite.teachers_of(student) if needs_teacher(entry["spec"]) else (None,))
        for point in points
        for seed in suite.tune.seeds
    ]


def place(suite: Suite, cell: Cell) -> Place:
    """Return what a cell shares its chosen settings with: its arm and pair, or its arm alone."""
    alone = suite.tune is not None and suite.tune.per == "objective"
    return (cell.arm, None, None) if alone else (cell.arm, cell.student, cell.teacher)


def timed_label(objective: str, baseline: str) -> str:
    """Return the name of an arm that is trained for as long as its baseline took."""
    return f"{objective} in {baseline}'s time"


def timed_contrasts(suite: Suite) -> list[tuple[str, str]]:
    """Return the contrasts at equal wall time: both sides are trained here, and the suite asks for them."""
    trained = {*suite.labels} if suite.compare.equal_time else set()
    return [(a, b) for a, b in suite.named_contrasts if a in trained and b in trained]


def timed_cells(suite: Suite, objective: str, baseline: str, seed: int) -> list[Cell]:
    """Return the cells of a contrast's first arm that get its baseline's time; their steps are not known yet."""
    entry = next(entry for entry in suite.objectives if entry["label"] == objective)
    own, label = entry.get("train", {}), timed_label(objective, baseline)
    return [
        Cell(label, entry["spec"], student, teacher, seed, settings=own, instead_of=objective)
        for student in suite.students
        for teacher in (suite.teachers_of(student) if needs_teacher(entry["spec"]) else (None,))
    ]


def external_cells(suite: Suite, arm: External, student: str) -> list[Cell]:
    """Return the cells of students that were trained elsewhere."""
    teachers = suite.teachers_of(student) if arm.has("teacher") else (None,)
    return [
        Cell(arm.label, None, student, teacher, seed, arm.folder(student, teacher, seed))
        for seed in arm.numbers(suite.seeds)
        for teacher in teachers
    ]
