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
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdbench import telemetry
from kdbench.errors import Interrupted, StoreError
from kdbench.run.agenda import ATTEMPTS, ENDINGS, GRACE_S, Agenda, Listener, Outcome, interrupted
from kdbench.run.jobs import Job
from kdbench.run.store import Store
from kdbench.run.watchdog import ALIVE, Watch, cpu_of
from kdbench.signals import Signals

STACK_S = 0.5  # for a hung worker to write its stack


class Worker:
    """The parent's end of one worker process."""

    def __init__(self, number: int, store: Store, threads: int, folders: Sequence[Path]):
        log = store.root / "logs" / f"worker-{number}.log"
        if log.is_symlink() or log.parent.is_symlink():
            raise StoreError(f"{log} leads out of the results folder by a symlink, and nothing is written through one")
        log.parent.mkdir(parents=True, exist_ok=True)
        settings = {"store": str(store.root), "threads": threads, "folders": [str(folder) for folder in folders]}
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(  # noqa: S603 — our own interpreter and module
                [sys.executable, "-m", "kdbench.run.worker", json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | environment(threads),
                start_new_session=True,  # a Ctrl-C at the terminal reaches the parent alone
            )
        self.number, self.log = number, log
        self.job: Job | None = None
        self.watch = Watch(None, cpu_of(self.process.pid))  # a start may hang too
        self.stalled = ""
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

    def give(self, job: Job, patience_s: float | None) -> None:
        """Send a job, and watch it from now on."""
        self.job, self.watch = job, Watch(patience_s, cpu_of(self.process.pid))
        self.send(job.message())

    def stop_stalled(self, silence: str) -> None:
        """Let a process that hangs write where it stands into its log, then kill it: files are safe at any moment."""
        self.stalled = silence
        with suppress(OSError):
            self.process.send_signal(signal.SIGUSR1)
            time.sleep(STACK_S)
        self.process.kill()

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


def environment(threads: int) -> dict[str, str]:
    """Return what pins BLAS threads and keeps every library silent, and off-line but for a suite that names the Hub."""
    pinned = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    fixed = {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1")} | telemetry.OFF
    return pinned | fixed | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONUNBUFFERED": "1"}


class Pool(Agenda):
    """Runs jobs over worker processes on this machine.

    Args:
        count: number of workers.
        patience_s: seconds without a sign of life after which a worker is stopped; None: as `watchdog.Watch` says.
    """

    def __init__(
        self,
        store: Store,
        count: int,
        threads: int,
        folders: Sequence[Path],
        listeners: Sequence[Listener],
        patience_s: float | None = None,
    ):
        super().__init__(store, listeners)
        self.patience_s = patience_s
        self.threads, self.folders, self.count = threads, folders, count
        self.workers: list[Worker] = []
        self.selector = selectors.DefaultSelector()
        self.stop_code, self.stopping, self.forced = 0, False, False
        self.grace: threading.Timer | None = None

    def run(
        self, jobs: Iterable[Job], done: dict[str, dict[str, Any]], inputs: Mapping[str, Job] | None = None
    ) -> Outcome:
        """Make every job, each after those it needs; see `begin`.

        Raises:
            Interrupted: on SIGINT or SIGTERM, after the workers have saved; a second signal ends them at once.
        """
        self.begin(jobs, done, inputs)
        with Signals(self._on_signal):
            try:
                for number in range(min(self.count, len(self.waiting))):
                    self._start(number)
                while self._unfinished():
                    self._pass_on()
                    self._assign()
                    self._collect()
                    self._stop_stalled()
                if self.stop_code:
                    raise interrupted(self.stop_code, self.forced)
            finally:
                if self.grace:
                    self.grace.cancel()
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
        self.drop_blocked()
        if self.stop_code:
            return
        for worker in self.workers:
            if worker.job is None and worker.ready:
                job = self.next_ready()
                if job is None:
                    return
                worker.give(job, self.patience_s)
                self.tell(job, {"event": "started", "worker": worker.number})

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
        if event["event"] == "ready":
            self.attempts.pop("start", None)  # they do start
            worker.ready = True
            return
        job = worker.job
        assert job
        worker.watch.see(event)
        if event["event"] in ENDINGS:
            worker.job = None
        if event["event"] != ALIVE:
            self.settle(job, event)

    def _stop_stalled(self) -> None:
        """Stop workers whose job gives no sign of life; what they held is tried again like that of any dead one."""
        for worker in self.workers:
            busy = worker.job or not worker.ready
            if busy and not worker.stalled and (silence := worker.watch.silence()):
                worker.stop_stalled(silence)

    def _bury(self, worker: Worker) -> None:
        """A worker is gone: its job is tried again, in a fresh worker."""
        self.selector.unregister(worker.process.stdout)  # type: ignore[arg-type]
        self.workers.remove(worker)
        worker.end(kill=True)
        job, code = worker.job, worker.process.returncode
        if job is not None:
            hint = "killed, perhaps out of memory" if code == -signal.SIGKILL else f"exit code {code}"
            hint += f", {worker.watch.where()}"
            hint, how = (worker.stalled, "stalled") if worker.stalled else (hint, "died")
            self.try_again(job, f"worker {worker.number}", f"{hint}; log: {worker.log}", how)
        elif not worker.ready:
            self.attempts["start"] = self.attempts.get("start", 0) + 1
            if self.attempts["start"] >= ATTEMPTS:
                for waiting in self.waiting:
                    self.fail(waiting, f"workers do not start ({code}); log: {worker.log}")
                self.waiting = []
        if self.waiting and not self.stop_code:
            self._start(worker.number)

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
        self.grace = threading.Timer(GRACE_S, self._end_by_force)
        self.grace.daemon = True
        self.grace.start()

    def _end_by_force(self) -> None:
        self.forced = True
        for worker in self.workers:
            worker.process.kill()
