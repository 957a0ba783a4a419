"""Keep N warm worker processes busy until every job is made, and survive the death of any of them."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kdbench.errors import Interrupted
from kdbench.run.jobs import Job
from kdbench.run.store import Store

ATTEMPTS = 3  # a job whose worker dies is tried again; a crash loop ends here
BUSY_WAIT_S = 2.0
GRACE_S = 120.0
ORDER = ("tokenizers", "texts", "tasks", "models", "teacher_texts", "teacher_cache", "cells")


class Listener(Protocol):
    """Whoever watches a run: the progress display, the MLflow exporter."""

    def event(self, job: Job, event: dict[str, Any]) -> None:
        """Take one event of a job: started, stage, step, progress, finished, failed, busy, died, interrupted."""
        ...


@dataclass
class Outcome:
    """How each job ended: job id → DONE.json, or the reason why there is none."""

    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class Worker:
    """The parent's end of one worker process."""

    def __init__(self, number: int, store: Store, threads: int, folders: Sequence[Path]):
        log = store.root / "logs" / f"worker-{number}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        settings = {"store": str(store.root), "threads": threads, "folders": [str(folder) for folder in folders]}
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(  # noqa: S603 — our own interpreter and module
                [sys.executable, "-m", "kdbench.run.worker", json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(threads),
                start_new_session=True,  # a Ctrl-C at the terminal reaches the parent alone
            )
        self.number, self.log = number, log
        self.job: Job | None = None
        self.ready = False
        self._rest = b""

    def send(self, message: dict[str, Any]) -> None:
        """Send one command; a dead worker is noticed by its closed stdout instead."""
        assert self.process.stdin
        with suppress(OSError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def read(self) -> list[dict[str, Any]] | None:
        """Return the events that have come; None when the worker is gone."""
        assert self.process.stdout
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def end(self, kill: bool = False) -> None:
        """Close the pipe, after which the worker leaves by itself; or kill it."""
        if kill:
            self.process.kill()
        if self.process.stdin:
            with suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


def _environment(threads: int) -> dict[str, str]:
    """Pin BLAS threads, keep every library silent, and off-line but for a suite that names the Hub."""
    pinned = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    fixed = {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return os.environ | pinned | fixed | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONUNBUFFERED": "1"}


class Pool:
    """Runs jobs over workers.

    Args:
        count: number of workers.
        listeners: told of every event, in the parent's thread.
    """

    def __init__(self, store: Store, count: int, threads: int, folders: Sequence[Path], listeners: Sequence[Listener]):
        self.store, self.threads, self.folders, self.listeners = store, threads, folders, listeners
        self.workers: list[Worker] = []
        self.selector = selectors.DefaultSelector()
        self.outcome = Outcome()
        self.waiting: list[Job] = []
        self.not_before: dict[str, float] = {}
        self.attempts: dict[str, int] = {}
        self.stop_code, self.stopping = 0, False
        self.count = count

    def run(self, jobs: Iterable[Job], done: dict[str, dict[str, Any]]) -> Outcome:
        """Make every job, each after those it needs; `done` holds those that were complete before.

        Raises:
            Interrupted: on SIGINT or SIGTERM, after the workers have saved; a second signal ends them at once.
        """
        self.waiting = sorted(jobs, key=_priority)
        self.outcome.done.update(done)
        with self._signals():
            try:
                for number in range(min(self.count, len(self.waiting))):
                    self._start(number)
                while self._unfinished():
                    self._pass_on()
                    self._assign()
                    self._collect()
                if self.stop_code:
                    raise Interrupted("interrupted; everything is saved, run the same command to go on", self.stop_code)
            finally:
                for worker in self.workers:
                    worker.end(kill=bool(worker.job))
        return self.outcome

    def _unfinished(self) -> bool:
        running = any(worker.job for worker in self.workers)
        return running if self.stop_code else running or bool(self.waiting)

    def _start(self, number: int) -> None:
        worker = Worker(number, self.store, self.threads, self.folders)
        self.workers.append(worker)
        self.selector.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]

    def _assign(self) -> None:
        self._drop_blocked()
        if self.stop_code:
            return
        now = time.monotonic()
        for worker in self.workers:
            if worker.job is None and worker.ready:
                job = next((job for job in self.waiting if self._is_ready(job, now)), None)
                if job is None:
                    return
                self.waiting.remove(job)
                worker.job = job
                worker.send(job.message())
                self._tell(job, {"event": "started", "worker": worker.number})

    def _is_ready(self, job: Job, now: float) -> bool:
        return all(need in self.outcome.done for need in job.needs) and self.not_before.get(job.id, 0.0) <= now

    def _drop_blocked(self) -> None:
        """A job whose need has failed or diverged can never start."""
        for job in list(self.waiting):
            broken = [need for need in job.needs if need in self.outcome.failed or not _usable(self.outcome, need)]
            if broken:
                self.waiting.remove(job)
                reason = self.outcome.failed.get(broken[0], "it diverged")
                self._fail(job, f"not started: {broken[0]} is not there ({reason})")

    def _collect(self) -> None:
        for key, _ in self.selector.select(timeout=0.2):
            worker: Worker = key.data
            events = worker.read()
            if events is None:
                self._bury(worker)
                continue
            for event in events:
                self._take(worker, event)

    def _take(self, worker: Worker, event: dict[str, Any]) -> None:
        kind, job = event["event"], worker.job
        if kind == "ready":
            worker.ready = True
            return
        assert job
        if kind in ("finished", "failed", "busy", "interrupted"):
            worker.job = None
        if kind == "finished":
            self.outcome.done[job.id] = event["done"]
        elif kind == "failed":
            self.outcome.failed[job.id] = event["message"]
        elif kind == "busy":
            self.not_before[job.id] = time.monotonic() + BUSY_WAIT_S
            self.waiting.append(job)
        self._tell(job, event)

    def _bury(self, worker: Worker) -> None:
        """A worker is gone: its job is tried again, in a fresh worker."""
        self.selector.unregister(worker.process.stdout)  # type: ignore[arg-type]
        self.workers.remove(worker)
        worker.end(kill=True)
        job, code = worker.job, worker.process.returncode
        if job is not None:
            self.attempts[job.id] = self.attempts.get(job.id, 0) + 1
            hint = "killed, perhaps out of memory" if code == -signal.SIGKILL else f"exit code {code}"
            self._tell(job, {"event": "died", "message": f"worker {worker.number} died ({hint}); log: {worker.log}"})
            if self.attempts[job.id] < ATTEMPTS:
                self.waiting.insert(0, job)
            else:
                self._fail(job, f"its worker died {ATTEMPTS} times ({hint}); log: {worker.log}")
        elif not worker.ready:
            self.attempts["start"] = self.attempts.get("start", 0) + 1
            if self.attempts["start"] >= ATTEMPTS:
                for waiting in self.waiting:
                    self._fail(waiting, f"workers do not start ({code}); log: {worker.log}")
                self.waiting = []
        if self.waiting and not self.stop_code:
            self._start(worker.number)

    def _fail(self, job: Job, reason: str) -> None:
        self.outcome.failed[job.id] = reason
        self._tell(job, {"event": "failed", "message": reason})

    def _tell(self, job: Job, event: dict[str, Any]) -> None:
        for listener in self.listeners:
            listener.event(job, event)

    def _signals(self) -> _Handlers:
        return _Handlers(self._on_signal)

    def _on_signal(self, number: int) -> None:
        if self.stop_code:
            for worker in self.workers:
                worker.process.kill()
            raise Interrupted("interrupted at once; the next run goes on from the last checkpoints", self.stop_code)
        self.stop_code = 128 + number  # the loop passes it on: a pipe that is being written to may not be entered again

    def _pass_on(self) -> None:
        """Ask the workers to stop, once."""
        if not self.stop_code or self.stopping:
            return
        self.stopping = True
        for worker in self.workers:
            worker.send({"stop": self.stop_code})
        timer = threading.Timer(GRACE_S, lambda: [worker.process.kill() for worker in self.workers])
        timer.daemon = True
        timer.start()


class _Handlers:
    """Signal handlers that are put back; outside the main thread there are none."""

    def __init__(self, handle: Any):
        self.handle = handle
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, lambda got, frame: self.handle(got))

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def _priority(job: Job) -> tuple[int, float]:
    """Inputs before cells, and the slowest of a kind first, so that no worker waits for it at the end."""
    return ORDER.index(job.kind), -job.cost


def _usable(outcome: Outcome, need: str) -> bool:
    done = outcome.done.get(need)
    return done is None or done["status"] == "ok"
