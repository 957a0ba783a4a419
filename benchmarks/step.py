"""Rows 2: one training step of a cell, against the student's bare step and against TRL's trainers.

Same weights, text, batches, AdamW, rate and clipping on both sides; the losses of all steps are compared.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import kdbench
from benchmarks import tiny
from benchmarks.measure import Absent, Bench, Found, watched
from benchmarks.rows import Row, against
from benchmarks.trl_trainers import Run, Task
from benchmarks.trl_trainers import train as train_with_trl
from kdbench.distill import teacher as teachers
from kdbench.distill.data import batch_rows
from kdbench.distill.train import Plan, train

GROUP = "step"
CLOSED = ("kl", "reverse_kl", "jsd", "atkd")
FASTER = {"16x": 3.5, "30x": 5.5}
BETAS = {"kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}
WARM = 4
LR = 1e-3
TRAINERS = {"gkd": "TRL GKDTrainer", "iw_opd": "TRL IWOPDTrainer (jsd, lmbda = 0)"}


def run(bench: Bench) -> list[Row]:
    """Measure all contestants in turns."""
    size = {
        "steps": bench.pick(40, 30, 6),
        "vocabulary": bench.pick(2048, 2048, 64),
        "length": bench.pick(64, 64, 16),
        "rows": bench.pick(16, 16, 4),
        "device": bench.device,
        "smoke": bench.scale == "smoke",
    }
    closed, sizes = bench.pick(CLOSED, CLOSED, ("kl", "atkd")), bench.pick(("16x", "30x"), ("16x", "30x"), ("16x",))
    cases = [("bare", "kl", "16x")] + [("cache", one, "16x") for one in closed] + [("cache", "kl", "30x")]
    cases += [("floor", "kl", "16x")] + [(one, "kl", times) for times in sizes for one in ("live", *TRAINERS)]
    calls = {
        case: ("benchmarks.step:once", size | dict(zip(("contestant", "objective", "teacher"), case, strict=True)))
        for case in cases
    }
    found = bench.interleaved(calls, repeats=bench.pick(5, 3, 1))
    bare = found["bare", "kl", "16x"]
    floor = ("bare step and the product with the teacher's head", found["floor", "kl", "16x"])
    rows = []
    for one in closed:
        what, ours = f"{one}, cached states: time of a step", found["cache", one, "16x"]
        rows.append(against(GROUP, what, ("kdbench", "bare student step"), (ours, bare), ("<=", 1.1)))
        rows.append(against(GROUP, what, ("kdbench", floor[0]), (ours, floor[1])))
    for times in sizes:
        names, pair = ("kdbench, live teacher", "bare student step"), (found["live", "kl", times], bare)
        rows.append(against(GROUP, f"kl, teacher {times}: time of a step", names, pair))
        for kind, name in TRAINERS.items():
            rows += _beside(times, kind, name, found)
    return rows


def _beside(size: str, kind: str, name: str, found: dict[Any, Found]) -> list[Row]:
    theirs = found[kind, "kl", size]
    rows = []
    for signal, target in (("cache", (">=", FASTER[size])), ("live", None)):
        ours = found[signal, "kl", size]
        what = f"kl, teacher {ours.get('times', 0):.1f} × the student: tokens/s"
        names = (f"kdbench, {signal}", name)
        rows.append(against(GROUP, what, names, (ours, theirs), target, "speed"))
        if signal == "cache":
            rows.append(_same_loss(size, name, ours, theirs))
    return rows


def _same_loss(size: str, name: str, ours: Found, theirs: Found) -> Row:
    what, names = f"kl, teacher {size}: largest difference of the loss", ("kdbench, cache", name)
    if {"missing"} & (ours.keys() | theirs.keys()):
        return Row(GROUP, what, *names, None, ("<=", 1e-4), note=ours.get("missing") or theirs["missing"])
    gaps = [abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)]
    note = f"losses from {ours['losses'][0]:.4f} to {ours['losses'][-1]:.4f} nats a token in {len(gaps)} steps"
    return Row(GROUP, what, *names, max(gaps), ("<=", 1e-4), ours["losses"][-1], "nats", note=note)


def once(
    contestant: str,
    objective: str,
    teacher: str | list[int],
    steps: int,
    vocabulary: int,
    length: int,
    rows: int,
    device: str,
    smoke: bool,
) -> Found:
    """Train for some steps; return the median time of a step, and every step's loss.

    Args:
        teacher: a name in `tiny`, or width and layers.
    """
    if contestant in TRAINERS and find_spec("trl") is None:
        raise Absent("not installed: trl")
    shape = (tiny.SMOKE if smoke else tiny.TEACHERS)[teacher] if isinstance(teacher, str) else tuple(teacher)
    student = tiny.model((16, 1) if smoke else tiny.STUDENT, vocabulary, length, 1)
    guide = tiny.model(shape, vocabulary, length, 2, teacher=True).requires_grad_(False)
    times = tiny.parameters(guide) / tiny.parameters(student)
    text = tiny.blocks(rows * steps, length, vocabulary)
    order = [int(row) for step in range(steps) for row in batch_rows(0, step, len(text), rows)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        tokenizer = tiny.tokenizer(vocabulary)
        tokenizer.save_pretrained(path / "teacher")
        guide.config._name_or_path = str(path / "teacher")  # where IWOPDTrainer looks for the teacher's tokenizer
        on = (one.to(device) for one in (student, guide))
        task = Task(*on, tokenizer, text, order, rows, LR, BETAS.get(objective, 0.0), path / "out")
        work = CONTESTANTS[contestant](task, objective, vocabulary, steps)
        with watched(device) as seen:
            found = work()
    seen.seconds = statistics.median(found.step_seconds(min(WARM, steps // 2)))
    return seen.facts() | {"losses": found.losses, "times": times, "teacher": tiny.parameters(guide)}


# --- contestants: each prepares, and returns what is measured ---------------------------------------------------------


def _bare(task: Task, objective: str, vocabulary: int, steps: int, with_head: bool = False) -> Callable[[], Run]:
    """The student alone, on cross-entropy; and with the teacher's logits made of given states, which none can avoid."""
    head = task.teacher.get_output_embeddings().weight.detach()
    states = torch.randn(task.batch_rows * (task.blocks.ids.shape[1] - 1), head.shape[1], device=head.device)

    def work() -> Run:
        found = Run()
        model = task.student.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=task.lr, weight_decay=0.0)
        ids = task.blocks.ids[task.order].long().to(next(model.parameters()).device).split(task.batch_rows)
        for batch in ids:
            optimizer.zero_grad(set_to_none=True)
            if with_head:
                states @ head.t()
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            found.losses.append(float(loss.detach()))
            found.ends.append(time.perf_counter())
        return found

    return work


