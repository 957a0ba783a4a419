"""The examination of a cell's model: what is asked of it, and the files that hold what it scored."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import pandas
import torch

from kdbench import failpoints
from kdbench.distill import data, memory
from kdbench.evaluate import harness, intrinsic, judged_tasks, token_scores
from kdbench.files import atomic_write, write_json
from kdbench.run import elsewhere
from kdbench.run.watchdog import beating
from kdbench.run.work import Work


def examine(
    work: Work, model: torch.nn.Module, tokenizer: Any, guide: torch.nn.Module | None, held_out: data.Blocks
) -> None:
    """Write results.json (aggregates), samples.parquet (a score an item) and tokens.parquet (a row a token).

    Args:
        guide: the teacher, to whose distributions the student's are compared; None: there is none.
        held_out: the blocks on which that is done.
    """
    settings = work.inputs["examine"]
    folder = work.find("tasks", work.inputs["tasks"]).path
    paths = {name: folder / f"{name}.jsonl" for name in settings["tasks"]}
    work.hooks.stage("examining")
    failpoints.hit("examine")
    sizes = partial(memory.sizes, model, settings["batch_size"], held_out.length, len(tokenizer))
    with (
        work.clock.part("examine_s"),
        beating(model, work.hooks),
        memory.explained("the examination", sizes),
    ):
        metrics, items, judged = {}, [], []
        if paths:
            found = harness.examine(model, tokenizer, paths, batch_size=settings["batch_size"])
            metrics, items = found.metrics, found.items
        if asked := elsewhere.of_work(work):
            more, judged = judged_tasks.examine(model, tokenizer, asked, batch_size=settings["batch_size"])
            metrics, items = metrics | more.metrics, items + more.items
        own = intrinsic.examine(
            model, guide, held_out, settings["intrinsic_tokens"], len(tokenizer), work.runtime.precision
        )
    _write_rows(work.entry.path / "samples.parquet", items)
    if judged:
        _write_rows(work.entry.path / judged_tasks.FILE, judged)
    atomic_write(work.entry.path / token_scores.FILE, token_scores.to_parquet(own.tokens))
    write_json(work.entry.path / "results.json", dict(sorted({**metrics, **own.metrics}.items())))


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    buffer = io.BytesIO()
    pandas.DataFrame(rows).to_parquet(buffer, index=False)
    atomic_write(path, buffer.getvalue())
