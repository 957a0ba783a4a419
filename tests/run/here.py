"""The jobs of a run, one after another in this process: the same jobs, without the start of workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kdbench.run import orchestrate, stages
from kdbench.run.agenda import Agenda, Listener, Outcome
from kdbench.run.jobs import Job
from kdbench.run.store import Store
from kdbench.run.worker import serve


class Here(Agenda):
    """Stands where `workers.Pool` does; a job is done by the very function that a worker process calls."""

    def __init__(
        self,
        store: Store,
        count: int,
        threads: int,
        folders: Sequence[Path],
        listeners: Sequence[Listener],
        patience_s: float | None = None,  # nobody watches the process that they would be
    ):
        super().__init__(store, listeners)

    def run(
        self, jobs: Iterable[Job], done: dict[str, dict[str, Any]], inputs: Mapping[str, Job] | None = None
    ) -> Outcome:
        """Make every job, each after those it needs."""
        self.begin(jobs, done, inputs)
        while self.waiting:
            self.drop_blocked()
            job = self.next_ready()
            if job is not None:
                self.tell(job, {"event": "started", "worker": 0})
                event = serve(self.store, job.message(), lambda event, job=job: self.tell(job, event), lambda: 0)
                self.settle(job, event)
        return self.outcome


def without_pictures(patch: pytest.MonkeyPatch) -> None:
    """Let reports go without their pictures, whose layout takes half the time of a small suite."""
    from matplotlib.figure import Figure

    patch.setattr(Figure, "savefig", lambda self, file, **settings: file.write(b"<svg></svg>"))


def in_this_process(patch: pytest.MonkeyPatch, pool: type[Agenda] = Here) -> None:
    """Let runs make their jobs here, and go without a prediction of what they will cost."""
    patch.setattr(orchestrate, "Pool", pool)
    patch.setattr(stages.Foresight, "start", lambda self: None)
