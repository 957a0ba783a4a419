"""A cell whose student two processes train is the cell that one trains; it ends cleanly when one of them does not.

python -m pytest tests/run/test_ranks.py
"""

from __future__ import annotations

import json
import multiprocessing
import shutil

import pytest
import torch
from safetensors.torch import load_file

from kdbench.errors import ConfigError, Diverged, Interrupted, OutOfMemory
from kdbench.run import ranks
from kdbench.run.cell import execute
from kdbench.run.jobs import Planner
from kdbench.run.store import Store
from kdbench.run.work import Hooks
from kdbench.suite.loader import override, parse, validate
from kdbench.suite.schema import Suite
from tests.conftest import SUITE

CHANGES = ["objectives=[atkd]", "seeds=[0]", "train.steps=6", "examine={tasks: [swap], items: 20}"]
CHANGES += ["compare={baseline: floor, tasks: [swap]}"]


def planner(path, *changes: str) -> Planner:
    found = Planner(validate(Suite, override(parse(path), [*CHANGES, *changes])), path.parent)
    found.all()
    return found


def cell_of(made: Planner):
    return next(job for cell, job in made.cells if cell.spec)


@pytest.fixture(scope="module")
def suite_path(tmp_path_factory, corpus_folder):
    path = tmp_path_factory.mktemp("together") / "tiny.yaml"
    path.write_text(SUITE.format(corpus=corpus_folder), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def store(suite_path):
    """A store in which one process has trained the student; what the other suite needs is there too."""
    store = Store(suite_path.parent / "results")
    made = planner(suite_path)
    for job in made.jobs.values():
        if job.kind != "cells" or job is cell_of(made):
            execute(store, job.message(), Hooks())
    return store


@pytest.fixture(scope="module")
def together(suite_path, store):
    """The cell of two processes, undisturbed: its job and its entry."""
    job = cell_of(planner(suite_path, "train.fsdp=2"))
    done = execute(store, job.message(), Hooks())
    assert done["status"] == "ok" and not store.entry("cells", job.key).checkpoints.exists()
    return job, store.entry("cells", job.key)


def test_two_processes_make_the_cell_of_one(suite_path, store, together):
    job, made = together
    alone = cell_of(planner(suite_path))
    assert (job.processes, alone.processes) == (2, 0)  # by which Ray reserves GPUs
    assert job.key != alone.key
    asked = {**job.inputs, "train": {name: value for name, value in job.inputs["train"].items() if name != "fsdp"}}
    assert job.inputs["train"]["fsdp"] == 2 and asked == alone.inputs
    expected = store.entry("cells", alone.key)
    assert made.done()["final_loss"] == pytest.approx(expected.done()["final_loss"], rel=1e-3)
    mine, theirs = (load_file(one.path / "model" / "model.safetensors") for one in (made, expected))
    assert mine.keys() == theirs.keys() and all(torch.allclose(mine[n], theirs[n], atol=2e-3) for n in mine)


@pytest.mark.slow
@pytest.mark.fault("A5", "SIGKILL of one of two processes that train one model: the other is ended, the same bytes")
@pytest.mark.fault("B1", "SIGTERM to every process of a model that two train, as a machine that shuts down does: saved")
def test_two_processes_that_were_stopped_and_killed_make_the_same_cell(together, store, tmp_path, monkeypatch):
    """Stopped after the second step, and one of them killed at the fifth: the third start ends it, to the bit."""
    job, expected = together
    shutil.copytree(
        store.root, tmp_path / "results", ignore=lambda folder, names: [job.key] if job.key in names else []
    )
    store, events = Store(tmp_path / "results"), []

    def stop() -> int:
        if not any(one.get("step") == 2 for one in events):
            return 0
        for process in multiprocessing.active_children():
            process.terminate()
        return 143

    hooks = Hooks(events.append, stop)
    monkeypatch.setenv("KDBENCH_FAILPOINT", "step:2:sleep:3")  # until the stop has come to them
    with pytest.raises(Interrupted) as stopped:
        execute(store, job.message(), hooks)
    assert stopped.value.exit_code == 143
    saved = list(store.entry("cells", job.key).checkpoints.glob("step-*.json"))
    assert saved and not multiprocessing.active_children()

    monkeypatch.setenv("KDBENCH_FAILPOINT", "step:2:kill")
    with pytest.raises(RuntimeError, match=r"one of 2 processes that trained together failed: "):
        execute(store, job.message(), Hooks(events.append))
    assert not multiprocessing.active_children()
    monkeypatch.delenv("KDBENCH_FAILPOINT")

    made = store.entry("cells", job.key)
    execute(store, job.message(), Hooks(events.append))
    lines = (made.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert made.done()["files"] == expected.done()["files"] and not made.checkpoints.exists()


@pytest.mark.slow
def test_two_processes_fine_tune_the_teacher_that_one_does(suite_path, store):
    tuned = "models.big={init: {architecture: opt, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, "
    tuned += "ffn_dim: 32, seed: 1}, finetune: {tokens: 1024, lr: 1e-3, batch_tokens: 256%s}}"
    found = []
    for more in ("", ", fsdp: 2"):
        made = planner(suite_path, tuned % more)
        job = next(job for job in made.jobs.values() if "finetune" in job.inputs)
        for need in made.jobs.values():
            if need.id in job.needs or need.kind in ("tokenizers", "texts"):
                execute(store, need.message(), Hooks())
        execute(store, job.message(), Hooks())
        found.append(load_file(store.entry("models", job.key).path / "model" / "model.safetensors"))
    alone, together = found
    assert all(torch.allclose(alone[name], together[name], atol=1e-3) for name in alone)
    assert not all(torch.equal(alone[name], together[name]) for name in alone)


@pytest.mark.parametrize("error", [Diverged(3, "loss nan is not finite", 1.5), Interrupted("stopped", 143)])
def test_an_error_arrives_as_it_was_raised(error):
    found = ranks._rebuilt(ranks._plain(error))
    assert type(found) is type(error) and str(found) == str(error) and vars(found) == vars(error)
    assert type(ranks._rebuilt(ranks._plain(OutOfMemory("too much")))) is OutOfMemory


@pytest.mark.skipif(torch.cuda.device_count() >= 8, reason="has eight GPUs")
def test_more_processes_than_devices_are_refused():
    with pytest.raises(ConfigError, match=r"fsdp: expected 8 CUDA devices, one a process, found \d"):
        ranks.check_devices(8, "cuda")


def test_a_batch_with_less_than_two_rows_a_process_is_refused(suite_path):
    with pytest.raises(ConfigError, match=r"train\.fsdp: expected at least two rows for each of 5 processes.*8 rows"):
        planner(suite_path, "train.fsdp=5")
