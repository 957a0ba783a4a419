"""Rows 3: a whole matrix by `kdbench run`, against the same cells one by one as scripts over TRL's GKDTrainer.

Both sides get saved models and the same cores: kdbench a worker a core, a TRL script a thread a core. A script starts,
loads, trains on the same batches, saves, and is examined by plain lm-eval on the same items. In its favour, its tokens
are given to it ready made, and lm-eval is told to leave its own tasks unread. Where not all cells are run in TRL, their
time is that of the cells that were, times the number of cells; the note says so.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import corpus
from benchmarks.measure import OFFLINE, ROOT, Absent, Bench, Found
from benchmarks.rows import Row

GROUP = "matrix"
BETAS = {"kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5, "jsd(beta=0.1)": 0.1, "jsd(beta=0.3)": 0.3, "jsd(beta=0.9)": 0.9}
LR = 1e-3
TASKS = ("swap", "replace")


def run(bench: Bench) -> list[Row]:
    """Run the matrix once, and a sample of its cells in TRL."""
    plan = _plan(bench)
    names = ("kdbench run", "TRL GKDTrainer, cell by cell")
    what = f"{len(plan['objectives'])} objectives × 2 teachers × {len(plan['seeds'])} seeds: times as fast"
    with tempfile.TemporaryDirectory(prefix="kdbench-matrix-") as name:
        folder = Path(name)
        made = bench.call("benchmarks.matrix:prepare", corpus_=dict(bench.corpus), folder=name, plan=plan)
        if "missing" in made:
            return [Row(GROUP, what, *names, None, (">=", 6.0), note=made["missing"])]
        ours = kdbench_run(folder)
        sample, cells = _sample(bench, plan)
        theirs = [_cell(bench, folder, plan, cell) for cell in sample]
        rows = _rows(what, names, ours, theirs, sample, cells)
        return rows if any("missing" in one for one in (ours, *theirs)) else [*rows, _same(ours, theirs)]


def _plan(bench: Bench) -> dict[str, Any]:
    return {
        "objectives": list(BETAS)[: bench.pick(6, 6, 2)],
        "seeds": list(range(bench.pick(3, 3, 1))),
        "steps": bench.pick(100, 60, 3),
        "batch_tokens": bench.pick(1024, 1024, 128),
        "sizes": {"vocabulary": bench.pick(2048, 2048, 320), "items": bench.pick(300, 300, 20)}
        | {"smoke": bench.scale == "smoke", "length": bench.pick(64, 64, 32)},
    }


def _sample(bench: Bench, plan: dict[str, Any]) -> tuple[list[tuple[str, str, int]], int]:
    """Return the cells that TRL runs, both teachers alike, and how many there are in all."""
    count = len(plan["objectives"]) * 2 * len(plan["seeds"])
    chosen = plan["objectives"][: bench.pick(3, 1, 1)]
    teachers = ("16x", "30x")[: bench.pick(2, 2, 1)]
    return [(objective, teacher, 0) for objective in chosen for teacher in teachers], count


def prepare(corpus_: dict[str, str], folder: str, plan: dict[str, Any]) -> Found:
    """Write models and suite; no one's time."""
    sizes = corpus.Sizes(**plan["sizes"])
    corpus.save_models(corpus_, sizes, Path(folder))
    objectives = [
        {"name": "jsd", "beta": float(label[9:-1])} if "(" in label else label for label in plan["objectives"]
    ]
    settings = {key: plan[key] for key in ("seeds", "steps", "batch_tokens")} | {"lr": LR, "objectives": objectives}
    (Path(folder) / "suite.yaml").write_text(corpus.suite_text(corpus_, sizes, Path(folder), **settings))
    return {"seconds": 0.0}


def kdbench_run(folder: Path) -> Found:
    """Run the suite as a user does, MLflow and verdict and all; then read the losses of its cells."""
    command = [sys.executable, "-m", "kdbench.cli", "run", str(folder / "suite.yaml"), "--results-dir"]
    begin = time.perf_counter()
    process = subprocess.run(  # noqa: S603
        [*command, str(folder / "results")], capture_output=True, text=True, cwd=ROOT, env=os.environ | OFFLINE
    )
    seconds = time.perf_counter() - begin
    if process.returncode:
        return {"missing": f"kdbench run: {(process.stderr.strip().splitlines() or ['failed'])[-1][:160]}"}
    return {"seconds": seconds, "losses": _losses(folder / "results")}


