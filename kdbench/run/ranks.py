"""Train a model in several processes, one a device, while this one looks on; their result is a checkpoint.

torch starts the processes and ends them all when one dies. Each makes its own part of the job from the store; the
first tells what happens and writes the checkpoints, as a process alone does.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from kdbench import errors, failpoints, signals
from kdbench.distill import checkpoint, memory, models
from kdbench.errors import ConfigError, Diverged, Interrupted, KdbenchError
from kdbench.registry import user_folders
from kdbench.run.clock import Clock
from kdbench.run.work import Hooks, Work

POLL_S = 0.2


@dataclass(frozen=True)
class Told:
    """What a process is told; plain data, since it crosses into another interpreter.

    Attributes:
        settings: store, threads, objective folders, as a worker gets them.
        job: kind and key of the entry, inputs and context.
        meeting: a file where the processes find each other.
    """

    settings: dict[str, Any]
    job: dict[str, Any]
    size: int
    meeting: str


def train(work: Work, free: Iterable[Callable[[], None]] = ()) -> None:
    """Let several processes train the model of a job, unless they have; its last checkpoint holds the result.

    Args:
        free: called first: each drops models that are held here, where the processes need the room.

    Raises:
        ConfigError: there are fewer devices than processes.
        Diverged, Interrupted, OutOfMemory: as of a training in this process.
    """
    told = work.training
    check_devices(told["fsdp"], work.runtime.device)
    work.clock.counts["train_steps"] = 0
    if checkpoint.load(work.entry.checkpoints).step == told["steps"]:
        return
    for drop in free:
        drop()
    memory.give_back()
    work.hooks.stage("training")
    with work.clock.part("train_s"):
        _together(work, told["fsdp"])


def _together(work: Work, size: int) -> None:
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes

    spawn = multiprocessing.get_context("spawn")
    events, stop = spawn.SimpleQueue(), spawn.Value("i", 0)
    with tempfile.TemporaryDirectory(prefix="kdbench-ranks-") as folder:
        told = _told(work, size, folder)
        started = start_processes(serve, (told, events, stop), nprocs=size, join=False, start_method="spawn")
        failure: KdbenchError | None = None
        try:
            ended = False
            while not ended:
                stop.value = work.hooks.should_stop()
                ended = started.join(POLL_S, grace_period=0)  # of a group that lost one, nobody has anything to save
                failure = _relay(events, work) or failure
        except (ProcessRaisedException, ProcessExitedException) as error:
            failure = _relay(events, work) or failure
            if failure is None:
                last = str(error).strip().splitlines()[-1]
                raise RuntimeError(f"one of {size} processes that trained together failed: {last}") from error
        finally:
            for process in started.processes:
                process.kill()
                process.join()
    if failure is not None:
        raise failure


def check_devices(size: int, device: str) -> None:
    """Refuse more processes than there are GPUs; on a CPU any number may train.

    Raises:
        ConfigError: saying how many there are.
    """
    import torch

    present = torch.cuda.device_count() if device == "cuda" else size
    if device not in ("cuda", "cpu") or present < size:
        raise ConfigError(
            f"fsdp: expected {size} CUDA devices, one a process, found {present if device == 'cuda' else device};"
            " set fsdp to what is there, or take it out where the student fits on one device"
        )


def _told(work: Work, size: int, folder: str) -> Told:
    settings = {
        "store": str(work.store.root.resolve()),
        "threads": work.runtime.threads,
        "folders": [str(one.resolve()) for one in user_folders()],
    }
    job = {"kind": work.entry.path.parent.name, "key": work.entry.key, "inputs": work.inputs, "context": work.context}
    return Told(settings, job, size, str(Path(folder) / "meeting"))


def _relay(events: Any, work: Work) -> KdbenchError | None:
    """Pass on what the processes tell; return the first error of theirs."""
    found = None
    while not events.empty():
        event = events.get()
        if "error" in event:
            found = found or _rebuilt(event)
            continue
        if event["event"] == "step":
            work.clock.count("train_steps")
        work.hooks.emit(event)
    return found


def _plain(error: KdbenchError) -> dict[str, Any]:
    return {"error": type(error).__name__, "message": str(error), "facts": vars(error)}


def _rebuilt(event: dict[str, Any]) -> KdbenchError:
    kind, facts = getattr(errors, event["error"]), event["facts"]
    if kind is Diverged:
        return Diverged(**facts)
    if kind is Interrupted:
        return Interrupted(event["message"], facts["exit_code"])
    return kind(event["message"])


def serve(rank: int, told: Told, events: Any, stop: Any) -> None:
    """Be one of the processes: train, and tell."""
    signals.leave_to_parent()
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    failpoints.arm_from_environment()
    from kdbench.run.worker import prepare

    store = prepare(told.settings)
    tell: Callable[[dict[str, Any]], None] = events.put if rank == 0 else lambda event: None
    hooks = Hooks(tell, lambda: stop.value)
    job = told.job
    models.allow_tf32(job["inputs"])
    work = Work(store, store.entry(job["kind"], job["key"]), job["inputs"], job["context"], hooks, Clock())
    try:
        _train(rank, told, work)
    except KdbenchError as error:
        events.put(_plain(error))
        if not isinstance(error, Diverged | Interrupted):  # these two all processes meet together
            raise


def _train(rank: int, told: Told, work: Work) -> None:
    import torch

    from kdbench.distill.group import Ranks
    from kdbench.run import makers

    kind = work.runtime.device
    if kind == "cuda":
        torch.cuda.set_device(rank)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    group = Ranks(rank, told.size, device, Path(told.meeting))
    makers.train_share(work, group)
    group.leave()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)  # whoever makes the job next must be alone; files are safe at any moment
