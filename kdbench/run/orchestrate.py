"""Plan a suite and run it: which cells are done, which run and why, then the pool, then what exists at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.errors import ConfigError, StoreError, did_you_mean
from kdbench.registry import user_folders
from kdbench.run import equal_time, external, plans, tuning
from kdbench.run.agenda import Listener, Outcome
from kdbench.run.cluster import Placement
from kdbench.run.jobs import AFTER, Job, Planner
from kdbench.run.store import Store
from kdbench.run.workers import Pool
from kdbench.suite.external import ABSENT
from kdbench.suite.matrix import Cell, split_labels, timed_contrasts, timed_label
from kdbench.suite.schema import Suite

FINAL = ("ok", "diverged")
CALLED = {"objective_source": "the objective's code"}  # how a person reads some of a key's inputs


@dataclass(frozen=True)
class PlannedCell:
    """A cell, its job, where it stands, and why it will run (empty where it will not)."""

    cell: Cell
    job: Job
    state: str
    why: str


@dataclass(frozen=True)
class Plan:
    """Everything known before a run."""

    suite: Suite
    planner: Planner
    cells: list[PlannedCell]
    done: dict[str, dict[str, Any]]
    tuned: tuning.Tuned
    timed: list[equal_time.Timed] = field(default_factory=list)

    @property
    def jobs(self) -> list[Job]:
        """Every job of the suite, each after those it needs."""
        return list(self.planner.jobs.values())

    def to_run(self, only: dict[str, set[str]]) -> list[Job]:
        """Return the unfinished jobs that the chosen cells need, and those cells."""
        wanted: set[str] = set()

        def want(identity: str) -> None:
            if identity in wanted or identity in self.done:
                return
            wanted.add(identity)
            for need in self.planner.jobs[identity].needs:
                want(need)

        for planned in self.cells:
            after = planned.job.inputs.get(AFTER, [])
            if is_chosen(planned.cell, only) and not (after and planned.cell.instead_of):  # those stand here themselves
                for identity in [f"cells/{key}" for key in after] or [planned.job.id]:
                    want(identity)
        return [job for job in self.jobs if job.id in wanted]

    def to_run_later(self, only: dict[str, set[str]]) -> list[Job]:
        """Return the jobs of the chosen cells that wait, and of what they need beside what is run before them."""
        before, found = {job.id for job in self.to_run(only)} | {*self.done}, {}

        def want(job: Job) -> None:
            if job.id not in before and job.id not in found:
                for need in job.needs:
                    want(self.planner.jobs[need])
                found[job.id] = job

        for planned in self.waiting(only):
            want(planned.job)
        return list(found.values())

    def waiting(self, only: dict[str, set[str]]) -> list[PlannedCell]:
        """Return the chosen cells whose settings are not known yet, if all cells that decide on them are run before."""
        known = {*self.done} | {job.id for job in self.to_run(only)}
        return [
            planned
            for planned in self.cells
            if (after := planned.job.inputs.get(AFTER))
            and is_chosen(planned.cell, only)
            and all(f"cells/{key}" in known for key in after)
        ]


def is_chosen(cell: Cell, only: dict[str, set[str]]) -> bool:
    """Whether a cell passes `--only`; an arm without teacher or seed passes a choice of these."""
    values = {"objective": cell.arm, "student": cell.student, "teacher": cell.teacher, "seed": cell.seed}
    return all(values[key] is None or str(values[key]) in allowed for key, allowed in only.items())


def parse_only(choices: Sequence[str], suite: Suite) -> dict[str, set[str]]:
    """Read `--only objective=kl,atkd` options.

    Raises:
        ConfigError: unknown selector or value, with a did-you-mean.
    """
    timed = [timed_label(a, b) for a, b in timed_contrasts(suite)]
    known = {
        "objective": {*suite.arm_labels, "floor", "ceiling", *timed},
        "student": set(suite.students),
        "teacher": set(suite.teachers),
        "seed": {str(seed) for seed in suite.seeds},
    }
    only: dict[str, set[str]] = {}
    for choice in choices:
        key, _, values = choice.partition("=")
        if key not in known:
            raise ConfigError(
                f"--only {choice}: expected objective=…, student=…, teacher=… or seed=….{did_you_mean(key, known)}"
            )
        for value in split_labels(values):
            if value not in known[key]:
                raise ConfigError(
                    f"--only {choice}: the suite has no {key} {value!r}.{did_you_mean(value, known[key])}"
                )
            only.setdefault(key, set()).add(value)
    return only


def plan(suite: Suite, base: Path, store: Store) -> Plan:
    """Work out every job of a suite and compare it with what the store holds. Writes nothing."""
    planner = Planner(suite, base)
    tuned = tuning.look(planner, store)
    planner.all(tuned.settle)
    timed = equal_time.look(suite, planner.cells, store)
    for one in timed:
        planner.cells += [(cell, planner.cell(cell, one.waits_for)) for cell in one.cells]
    jobs = list(planner.jobs.values())
    done = {job.id: found for job in jobs if job.id not in tuned.damaged and (found := final(store, job))}
    before = _previous(store, suite.name)
    cells = []
    for cell, job in planner.cells:
        if ABSENT in job.inputs:
            cells.append(PlannedCell(cell, job, ABSENT, external.why_absent(job.inputs)))
            continue
        if AFTER in job.inputs:
            cells.append(PlannedCell(cell, job, *_waits(cell)))
            continue
        found = done.get(job.id)
        entry = store.entry("cells", job.key)
        entry.refuse_later()
        state = found["status"] if found else entry.state()
        state = "damaged" if state in FINAL and not found else state
        cells.append(PlannedCell(cell, job, state, "" if state in FINAL else _why(state, job, before.get(_name(cell)))))
    return Plan(suite, planner, cells, done, tuned, timed)


def _waits(cell: Cell) -> tuple[str, str]:
    """Return the state of a cell whose key is not known yet, and why."""
    if cell.instead_of:
        return equal_time.WAITS, "its steps follow from the seconds of other cells"
    return tuning.WAITS, "its settings are chosen by trials first"


def final(store: Store, job: Job) -> dict[str, Any] | None:
    """Return the DONE.json of a job that is made and not to be made again; None where it is not, or is damaged."""
    entry = store.entry(job.kind, job.key)
    found = entry.done()
    if not found or found["status"] not in FINAL:
        return None
    # A cell's scores are read here, its weights by whoever loads them; an input's files by the worker that needs them.
    return found if job.kind != "cells" or entry.is_whole(except_in="model") else None


def _name(cell: Cell) -> str:
    return f"{cell.arm}|{cell.student}|{cell.teacher}|{cell.seed}"


def _previous(store: Store, name: str) -> dict[str, dict[str, Any]]:
    path = store.suite_folder(name) / plans.FILE
    try:
        known = plans.read(path)["cells"] if path.exists() else []
        return {entry["name"]: entry for entry in known if not {ABSENT, AFTER} & {*entry["inputs"]}}
    except (StoreError, KeyError, TypeError):
        return {}


def _why(state: str, job: Job, before: dict[str, Any] | None) -> str:
    if state != "new":
        return {
            "unfinished": "unfinished: goes on from its last checkpoint",
            "failed": "failed last time: tried again",
            "damaged": "damaged on disk: set aside and made again",
        }[state]
    if before is None or before["key"] == job.key:
        return "new"
    names = [CALLED.get(name, name) for name in differences(before["inputs"], job.inputs)]
    return "changed: " + (", ".join(names) or "its inputs")


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return the dotted names of what differs between two plain values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [
            entry for key in keys for entry in differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if old == new else [path]


def write_plan(plan: Plan, store: Store, overrides: Sequence[str]) -> dict[str, Any]:
    """Note which cells make up the suite now, so that `compare` knows them without the suite file; return the note."""
    cells = [
        {
            "name": _name(planned.cell),
            "arm": planned.cell.arm,
            "student": planned.cell.student,
            "teacher": planned.cell.teacher,
            "seed": planned.cell.seed,
            "key": planned.job.key,
            "inputs": planned.job.inputs,
        }
        for planned in plan.cells
    ]
    content = {
        "suite": plan.suite.model_dump(mode="json"),
        "overrides": list(overrides),
        "environment": plan.planner.environment,
        "cells": cells,
    }
    if plan.timed:
        content["equal_time"] = equal_time.facts(plan.timed)
    if plan.suite.tune:
        content["tuning"] = tuning.facts(plan.tuned)
    return plans.write_if_changed(store.suite_folder(plan.suite.name) / plans.FILE, content)


def run(
    plan: Plan,
    store: Store,
    jobs: Sequence[Job],
    workers: int,
    listeners: Sequence[Listener],
    placement: Placement | None = None,
    patience_s: float | None = None,
) -> Outcome:
    """Make the given jobs and, from the test items, the task folder that plain lm-eval can use.

    Args:
        workers: processes of this machine, or jobs at once over a cluster.
        placement: the cluster that makes the jobs; None: this machine.
        patience_s: seconds without a sign of life after which a job on this machine is stopped and tried again.
    """
    absent = {job.id: external.why_absent(job.inputs) for job in jobs if ABSENT in job.inputs}
    jobs = [job for job in jobs if job.id not in absent]
    outcome = Outcome(done=dict(plan.done))
    if jobs:
        plan.planner.reach(jobs)
        common = (store, workers, plan.suite.threads, user_folders(), listeners)
        pool = placement.pool(*common) if placement else Pool(*common, patience_s)
        outcome = pool.run(jobs, plan.done, plan.planner.jobs)
    for key, reason in absent.items():
        outcome.failed[key] = reason
        for listener in listeners:
            listener.event(plan.planner.jobs[key], {"event": "failed", "message": reason})
    _write_lm_eval_folder(plan, store)
    return outcome


def _write_lm_eval_folder(plan: Plan, store: Store) -> None:
    from kdbench.evaluate.tasks import write_lm_eval_folder

    entries = {store.entry("tasks", planned.job.inputs["tasks"]) for planned in plan.cells}
    for entry in entries:
        if entry.done():
            write_lm_eval_folder(entry.path.resolve(), plan.suite.examine.tasks, lm_eval_folder(store, plan.suite.name))


def lm_eval_folder(store: Store, name: str) -> Path:
    """Return the folder for `lm_eval --include_path`; derived, with this machine's paths, made anew at every run."""
    return store.suite_folder(name) / "lm_eval_tasks"
