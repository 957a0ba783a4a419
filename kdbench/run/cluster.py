"""Make a suite's jobs over a Ray cluster: one task a job, placed by Ray; nodes may come and go.

Ray places and notices deaths; what a job is, and when it may start, stays with the agenda. Results never travel
through Ray: every node writes into one shared folder, under the store's locks, and a lost node's job goes on from its
checkpoint.
"""

from __future__ import annotations

import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench import telemetry
from kdbench.distill.models import Runtime
from kdbench.errors import ConfigError, Interrupted
from kdbench.files import TEMPORARY, atomic_write
from kdbench.run import node
from kdbench.run.agenda import GRACE_S, Agenda, Listener, Outcome, interrupted
from kdbench.run.job import Job
from kdbench.run.store import Store
from kdbench.run.where import Where
from kdbench.run.workers import environment
from kdbench.signals import Signals

MODEL_KINDS = ("models", "teacher_texts", "teacher_cache", "cells")  # the jobs that use a GPU where there is one
CONNECT_SECONDS = 10
NETWORK_DISKS = ("nfs", "cifs", "smb", "lustre", "beegfs", "fuse", "9p", "afs", "gpfs", "ceph")


@dataclass(frozen=True)
class Placement:
    """A cluster that has been reached.

    Attributes:
        ray: the module.
        gpus: that a job takes which runs a model.
        slots: jobs that the nodes of this moment can run at once.
    """

    ray: Any
    gpus: float
    slots: int

    def pool(
        self, store: Store, count: int, threads: int, folders: Sequence[Path], listeners: Sequence[Listener]
    ) -> RayPool:
        """Return what makes jobs there; as `workers.Pool` is called."""
        return RayPool(self, store, count, threads, folders, listeners)


@contextmanager
def connected(
    where: Where | None, runtime: Runtime, results: Path, say: Callable[[str], None]
) -> Iterator[Placement | None]:
    """Join the cluster, or start one on this machine; leave it at the end. None stands for no cluster.

    Args:
        runtime: of the suite; tells what a job takes.
        results: the folder that all nodes share.
        say: shows a line.

    Raises:
        ConfigError: Ray is not installed, no cluster is there, or no node of it is large enough for a job.
    """
    if where is None:
        yield None
        return
    ray = _ray()
    _join(ray, where.address or os.environ.get("RAY_ADDRESS") or "local")
    try:
        if warning := disk_warning(results):
            say(warning)
        yield _placement(ray, where, runtime, say)
    finally:
        ray.shutdown()


def _ray() -> Any:
    telemetry.switch_off()
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "--executor ray: expected the package ray, found none; install its extra on every node: "
            "pip install 'kdbench[ray]'"
        ) from None
    return ray


def _join(ray: Any, address: str) -> None:
    if address.startswith("ray://"):
        raise ConfigError(
            f"--address {address}: expected HOST:PORT of the head, or auto; run kdbench on a node of it, since "
            "it writes into the same results folder as the nodes"
        )
    _knock(address)
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # of many kinds: no connection, another version, a node that does not start in time
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"--address {address}: no Ray cluster could be joined or started there: {reason[0]} "
            "(start one: ray start --head --disable-usage-stats; the same Python and Ray everywhere)"
        ) from None