def _losses(results: Path) -> dict[str, float]:
    plan = json.loads((results / "suites" / "bench" / "plan.json").read_text())
    found = {}
    for cell in plan["cells"]:
        path = results / "cells" / cell["key"] / "metrics.jsonl"
        if path.is_file():
            name = f"{cell['arm']}|{cell['teacher']}|{cell['seed']}"
            found[name] = json.loads(path.read_text().splitlines()[-1])["loss"]
    return found


def _cell(bench: Bench, folder: Path, plan: dict[str, Any], cell: tuple[str, str, int]) -> Found:
    objective, teacher, seed = cell
    settings = {"folder": str(folder), "plan": plan, "objective": objective, "teacher": teacher, "seed": seed}
    begin = time.perf_counter()
    found = bench.call("benchmarks.matrix:trl_cell", threads=os.cpu_count() or 1, **settings)
    return {"wall_s": time.perf_counter() - begin} | found | {"name": f"{objective}|{teacher}|{seed}"}


def trl_cell(folder: str, plan: dict[str, Any], objective: str, teacher: str, seed: int) -> Found:
    """Train one student with GKDTrainer, save it, and examine it with plain lm-eval."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.evaluation import plain_lm_eval
    from benchmarks.trl_trainers import Task, train
    from kdbench.distill import data

    home, sizes = Path(folder), corpus.Sizes(**plan["sizes"])
    student, guide = (AutoModelForCausalLM.from_pretrained(home / name) for name in ("student", teacher))
    tokenizer = AutoTokenizer.from_pretrained(home / "student")
    rows = plan["batch_tokens"] // sizes.length
    (text,) = (home / "results" / "texts").glob("*/train.safetensors")
    blocks = data.distillation_set(data.load_blocks(text), plan["steps"] * plan["batch_tokens"])
    order = [int(row) for step in range(plan["steps"]) for row in data.batch_rows(seed, step, len(blocks), rows)]
    out = home / f"trl-{BETAS[objective]}-{teacher}-{seed}"
    task = Task(student, guide.requires_grad_(False), tokenizer, blocks, order, rows, LR, BETAS[objective], out)
    found = train("gkd", task)
    student.eval().save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    include = home / "results" / "suites" / "bench" / "lm_eval_tasks"
    plain_lm_eval(student, tokenizer, TASKS, include, 64)
    return {"seconds": sum(found.step_seconds(1)), "loss": found.losses[-1]}


def _rows(
    what: str, names: tuple[str, str], ours: Found, theirs: list[Found], sample: list[Any], cells: int
) -> list[Row]:
    missing = [one["missing"] for one in (ours, *theirs) if "missing" in one]
    if missing:
        return [Row(GROUP, what, *names, None, (">=", 6.0), ours.get("seconds"), note=missing[0])]
    a_cell = statistics.mean(one["wall_s"] for one in theirs)
    how = "all measured" if len(sample) == cells else f"extrapolated from {len(sample)} of {cells} cells"
    note = f"TRL: {a_cell * cells:,.0f} s, {how}, {a_cell:.1f} s a cell, {os.cpu_count()} threads"
    return [Row(GROUP, what, *names, a_cell * cells / ours["seconds"], (">=", 6.0), ours["seconds"], note=note)]


def _same(ours: Found, theirs: list[Found]) -> Row:
    """The cells that both sides ran must have learnt the same."""
    pairs = [(ours["losses"][one["name"]], one["loss"]) for one in theirs if one["name"] in ours["losses"]]
    if not pairs:
        raise Absent("no cell was run on both sides")
    worst = max(abs(a - b) for a, b in pairs)
    what = f"last step's loss, {len(pairs)} cells: largest difference"
    names = ("kdbench run", "TRL GKDTrainer, cell by cell")
    return Row(GROUP, what, *names, worst, ("<=", 1e-3), pairs[0][0], "nats")