def _cell(signal: str) -> Callable[[Task, str, int, int], Callable[[], Run]]:
    """A cell's own training loop, as `kdbench run` calls it."""

    def prepare(task: Task, objective: str, vocabulary: int, steps: int) -> Callable[[], Run]:
        guide: teachers.Teacher = teachers.LiveTeacher(task.teacher, task.blocks, vocabulary, "float32")
        if signal == "cache":
            guide = stored(task, vocabulary)

        def work() -> Run:
            found = Run()

            def on_step(record: dict[str, Any]) -> None:
                found.losses.append(record["loss"])
                found.ends.append(time.perf_counter())

            plan = Plan(steps, task.batch_rows, task.lr, warmup=0.0, schedule="constant", checkpoint_steps=steps)
            settings = {"seed": 0, "vocabulary": vocabulary, "precision": "float32"}
            chosen = kdbench.objective(objective)
            train(task.student, chosen, task.blocks, guide, plan, folder=task.folder, on_step=on_step, **settings)
            return found

        return work

    return prepare


def stored(task: Task, vocabulary: int) -> teachers.CachedTeacher:
    """Write the teacher's cache, as the suite's workers do once for all cells, and open it."""
    folder = task.folder.parent / "cache"

    def read(part: Any) -> teachers.Signal:
        return teachers.read_states(task.teacher, part, vocabulary, "float32", torch.float32)

    teachers.write_cache(folder, task.blocks, read, lambda done, count: None)
    return teachers.CachedTeacher(folder, teachers.LiveTeacher(task.teacher, None, vocabulary, "float32"))


def _with_trl(kind: str) -> Callable[[Task, str, int, int], Callable[[], Run]]:
    return lambda task, objective, vocabulary, steps: lambda: train_with_trl(kind, task)


CONTESTANTS = {
    "bare": _bare,
    "floor": partial(_bare, with_head=True),
    "cache": _cell("cache"),
    "live": _cell("live"),
    **{kind: _with_trl(kind) for kind in TRAINERS},
}
