"""Rows 4: the teacher cache. Its bytes against other layouts, its speed, and what a training step waits for it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch

import kdbench
from benchmarks import tiny
from benchmarks.measure import Bench, Found
from benchmarks.rows import Row
from benchmarks.step import stored
from benchmarks.trl_trainers import Task
from kdbench.distill import teacher as teachers
from kdbench.distill.data import Blocks, batch_rows
from kdbench.distill.layouts import DTYPES, Layout
from kdbench.distill.loss import TeacherStates
from kdbench.distill.train import Plan, train

GROUP = "cache"
TOP_K = 64
LOG_PROB_BYTES = 2


def run(bench: Bench) -> list[Row]:
    """Measure the store with states as wide as a real teacher's, and the waiting in a real training."""
    vocabulary, width = 50_272, bench.pick(2048, 2048, 64)
    size = {"rows": bench.pick(2048, 512, 64), "length": bench.pick(64, 64, 16), "width": width}
    calls = {dtype: ("benchmarks.cache:store", size | {"dtype": dtype}) for dtype in ("float32", "bfloat16")}
    calls["wait"] = ("benchmarks.cache:waiting", {"steps": bench.pick(60, 40, 4), "smoke": bench.scale == "smoke"})
    found = bench.interleaved(calls, repeats=bench.pick(3, 3, 1))
    rows = [
        row for dtype in ("float32", "bfloat16") for row in _store_rows(found[dtype], f"{width} × {dtype}", vocabulary)
    ]
    return [*rows, _waiting_row(found["wait"])]


def _store_rows(found: Found, layout: str, vocabulary: int) -> list[Row]:
    contestant = f"states, {layout}"
    if "missing" in found:
        return [Row(GROUP, "bytes a token", contestant, "bf16 logits", None, note=found["missing"])]
    mine = found["bytes_a_token"]
    index = 2 if vocabulary <= 2**16 else 4
    others = {f"bf16 logits, V = {vocabulary:,}": 2 * vocabulary, f"top-{TOP_K}": TOP_K * (index + LOG_PROB_BYTES)}
    rows = [
        Row(GROUP, "bytes a token", contestant, name, mine / size, None, mine, "bytes") for name, size in others.items()
    ]
    for what, reference, note in (
        ("write", "one plain file, written and synced", "a file, a sum and two syncs a shard are part of it"),
        ("read", "the plain file, read through", "both from the page cache; rows at random, as training asks for them"),
    ):
        speed, plain = found[f"{what}_mb_s"], found[f"plain_{what}_mb_s"]
        rows.append(Row(GROUP, f"{what}: speed", contestant, reference, speed / plain, None, speed, "MB/s", note=note))
    return rows


def _waiting_row(found: Found) -> Row:
    names = ("reading the cache", "training step")
    if "missing" in found:
        return Row(GROUP, "share of a step spent waiting", *names, None, ("<", 0.02), note=found["missing"])
    return Row(
        GROUP, "share of a step spent waiting", *names, found["share"], ("<", 0.02), 1e3 * found["wait_s"], "ms a step"
    )


def store(rows: int, length: int, width: int, dtype: str) -> Found:
    """Write and read random states; the teacher's own time is no part of it."""
    text, kind = tiny.blocks(rows, length, 1000), DTYPES[dtype]
    tokens = int(text.mask[:, 1:].sum())
    head = torch.empty(1, width)
    ready: dict[int, teachers.Signal] = {}

    def read(part: Blocks) -> teachers.Signal:
        n = int(part.mask[:, 1:].sum())
        if n not in ready:
            states = torch.randn(n, width).to(kind)
            ready[n] = teachers.Signal(TeacherStates(states, head), torch.zeros(n), torch.zeros(n))
        return ready[n]

    for begin in (0, rows - rows % teachers.SHARD_ROWS):
        read(Blocks(text.ids[begin : begin + teachers.SHARD_ROWS], text.mask[begin : begin + teachers.SHARD_ROWS]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.perf_counter()
        teachers.write_cache(folder / "cache", text, read, lambda done, count: None, Layout("hidden", kind))
        wrote = time.perf_counter() - begin
        bytes_ = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
        took = _read_all(folder / "cache", rows, head)
        plain_wrote, plain_took = _plain(folder / "plain", (folder / "cache").rglob("shard-*"))
    times = {"write": wrote, "read": took, "plain_write": plain_wrote, "plain_read": plain_took}
    speeds = {f"{what}_mb_s": bytes_ / seconds / 1e6 for what, seconds in times.items()}
    return {"seconds": wrote, "bytes_a_token": bytes_ / tokens, **speeds}


def _read_all(folder: Path, rows: int, head: torch.Tensor) -> float:
    """Read every row once, in batches of a random order, as training does."""
    reader = teachers.CachedTeacher(folder, _Headless(head))  # type: ignore[arg-type]
    begin = time.perf_counter()
    for step in range(rows // 16):
        reader.signal(batch_rows(0, step, rows, 16)).states.hidden.sum()  # touch it: pages come when asked for
    return time.perf_counter() - begin


class _Headless:
    """Stands where the live teacher of a cache stands, for states that no model made."""

    vocabulary = 1

    def __init__(self, head: torch.Tensor):
        self.model = self
        self._embedding = torch.nn.Embedding.from_pretrained(head)

    def get_output_embeddings(self) -> torch.nn.Embedding:
        """The head, where kdbench asks a model for it."""
        return self._embedding


def _plain(path: Path, shards: Iterable[Path]) -> tuple[float, float]:
    """What the disk gives: the same bytes in one file, written and synced, then read."""
    content = [shard.read_bytes() for shard in sorted(shards)]
    begin = time.perf_counter()
    with open(path, "wb") as file:
        for part in content:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    wrote = time.perf_counter() - begin
    begin = time.perf_counter()
    path.read_bytes()
    return wrote, time.perf_counter() - begin


def waiting(steps: int, smoke: bool) -> Found:
    """Train from a cache, and note how long each step waits for the teacher's states."""
    vocabulary, length, rows = (64, 16, 4) if smoke else (2048, 64, 16)
    shape, guide_shape = ((16, 1), tiny.SMOKE["30x"]) if smoke else (tiny.STUDENT, tiny.TEACHERS["30x"])
    student = tiny.model(shape, vocabulary, length, 1)
    guide = tiny.model(guide_shape, vocabulary, length, 2, teacher=True).requires_grad_(False)
    text = tiny.blocks(rows * steps, length, vocabulary)
    waits: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        task = Task(student, guide, None, text, [], rows, 1e-3, 0.0, Path(name) / "out")
        cached = stored(task, vocabulary)
        plain = cached.signal

        def timed(chosen: torch.Tensor) -> teachers.Signal:
            begin = time.perf_counter()
            found = plain(chosen)
            waits.append(time.perf_counter() - begin)
            return found

        cached.signal = timed  # type: ignore[method-assign]
        plan = Plan(steps, rows, 1e-3, checkpoint_steps=steps)
        settings = {"seed": 0, "vocabulary": vocabulary, "precision": "float32", "folder": task.folder}
        begin = time.perf_counter()
        train(student, kdbench.objective("kl"), text, cached, plan, **settings)
        whole = time.perf_counter() - begin
    return {"seconds": whole / steps, "wait_s": sum(waits) / steps, "share": sum(waits) / whole}
