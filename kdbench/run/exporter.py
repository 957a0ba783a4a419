"""What feeds the mirror in MLflow while cells run: a thread of its own, which never stops a run."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import KdbenchError
from kdbench.run.store import Store
from kdbench.run.tracking import Mirror, listed
from kdbench.run.tracking_place import reached

if TYPE_CHECKING:
    from kdbench.run.job import Job

LIVE_EVERY_S = 5.0


class Exporter:
    """Feeds the mirror from a thread of its own while cells run. What MLflow refuses never stops a run."""

    def __init__(self, store: Store, plan: dict[str, Any], warn: Any):
        self.store, self.plan, self.warn = store, plan, warn
        self.cells = listed(plan)
        self.events: queue.Queue[Any] = queue.Queue()
        self.started_ms = int(time.time() * 1000)
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started_ms / 1000))
        self.invocation = f"{moment}.{self.started_ms % 1000:03d}"  # two runs may start within a second
        self.failed = False
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def event(self, job: Job, event: dict[str, Any]) -> None:
        """Take one event of a job (a Listener of the pool)."""
        if not self.failed and job.kind == "cells" and event["event"] in ("stage", "step", "finished"):
            self.events.put((job.key, event, int(time.time() * 1000)))

    def follow(self, plan: dict[str, Any]) -> None:
        """Go on with a suite that has been planned anew, once its settings were chosen."""
        self.plan = plan
        self.cells = self.cells | listed(plan)

    def close(self, status: str, artifacts: Iterable[Path]) -> None:
        """Write what is left and end the parent run."""
        self.events.put((None, {"status": status, "artifacts": list(artifacts)}, 0))
        self.thread.join()

    def _work(self) -> None:
        try:
            with reached(self.store):
                self._mirror()
        except KdbenchError as error:
            self.failed = True
            self.events = queue.Queue()  # what nobody will read is not kept
            self.warn(f"{error}. `kdbench mlflow sync` writes them to MLflow later")

    def _mirror(self) -> None:
        mirror = Mirror(self.store, self.plan)
        parent = mirror.parent(self.invocation, self.started_ms)
        steps: dict[str, list[dict[str, Any]]] = {}
        stamps: dict[str, dict[int, int]] = {}
        flushed = time.monotonic()
        while True:
            key, event, now = self.events.get()
            if key is None:
                break
            if event["event"] == "stage":  # so it is ours: a worker may start on a cell that another run is making
                mirror.cell_run(self.cells[key], parent, now)
            elif event["event"] == "step":
                steps.setdefault(key, []).append(event)
                stamps.setdefault(key, {})[event["step"]] = now
            elif event["event"] == "finished":
                steps.pop(key, None)  # the store has them
                folder = self.store.entry("cells", key).path
                mirror.complete(self.cells[key], parent, folder, event["done"], stamps.pop(key, {}))
            if steps and time.monotonic() - flushed > LIVE_EVERY_S:
                self._flush(mirror, parent, steps, stamps)
                steps, flushed = {}, time.monotonic()
        mirror.close_unfinished()
        mirror.tell_tuning(parent, self.plan)
        mirror.finish_parent(parent, event["status"], event["artifacts"])

    def _flush(
        self, mirror: Mirror, parent: str, steps: dict[str, list[Any]], stamps: dict[str, dict[int, int]]
    ) -> None:
        for key, records in steps.items():
            run_id = mirror.cell_run(self.cells[key], parent, stamps[key][records[0]["step"]])
            mirror.steps(run_id, records, stamps[key].__getitem__)