def _knock(address: str) -> None:
    """Ask whether anything listens at HOST:PORT; Ray itself tries for minutes before it says so."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():  # auto, local
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--address {address}: expected a Ray head that listens there, found none ({error}); "
            "start one: ray start --head --disable-usage-stats, and give the address that it prints"
        ) from None


def _placement(ray: Any, where: Where, runtime: Runtime, say: Callable[[str], None]) -> Placement:
    gpus = where.gpu_share if runtime.device == "cuda" else 0.0
    nodes = [found["Resources"] for found in ray.nodes() if found["Alive"]]
    slots = sum(_fitting(found, runtime.threads, gpus) for found in nodes)
    total = {name: sum(found.get(name, 0.0) for found in nodes) for name in ("CPU", "GPU")}
    if not slots:
        raise ConfigError(
            f"--executor ray: expected a node with {runtime.threads} CPUs (suite: threads) and {gpus:g} GPUs "
            f"(--gpu-share) for a job, found {len(nodes)} nodes with {total['CPU']:g} CPUs and {total['GPU']:g} GPUs "
            "together; start a larger node, or ask for less"
        )
    say(f"ray: {len(nodes)} nodes, {total['CPU']:g} CPUs, {total['GPU']:g} GPUs; {slots} jobs at once")
    return Placement(ray, gpus, slots)


def _fitting(resources: dict[str, float], threads: int, gpus: float) -> int:
    """Return how many jobs fit on a node: a whole GPU holds whole shares alone."""
    by_cpu = resources.get("CPU", 0.0) // threads
    if not gpus:
        return int(by_cpu)
    held = resources.get("GPU", 0.0)
    return int(min(by_cpu, held * (1 / gpus // 1) if gpus <= 1 else held // gpus))


def _check_room(ray: Any, jobs: Sequence[Job], threads: int, on_gpus: bool) -> None:
    """Refuse jobs whose processes find no node that holds them all: Ray would wait for one for ever."""
    together = max((job.processes for job in jobs), default=0)
    nodes = [found["Resources"] for found in ray.nodes() if found["Alive"]]
    kind, wanted = ("GPU", together) if on_gpus else ("CPU", together * threads)
    largest = max((found.get(kind, 0.0) for found in nodes), default=0.0)
    if together and largest < wanted:
        raise ConfigError(
            f"fsdp: expected a node with {wanted} {kind}s for {together} processes that train together, the largest "
            f"has {largest:g}; set fsdp to what a node holds, or start a larger one"
        )


class RayPool(Agenda):
    """Runs jobs as Ray tasks; the interface of `workers.Pool`.

    Args:
        count: jobs given to Ray at once; from `placement.slots` on Ray alone decides, so that nodes may join.
    """

    def __init__(
        self,
        placement: Placement,
        store: Store,
        count: int,
        threads: int,
        folders: Sequence[Path],
        listeners: Sequence[Listener],
    ):
        super().__init__(store, listeners)
        self.placement, self.ray = placement, placement.ray
        self.limit = count if count < placement.slots else math.inf
        root = store.root.resolve()
        self.settings = {
            "store": str(root),
            "threads": threads,
            "folders": [str(folder.resolve()) for folder in folders],
            "environment": environment(threads),
            "versions": node.installed(),
            "probe": str(root / f"{TEMPORARY}cluster-{secrets.token_hex(4)}"),
        }
        self.running: dict[Any, Job] = {}
        self.started: set[str] = set()
        self.stop_code, self.stopped_at, self.forced = 0, 0.0, False

    def run(
        self, jobs: Iterable[Job], done: dict[str, dict[str, Any]], inputs: Mapping[str, Job] | None = None
    ) -> Outcome:
        """Make every job, each after those it needs; see `begin`.

        Raises:
            Interrupted: on SIGINT or SIGTERM, after the jobs have saved; a second signal ends them at once.
        """
        jobs = list(jobs)
        _check_room(self.ray, jobs, self.settings["threads"], bool(self.placement.gpus))
        self.begin(jobs, done, inputs)
        probe = Path(self.settings["probe"])
        atomic_write(probe, b"")
        self.board = self._pinned_board()
        fresh = 1 if self.placement.gpus else 0  # a process that has seen one GPU cannot be given another
        self.task = self.ray.remote(max_retries=0, max_calls=fresh, num_cpus=self.settings["threads"])(node.make)
        try:
            with Signals(self._on_signal):
                while self.running or (self.waiting and not self.stop_code):
                    self._stop_if_asked()
                    self._submit()
                    self._collect()
            if self.stop_code:
                raise interrupted(self.stop_code, self.forced)
        finally:
            probe.unlink(missing_ok=True)
        return self.outcome

    def _pinned_board(self) -> Any:
        """Keep the board on the parent's own node: no other node's death may take it along."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self.ray.get_runtime_context().get_node_id(), soft=False)
        return self.ray.remote(num_cpus=0)(node.Board).options(scheduling_strategy=here).remote()

    def _submit(self) -> None:
        self.drop_blocked()
        while not self.stop_code and len(self.running) < self.limit and (job := self.next_ready()):
            gpus = self.placement.gpus and max(self.placement.gpus, job.processes) if job.kind in MODEL_KINDS else 0.0
            cpus = self.settings["threads"] * max(1, job.processes)
            task = self.task.options(num_gpus=gpus, num_cpus=cpus, name=job.title)
            self.running[task.remote(self.settings, job.message(), self.board)] = job

    def _collect(self) -> None:
        """Tell what has come in, then how jobs ended: their last events come before their end."""
        if not self.running:
            time.sleep(0.2)  # all that is left waits for another process
            return
        ended, _ = self.ray.wait([*self.running], num_returns=len(self.running), timeout=0.2)
        by_id = {job.id: job for job in self.running.values()}
        for identity, event in self.ray.get(self.board.drain.remote()):
            if identity in by_id:
                if event["event"] == "started":
                    self.started.add(identity)
                self.tell(by_id[identity], event)
        for reference in ended:
            self._end(reference, self.running.pop(reference))

    def _end(self, reference: Any, job: Job) -> None:
        errors = self.ray.exceptions
        self.started.discard(job.id)
        try:
            event = self.ray.get(reference)
        except errors.TaskCancelledError:
            event = {"event": "interrupted", "message": "stopped before it began"}
        except errors.RayTaskError as error:  # of the job itself: it would come again
            event = {"event": "failed", "message": str(error.cause or error), "trace": str(error)}
        except errors.RayError as error:  # of the system: a process or a node is gone
            if self.stop_code:
                return
            self.try_again(job, "its process or node", _first_line(error))
            return
        if trace := event.pop("trace", None):
            atomic_write(self.store.root / "logs" / f"ray-{job.kind}-{job.key}.log", trace)
        self.settle(job, event)

    def _on_signal(self, number: int) -> None:
        if self.stop_code:
            raise Interrupted("interrupted at once; the next run goes on from the last checkpoints", self.stop_code)
        self.stop_code = 128 + number  # the loop passes it on: Ray may not be entered again from a handler

    def _stop_if_asked(self) -> None:
        """Ask the jobs to save and end, once; take back those that Ray holds; end by force what does not end."""
        if not self.stop_code:
            return
        now = time.monotonic()
        if not self.stopped_at:
            self.stopped_at = now
            self.ray.get(self.board.stop.remote(self.stop_code))
            for reference, job in self.running.items():
                if job.id not in self.started:
                    self.ray.cancel(reference)
        elif now - self.stopped_at > GRACE_S:
            self.forced = True
            for reference in self.running:
                self.ray.cancel(reference, force=True)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


def disk_warning(root: Path) -> str:
    """Return what to mind where locks go over a network, '' on a local disk."""
    import psutil

    there = root.resolve()
    mounts = [disk for disk in psutil.disk_partitions(all=True) if there.is_relative_to(disk.mountpoint)]
    kind = max(mounts, key=lambda disk: len(disk.mountpoint)).fstype if mounts else ""
    if not kind.startswith(NETWORK_DISKS):
        return ""
    return (
        f"{root} lies on {kind}: cells are guarded by flock, which must reach every node (NFS from version 4 on, not "
        "mounted with nolock or local_lock; Lustre mounted with flock)"
    )
