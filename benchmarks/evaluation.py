"""Rows 6: items a second of kdbench's examination, against plain lm-eval on the same model and tasks.

The first examination of a process pays what both sides pay once: imports, the tasks, the tokenizer. Every later one in
the same process is what a worker pays for each cell of a matrix. Plain lm-eval is called as its documentation shows,
which reads the index of all its tasks each time; and again told to read ours alone, which few know of.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import corpus
from benchmarks.measure import Bench, Found, watched
from benchmarks.rows import Row, against

GROUP = "evaluation"
TASKS = ("swap", "replace", "agreement", "last_word", "perplexity")
PEERS = ("lm-eval, our tasks alone", "lm-eval")
ROUNDING = 1e-5  # nats a word: the order of sums differs with the order of items


def run(bench: Bench) -> list[Row]:
    """Measure both sides in turns, and compare every score."""
    names = TASKS[: bench.pick(5, 5, 1)] + bench.pick((), (), ("perplexity",))
    sizes = {"vocabulary": bench.pick(2048, 2048, 320), "items": bench.pick(300, 150, 12)}
    with tempfile.TemporaryDirectory(prefix="kdbench-exam-") as folder:
        sizes |= {"smoke": bench.scale == "smoke"}
        settings = {"corpus_": dict(bench.corpus), "folder": folder, "names": list(names), "sizes": sizes}
        made = bench.call("benchmarks.evaluation:prepare", **settings)
        if "missing" in made:
            return [Row(GROUP, "first examination", "kdbench", "lm-eval", None, note=made["missing"])]
        asked = {"folder": folder, "names": list(names)}
        sides = ("kdbench", *PEERS[: bench.pick(2, 2, 1)])
        calls = {side: ("benchmarks.evaluation:once", asked | {"side": side}) for side in sides}
        found = bench.interleaved(calls, repeats=bench.pick(3, 2, 1))
    return [row for side in sides[1:] for row in _rows(found["kdbench"], side, found[side])]


def _rows(ours: Found, side: str, theirs: Found) -> list[Row]:
    names, pair = ("kdbench", side), (ours, theirs)
    rows = [against(GROUP, "first examination of a process: items/s", names, pair, quantity="speed")]
    missing = next((one["missing"] for one in pair if "missing" in one), None)
    if missing:
        return rows
    speeds = [f"{one['items'] / one['later']:,.1f}" for one in pair]
    note = f"{ours['items']:,} items; {speeds[0]} against {speeds[1]} a second"
    rows.append(
        Row(GROUP, "every later one: items/s", *names, theirs["later"] / ours["later"], None, ours["later"], note=note)
    )
    different = differing(ours["scores"], theirs["scores"])
    assert not different, f"{len(different)} items score otherwise in plain lm-eval, such as {different[:3]}"
    what = f"scores that differ, of {len(ours['scores']):,} items"
    rows.append(Row(GROUP, what, *names, 0.0, ("<=", 0.0), float(len(different)), "items"))
    return rows


def differing(ours: dict[str, float], theirs: dict[str, float]) -> list[str]:
    """Return the items whose scores are not the same; 0 or 1 must be equal, nats up to rounding."""
    if ours.keys() != theirs.keys():
        return sorted(ours.keys() ^ theirs.keys())
    return [
        item
        for item, score in ours.items()
        if abs(score - theirs[item]) > (ROUNDING * max(1.0, abs(score)) if item.startswith("perplexity") else 0.0)
    ]


def prepare(corpus_: dict[str, str], folder: str, names: list[str], sizes: dict[str, Any]) -> Found:
    """Write model and tasks."""
    home = Path(folder)
    corpus.save_models(corpus_, corpus.Sizes(**sizes), home)
    corpus.save_tasks(corpus_, tuple(names), sizes["items"], home / "tasks")
    return {"seconds": 0.0}


def once(side: str, folder: str, names: list[str]) -> Found:
    """Examine twice in this process: `seconds` is the first time, `later` the second."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    home = Path(folder)
    model = AutoModelForCausalLM.from_pretrained(home / "16x").eval()
    tokenizer = AutoTokenizer.from_pretrained(home / "tokenizer")

    def work() -> dict[str, float]:
        if side == "kdbench":
            from kdbench.evaluate import harness

            paths = {name: home / "tasks" / f"{name}.jsonl" for name in names}
            found = harness.examine(model, tokenizer, paths, batch_size=64)
            return {f"{item['task']}/{item['item']}": item["score"] for item in found.items}
        return plain_lm_eval(model, tokenizer, names, home / "tasks" / "lm_eval", 64, defaults=side == PEERS[1])

    with watched() as first:
        scores = work()
    with watched() as later:
        again = work()
    assert scores == again, "a second examination of the same model scored otherwise"
    return first.facts() | {"later": later.seconds, "scores": scores, "items": len(scores)}


def plain_lm_eval(
    model: Any, tokenizer: Any, names: Sequence[str], include: Path, batch_size: int, defaults: bool = False
) -> dict[str, float]:
    """Examine with lm-eval's simple_evaluate; return a score an item. `defaults`: index its own tasks too, as it does
    unless told otherwise."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    manager = TaskManager(include_path=str(include), include_defaults=defaults)
    tasks = [f"kdbench_{name}" for name in names]
    found = lm_eval.simple_evaluate(model=lm, tasks=tasks, task_manager=manager, log_samples=True, bootstrap_iters=0)
    return {
        f"{name}/{sample['doc_id']}": _score(name, sample)
        for name in names
        for sample in found["samples"][f"kdbench_{name}"]
    }


def _score(name: str, sample: dict[str, Any]) -> float:
    if name != "perplexity":
        return float(sample["acc"])
    log_likelihood, words = sample["word_perplexity"]
    return -log_likelihood / words
