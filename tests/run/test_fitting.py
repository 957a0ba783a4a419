"""Cells that are made to fit: by adapters, by computing activations again, or not at all.

python -m pytest tests/run/test_fitting.py
"""

from __future__ import annotations

import json

import pytest

from kdbench.errors import OutOfMemory
from kdbench.run import cell
from kdbench.run.jobs import training
from kdbench.run.store import Store
from kdbench.run.work import Hooks
from kdbench.suite.schema import Train
from tests.conftest import kdbench


def test_what_is_not_used_is_in_no_key():
    plain = training(Train(steps=4, lr=0.1, batch_tokens=256), 32)
    assert not {"compile", "lora", "gradient_checkpointing"} & set(plain)
    used = training(Train(steps=4, lr=0.1, gradient_checkpointing=True, lora={"r": 2}), 32)
    assert used["lora"] == {"r": 2, "alpha": 16.0, "targets": []} and used["gradient_checkpointing"] is True


@pytest.mark.fault("F2", "a cell that does not fit: failed, with sizes and advice")
def test_a_cell_that_does_not_fit_is_stored_as_failed_with_sizes_and_advice(tmp_path, monkeypatch):
    def make(work):
        raise OutOfMemory("out of memory: a micro-batch of one row does not fit (5 parameters)")

    monkeypatch.setitem(cell.MAKERS, "cells", make)
    job = {"kind": "cells", "key": "k1", "title": "a cell", "inputs": {}, "needs": [], "context": {}}
    with pytest.raises(OutOfMemory):
        cell.execute(Store(tmp_path), job, Hooks())
    done = Store(tmp_path).entry("cells", "k1").done()
    assert done["status"] == "failed" and done["reason"].startswith("out of memory: ")


def test_a_suite_with_adapters_and_checkpointing_ends_with_ordinary_students(suite_file, tmp_path):
    pytest.importorskip("peft", reason="the package peft is not installed (extra: lora)")
    changes = ("--set", "train.lora={r: 2}", "--set", "train.gradient_checkpointing=true", "--set", "seeds=[0]")
    chosen = ("--set", "objectives=[sft, kl]", "--set", "compare.contrasts=[]")
    kdbench("run", suite_file, "--results-dir", tmp_path / "r", "--no-mlflow", "--workers", 1, *changes, *chosen)
    cells = json.loads((tmp_path / "r" / "suites" / "tiny" / "plan.json").read_text())["cells"]
    inputs = next(one for one in cells if one["arm"] == "kl")
    assert inputs["inputs"]["peft"] and inputs["inputs"]["train"]["lora"]["r"] == 2
    folder = tmp_path / "r" / "cells" / inputs["key"] / "model"
    assert (folder / "model.safetensors").is_file() and not list(folder.glob("adapter*"))
