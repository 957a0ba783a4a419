"""Contrasts at equal wall time: how many steps fit into the seconds that a contrast's baseline took.

The first arm of each contrast is trained once more, from the start and with a schedule of its own length, since a run
that is cut short has not cooled down. Seconds differ from run to run, so what was decided is an entry of the store, and
the cells that follow from it are a function of that entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from kdbench.run import decisions
from kdbench.run.job import Job
from kdbench.run.jobs import AFTER
from kdbench.run.store import Store
from kdbench.suite.matrix import Cell, timed_cells, timed_contrasts
from kdbench.suite.schema import Suite

FILE = "steps.json"
WAITS = "after its baseline"  # the state of a cell whose steps are not known yet
SAME = 0.05  # seconds that differ by less are the same: so much do they differ from run to run
RULE = "steps by the ratio of the medians of seconds a step, unchanged where these differ by less than 5 %"


@dataclass(frozen=True)
class Steps:
    """What was decided for one contrast at one (student, teacher).

    Attributes:
        inputs: the rule, and the keys of the cells whose seconds decide.
        content: `steps`, `of` (what the suite gives), `ratio` (seconds a step, the arm's over its baseline's).
        seconds: of a step, for each cell's key; None where the decision was read from the store.
    """

    inputs: dict[str, Any]
    content: dict[str, Any]
    seconds: dict[str, float] | None = None

    @property
    def key(self) -> str:
        """The content key."""
        return decisions.key(self.inputs)


@dataclass(frozen=True)
class Timed:
    """One arm at one pair: its cells, one a seed, and what its steps depend on.

    Attributes:
        cells: with the settings of the arm that they are; with `steps` of their own where these are known.
        waits_for: jobs by whose seconds the steps are set; empty where they are known.
    """

    contrast: tuple[str, str]
    cells: list[Cell]
    waits_for: list[Job]
    steps: Steps | None


def look(suite: Suite, cells: Sequence[tuple[Cell, Job]], store: Store) -> list[Timed]:
    """Work out the cells at equal time, and decide on their steps where what they depend on has ended.

    Args:
        cells: of the suite as planned, with their jobs.
    """
    return [
        _timed(suite, (a, b), first, cells, store)
        for a, b in timed_contrasts(suite)
        for first in timed_cells(suite, a, b, suite.seeds[0])
    ]


def _timed(
    suite: Suite, contrast: tuple[str, str], first: Cell, cells: Sequence[tuple[Cell, Job]], store: Store
) -> Timed:
    own = [(cell, job) for cell, job in cells if cell.arm == contrast[0] and _beside(cell, first)]
    others = [job for cell, job in cells if cell.arm == contrast[1] and _beside(cell, first)]
    needed = [job for _, job in own] + others
    steps = None if any(AFTER in job.inputs for job in needed) else _decide(store, [job for _, job in own], others)
    settings = {"steps": steps.content["steps"]} if steps else {}
    made = [
        replace(first, seed=cell.seed, settings={**cell.settings, **settings}) for cell, _ in own
    ]  # a tuned arm keeps what was chosen for it
    return Timed(contrast, made, [] if steps else needed, steps)


def _beside(cell: Cell, first: Cell) -> bool:
    """Whether a cell stands at the same pair; one without a teacher stands beside every teacher."""
    return cell.student == first.student and (None in (cell.teacher, first.teacher) or cell.teacher == first.teacher)


def _decide(store: Store, own: Sequence[Job], others: Sequence[Job]) -> Steps | None:
    """Return the stored decision, or make it once every cell has ended and each side has one that did not diverge."""
    inputs = {"rule": RULE, "objective": sorted(j.key for j in own), "baseline": sorted(j.key for j in others)}
    if stored := decisions.stored(store, inputs, FILE):
        return Steps(inputs, stored[0])
    done = {job.key: store.entry("cells", job.key).done() for job in (*own, *others)}
    if any(one is None or one["status"] not in ("ok", "diverged") for one in done.values()):
        return None
    seconds = {job.key: found for job in (*own, *others) if (found := _step_seconds(job, done[job.key] or {}))}
    mine, theirs = ([seconds[job.key] for job in jobs if job.key in seconds] for jobs in (own, others))
    given = own[0].inputs["train"]["steps"]
    there = others[0].inputs["train"]["steps"]
    if not mine or not theirs:  # nothing to go by: the cells at equal steps stand for it
        return Steps(inputs, {"steps": given, "of": given, "ratio": None}, seconds)
    ratio = median(mine) / median(theirs)
    fits = round(there / ratio)
    steps = given if abs(fits / given - 1) < SAME else max(1, fits)
    return Steps(inputs, {"steps": steps, "of": given, "ratio": round(ratio, 3)}, seconds)


def _step_seconds(job: Job, done: dict[str, Any]) -> float | None:
    """Return the seconds of one step; a training that was resumed timed only the steps of its last part."""
    timing = done["timing"]
    steps = timing.get("train_steps", job.inputs["train"]["steps"])
    if done["status"] != "ok" or not timing.get("train_s") or not steps:
        return None
    return timing["train_s"] / steps


def keep(found: Sequence[Timed], store: Store) -> None:
    """Write the decisions that are not in the store yet; whoever is first decides."""
    for steps in (one.steps for one in found):
        if steps is not None and steps.seconds is not None:
            decisions.keep(store, steps.inputs, FILE, steps.content, {"step_s": steps.seconds})


def facts(found: Sequence[Timed]) -> list[dict[str, Any]]:
    """Return what plan.json says: for each arm at each pair its contrast, its steps, and why so many.

    The decision's key is among it, so that a clean-up knows that it is needed.
    """
    return [
        {"arm": one.cells[0].arm, "objective": one.contrast[0], "baseline": one.contrast[1]}
        | {"student": one.cells[0].student, "teacher": one.cells[0].teacher}
        | {"key": one.steps.key if one.steps else None}
        | (one.steps.content if one.steps else {"steps": None, "of": None, "ratio": None})
        for one in found
    ]
