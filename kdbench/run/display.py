"""What a person sees while cells run: bars on a terminal, plain lines elsewhere. Talk goes to stderr."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Set
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from kdbench.distill import jumps
from kdbench.distill.accuracy import in_words
from kdbench.distill.checkpoint import DAMAGED
from kdbench.run.clock import train_seconds
from kdbench.run.jobs import Job

WINDOW = 20
Foreseen = Callable[[Set[str], float], float | None]


class Display:
    """A listener of the pool.

    Args:
        total: jobs to be made.
        step_tokens: what a cell's step reads.
        foreseen: given the ids of the jobs that have ended and the seconds since the start, returns the seconds left;
            None while that is not known yet.
    """

    def __init__(self, console: Console, total: int, step_tokens: int, foreseen: Foreseen = lambda ended, s: None):
        self.console, self.total, self.step_tokens, self.foreseen = console, total, step_tokens, foreseen
        self.finished = 0
        self.ended: set[str] = set()
        self.started = time.monotonic()
        self.steps: dict[str, deque[tuple[float, int]]] = {}
        self.tasks: dict[str, Any] = {}
        self.live = console.is_terminal
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", table_column=None),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not self.live,
        )

    def __enter__(self) -> Display:
        self.progress.start()
        self.overall = self.progress.add_task("[bold]all", total=self.total, note="")
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def event(self, job: Job, event: dict[str, Any]) -> None:
        """Show one event."""
        kind = event["event"]
        if kind == "started":
            self.steps[job.id] = deque(maxlen=WINDOW)
            if self.live:
                self.tasks[job.id] = self.progress.add_task(job.title, total=None, note="")
        elif kind in ("step", "progress", "stage"):
            self._advance(job, event)
        elif kind == "said":
            self._print(f"{job.title} {event['message']}")
        elif kind in ("finished", "failed", "busy", "interrupted", "died", "again"):
            if job.id in self.tasks:
                self.progress.remove_task(self.tasks.pop(job.id))
            self._say(job, event)

    def _advance(self, job: Job, event: dict[str, Any]) -> None:
        if not self.live or job.id not in self.tasks:
            return
        task = self.tasks[job.id]
        if event["event"] == "stage":
            self.progress.update(task, note=event["stage"])
        elif event["event"] == "progress":
            self.progress.update(task, completed=event["done"], total=event["total"])
        else:
            seen = self.steps[job.id]
            seen.append((time.monotonic(), event["step"]))
            note = f"loss {event['loss']:.3f}"
            if len(seen) > 1 and job.kind == "cells":
                rate = (seen[-1][1] - seen[0][1]) * self.step_tokens / max(1e-9, seen[-1][0] - seen[0][0])
                note += f" · {rate:,.0f} tokens/s"
            self.progress.update(task, completed=event["step"], total=event["total"], note=note)

    def _say(self, job: Job, event: dict[str, Any]) -> None:
        if event["event"] == "again":
            self.total += 1
        if event["event"] in ("finished", "failed"):
            self.finished += 1
            self.ended.add(job.id)
        line = f"[{self.finished}/{self.total}] {job.title}: {_ending(event)}"
        if left := self._left():
            line += f" · {left} left"
        self.progress.update(self.overall, completed=self.finished, total=self.total, note=self._left())
        self._print(line)

    def _print(self, line: str) -> None:
        self.progress.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _left(self) -> str:
        if not 0 < self.finished < self.total:
            return ""
        elapsed = time.monotonic() - self.started
        seconds = self.foreseen(self.ended, elapsed)
        if seconds is None:
            seconds = elapsed / self.finished * (self.total - self.finished)
        return f"about {seconds / 60:.0f} min" if seconds > 90 else f"about {seconds:.0f} s"


def _ending(event: dict[str, Any]) -> str:
    if event["event"] != "finished":
        kind, message = event["event"], event["message"]
        return {"busy": f"waits: {message}", "died": message, "again": message}.get(kind, f"{kind}: {message}")
    done = event["done"]
    words = [done["status"] if done["status"] == "ok" else f"{done['status']}: {done.get('reason', '')}"]
    if "final_loss" in done:
        words.append(f"loss {done['final_loss']:.3f}")
    if jumps.RECORDED in done:
        words.append(jumps.in_words(done[jumps.RECORDED]))
    if "effect" in done:
        words.append(in_words(done["effect"]))
    if found := done["timing"].get(DAMAGED):
        words.append(f"{found} damaged checkpoints were set aside")
    words.append(f"{done['timing']['wall_s']:.1f} s")
    if done.get("tokens") and (seconds := train_seconds(done)):
        words.append(f"{done['tokens'] / seconds:,.0f} tokens/s")
    return ", ".join(words)
