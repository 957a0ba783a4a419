"""Where a teacher lies stays out of the keys; its bits stand in those of whoever listens to it.

python -m pytest tests/run/test_placement.py
"""

from __future__ import annotations

import json

import pytest

from kdbench.errors import ConfigError
from kdbench.run.cell import execute
from kdbench.run.jobs import Planner
from kdbench.run.store import Store
from kdbench.run.work import Hooks
from kdbench.suite.loader import override, parse, validate
from kdbench.suite.schema import Suite


def planner(path, *changes: str) -> Planner:
    found = Planner(validate(Suite, override(parse(path), changes)), path.parent)
    found.all()
    return found


def keys(made: Planner) -> dict[str, set[str]]:
    """Keys by kind, those of cells by arm."""
    found: dict[str, set[str]] = {}
    for job in made.jobs.values():
        found.setdefault(job.cell.arm if job.cell else job.kind, set()).add(job.key)
    return found


def test_placement_changes_no_key_and_reaches_every_job_that_holds_a_teacher(suite_file):
    single, spread = planner(suite_file), planner(suite_file, "teacher.placement=auto")
    assert keys(single) == keys(spread)
    assert not any("placement" in job.context for job in single.jobs.values())
    held = [job for job in spread.jobs.values() if job.kind == "teacher_cache" or "teacher" in job.inputs]
    assert len(held) > 6 and all(job.context["placement"] == "auto" for job in held)


def test_bits_change_the_keys_of_those_that_listen_to_the_teacher_alone(suite_file):
    pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed (extra: quantize)")
    whole, few, fewer = (
        keys(planner(suite_file, *c)) for c in ((), ["teacher.quantize=8bit"], ["teacher.quantize=4bit"])
    )
    for name in whole:
        if name in ("kl", "atkd", "ceiling", "teacher_cache"):
            assert not whole[name] & few[name] and not few[name] & fewer[name], name
        else:
            assert whole[name] == few[name] == fewer[name], name


def test_a_cache_in_few_bits_is_made_and_says_so(suite_file, tmp_path):
    pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed (extra: quantize)")
    small = "models.big={init: {architecture: opt, hidden_size: 64, num_hidden_layers: 1, num_attention_heads: 2, "
    small += "ffn_dim: 64, seed: 1}}"
    made, store = planner(suite_file, "teacher.quantize=4bit", "data.tokens=1024", small), Store(tmp_path / "results")
    cache = next(job for job in made.jobs.values() if job.kind == "teacher_cache")
    for job in made.jobs.values():
        if job.kind in ("tokenizers", "texts", "models", "teacher_cache"):
            execute(store, job.message(), Hooks())
    manifest = json.loads((store.entry("teacher_cache", cache.key).path / "manifest.json").read_text())
    assert manifest["quantize"] == cache.inputs["quantize"] and manifest["quantize"]["bits"] == "4bit"


def test_processes_that_train_together_cannot_each_spread_a_teacher(suite_file):
    with pytest.raises(ConfigError, match=r"teacher\.placement: auto would spread a teacher of each process"):
        planner(suite_file, "teacher.placement=auto", "train.fsdp=2")


def test_a_device_that_cannot_is_told_before_anything_is_made(suite_file, monkeypatch):
    library = pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed (extra: quantize)")
    monkeypatch.setattr(library, "supported_torch_devices", {"cuda"}, raising=False)
    with pytest.raises(ConfigError, match=r"teacher\.quantize"):
        planner(suite_file, "teacher.quantize=8bit")
