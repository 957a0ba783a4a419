"""What is still to be made, in which order, and how each job ended: the same whoever makes the jobs, and where."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from kdbench.errors import Interrupted, StoreError
from kdbench.run.job import Job
from kdbench.run.store import Store

ATTEMPTS = 3  # a job whose process dies is tried again; a crash loop ends here
BUSY_WAIT_S = 2.0
GRACE_S = 120.0
ENDINGS = ("finished", "failed", "busy", "interrupted")
ORDER = ("tokenizers", "texts", "tasks", "models", "teacher_texts", "teacher_cache", "cells")


class Listener(Protocol):
    """Whoever watches a run: the progress display, the MLflow exporter."""

    def event(self, job: Job, event: dict[str, Any]) -> None:
        """Take one event of a job: started, stage, step, progress, finished, failed, busy, died, interrupted; said.

        `again` says that its input is made again before, which is one job more.
        """
        ...


@dataclass
class Outcome:
    """How each job ended: job id → DONE.json, or the reason why there is none.

    Attributes:
        of_the_store: ids of those that failed because the results folder is full, cannot be written or is damaged.
    """

    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    of_the_store: set[str] = field(default_factory=set)


class Agenda:
    """The jobs as a graph: which may start, which wait, which never can.

    Args:
        store: where it is kept why a job was given up.
        listeners: told of every event, in the parent's thread.
    """

    def __init__(self, store: Store, listeners: Sequence[Listener]):
        self.store, self.listeners = store, listeners
        self.outcome = Outcome()
        self.waiting: list[Job] = []
        self.inputs: Mapping[str, Job] = {}
        self.missing: dict[str, set[str]] = {}
        self.not_before: dict[str, float] = {}
        self.attempts: dict[str, int] = {}

    def begin(
        self, jobs: Iterable[Job], done: dict[str, dict[str, Any]], inputs: Mapping[str, Job] | None = None
    ) -> None:
        """Take the jobs, inputs first; `done` holds those that were complete before.

        Args:
            inputs: by id, the jobs by which what is damaged can be made again.
        """
        self.waiting = sorted(jobs, key=_priority)
        self.inputs = inputs or {}
        self.outcome.done.update(done)

    def next_ready(self) -> Job | None:
        """Take the first job off the list whose needs are complete; None where none is."""
        now = time.monotonic()
        job = next((job for job in self.waiting if self._is_ready(job, now)), None)
        if job is not None:
            self.waiting.remove(job)
        return job

    def _is_ready(self, job: Job, now: float) -> bool:
        return all(need in self.outcome.done for need in self._needs(job)) and self.not_before.get(job.id, 0.0) <= now

    def _needs(self, job: Job) -> tuple[str, ...]:
        """Return what must be made before a job: as planned, and what it has found damaged since."""
        return (*job.needs, *self.missing.get(job.id, ()))

    def drop_blocked(self) -> None:
        """Fail every job whose need has failed or diverged: it can never start."""
        for job in list(self.waiting):
            needs = self._needs(job)
            broken = [need for need in needs if need in self.outcome.failed or not _usable(self.outcome, need)]
            if broken:
                self.waiting.remove(job)
                reason = self.outcome.failed.get(broken[0], "it diverged")
                self.fail(job, f"not started: {broken[0]} is not there ({reason})")

    def settle(self, job: Job, event: dict[str, Any]) -> None:
        """Note how a job ended, if the event says so, and tell the listeners."""
        kind = event["event"]
        if kind == "failed" and self._mend(job, event):
            return
        if kind == "finished":
            self.outcome.done[job.id] = event["done"]
        elif kind == "failed":
            self.outcome.failed[job.id] = event["message"]
            if event.get("exit_code") == StoreError.exit_code:
                self.outcome.of_the_store.add(job.id)
        elif kind == "busy":
            self.not_before[job.id] = time.monotonic() + BUSY_WAIT_S
            self.waiting.append(job)
        self.tell(job, event)

    def _mend(self, job: Job, event: dict[str, Any]) -> bool:
        """Where a job could not begin since an input is damaged: have that made again first, if it can be."""
        need = event.get("damaged")
        if need not in self.inputs or self.attempts.get(need, 0) >= ATTEMPTS:
            return False
        if self.outcome.done.pop(need, None):
            self.attempts[need] = self.attempts.get(need, 0) + 1
            self.waiting.insert(0, self.inputs[need])
        self.missing.setdefault(job.id, set()).add(need)
        self.waiting.append(job)
        self.tell(job, {"event": "again", "message": f"{event['message']}; it is made again first"})
        return True

    def try_again(self, job: Job, who: str, hint: str, how: str = "died") -> None:
        """Put a job whose process died, or was stopped as stalled, back in front, until it has done so too often."""
        self.attempts[job.id] = self.attempts.get(job.id, 0) + 1
        self.tell(job, {"event": "died", "message": f"{who} {how} ({hint})"})
        if self.attempts[job.id] < ATTEMPTS:
            self.waiting.insert(0, job)
        else:
            reason = f"its worker {how} {ATTEMPTS} times ({hint})"
            self._store_failure(job, reason)
            self.fail(job, reason)

    def _store_failure(self, job: Job, reason: str) -> None:
        """Keep why a job was given up, as a result; its checkpoints stay, and the next run goes on from them."""
        entry = self.store.entry(job.kind, job.key)
        with suppress(StoreError, OSError), entry.locked():  # who holds it is making it again
            if entry.state() == "unfinished":
                entry.commit("failed", {}, keep=True, reason=reason)

    def fail(self, job: Job, reason: str) -> None:
        """Note that a job cannot be made, and say why."""
        self.settle(job, {"event": "failed", "message": reason})

    def tell(self, job: Job, event: dict[str, Any]) -> None:
        """Pass one event on."""
        for listener in self.listeners:
            listener.event(job, event)


def interrupted(code: int, forced: bool = False) -> Interrupted:
    """Return how a run ends that was asked to stop; `forced`: some jobs had to be ended before they could save."""
    if forced:
        told = f"jobs that had not stopped after {GRACE_S:.0f} s were ended, and go on from their last checkpoints"
    else:
        told = "everything is saved"
    return Interrupted(f"interrupted; {told}; run the same command to go on", code)


def _priority(job: Job) -> tuple[int, float, str]:
    """Inputs before cells; the slowest of a kind first, so that no worker waits for it at the end; then those of one
    teacher one after another, since a worker keeps one."""
    return ORDER.index(job.kind), -job.cost, str(job.inputs.get("teacher", ""))


def _usable(outcome: Outcome, need: str) -> bool:
    done = outcome.done.get(need)
    return done is None or done["status"] == "ok"
