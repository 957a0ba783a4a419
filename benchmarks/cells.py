"""A suite of thousands of cells and a store that holds them all, with invented scores, to time what grows with them.

The entries are made by the store's own `begin` and `commit`, as workers do; only the training is left out.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import pandas

import kdbench
from benchmarks.corpus import Sizes, read
from benchmarks.measure import Found, watched
from kdbench.analysis.results import item_scores, open_suite
from kdbench.files import atomic_write, write_json
from kdbench.run import orchestrate
from kdbench.run.store import Store
from kdbench.suite import loader
from kdbench.suite.schema import Suite

ITEMS = 20
TEACHERS, OBJECTIVES = 5, 4


def suite(corpus: dict[str, str], cells: int, folder: Path) -> Suite:
    """Return a suite of about `cells` cells: objectives × teachers × as many seeds as it takes."""
    shape = {"architecture": "opt", "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32}
    models = {"student": {"init": shape | {"hidden_size": 16}}}
    models |= {f"teacher-{i}": {"init": shape | {"hidden_size": 16 + 2 * i}} for i in range(TEACHERS)}
    text = {
        "name": "cells",
        "question": "What do many cells cost?",
        "data": {"corpus": corpus, "tokenizer": {"bpe": Sizes.vocabulary}, "length": 32, "tokens": 3200},
        "models": models,
        "students": ["student"],
        "teachers": list(models)[1:],
        "objectives": ["kl", "reverse_kl", "jsd", "atkd"],
        "seeds": list(range(max(2, cells // (TEACHERS * OBJECTIVES)))),
        "train": {"steps": 10, "batch_tokens": 320, "lr": 1e-3},
        "examine": {"tasks": ["swap"], "items": ITEMS, "batch_size": 16, "intrinsic_tokens": 512},
        "compare": {"contrasts": [["reverse_kl", "kl"], ["atkd", "kl"]], "tasks": ["swap"]},
        "device": "cpu",
    }
    import yaml

    path = folder / "cells.yaml"
    path.write_text(yaml.safe_dump(text, sort_keys=False))
    return loader.validate(Suite, loader.parse(path))


def fill(planned: orchestrate.Plan, store: Store) -> None:
    """Make every cell of a plan complete, with scores drawn at random."""
    rng = numpy.random.default_rng(0)
    hashes = [f"{item:016x}" for item in range(ITEMS)]
    for one in planned.cells:
        scores = rng.integers(0, 2, ITEMS).astype(float)
        rows = {"task": "swap", "metric": "acc", "item": range(ITEMS), "score": scores, "item_hash": hashes}
        buffer = io.BytesIO()
        pandas.DataFrame(rows).to_parquet(buffer, index=False)
        entry = store.entry("cells", one.job.key)
        entry.begin(one.job.inputs)
        atomic_write(entry.path / "samples.parquet", buffer.getvalue())
        write_json(entry.path / "results.json", {"swap/acc": float(scores.mean())})
        entry.commit("ok", {"wall_s": 1.0})


@contextmanager
def _roomy_folder() -> Iterator[Path]:
    """A folder in memory where there is one: each entry is synced, which on a disk takes minutes for thousands."""
    shared = Path("/dev/shm")  # noqa: S108
    home = shared if shared.is_dir() and os.access(shared, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="kdbench-cells-", dir=home) as name:
        yield Path(name)


def cost(corpus: dict[str, str], cells: int, warm: bool = True) -> Found:
    """Return the seconds that planning, reading the store, and comparing take with all cells done.

    Args:
        warm: do it with few cells before, so that imports are no part of the time.
    """
    read(corpus)  # says at once if the text is absent
    if warm:
        cost(corpus, 1, warm=False)
    found: dict[str, float] = {}

    def time(name: str, work: Callable[[], Any]) -> Any:
        with watched() as seen:
            result = work()
        found[name] = seen.seconds
        return result

    with _roomy_folder() as folder:
        store = Store(folder / "results")
        chosen = suite(corpus, cells, folder)
        planned = orchestrate.plan(chosen, folder, store)
        fill(planned, store)
        orchestrate.write_plan(planned, store, ())
        time("plan", lambda: orchestrate.plan(chosen, folder, store))
        opened = time("store scan", lambda: open_suite(store.root, "cells"))
        scores = time("read scores", lambda: item_scores(opened, "acc"))
        contrasts = [tuple(pair) for pair in chosen.compare.contrasts]
        time("compare", lambda: kdbench.compare(scores, contrasts=contrasts))
    return {"seconds": sum(found.values()), "parts": found, "cells": len(planned.cells)}
