"""Make one entry of the store: an idempotent, locked function of its key.

Whoever holds the lock makes it, from where it stands; everyone may try. Runs in warm worker processes that keep
tokenizer, text, teacher and tasks between cells.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas
import torch

from kdbench.distill import data, models, teacher, train
from kdbench.errors import ConfigError, Diverged, Interrupted, StoreError
from kdbench.evaluate import harness, intrinsic, tasks
from kdbench.files import atomic_write, write_json
from kdbench.registry import objective
from kdbench.run.store import Clock, Entry, Store


@dataclass(frozen=True)
class Hooks:
    """How a maker talks to whoever watches: events out, a stop code in (0: go on)."""

    emit: Callable[[dict[str, Any]], None] = lambda event: None
    should_stop: Callable[[], int] = lambda: 0

    def stage(self, name: str) -> None:
        """Say what is being done now; stop here if asked to."""
        self.emit({"event": "stage", "stage": name})
        if code := self.should_stop():
            raise Interrupted(f"stopped before: {name}", code)


@dataclass(frozen=True)
class Work:
    """One job in hand."""

    store: Store
    entry: Entry
    inputs: dict[str, Any]
    context: dict[str, Any]
    hooks: Hooks
    clock: Clock

    def find(self, kind: str, key: str) -> Entry:
        """Return another entry, such as the text this job reads."""
        return self.store.entry(kind, key)

    @property
    def runtime(self) -> models.Runtime:
        """Device, precision, threads."""
        return models.Runtime(self.inputs["device"], self.inputs["precision"], self.inputs["threads"])


def execute(store: Store, job: dict[str, Any], hooks: Hooks) -> dict[str, Any]:
    """Make the entry of a job unless it is complete; return its DONE.json.

    Divergence and failure are results: they are committed as such. A damaged input is set aside and named.

    Raises:
        Busy: another process is making it.
        Interrupted: stopped on request, after saving.
        ConfigError, StoreError: what the user can mend.
    """
    entry = store.entry(job["kind"], job["key"])
    with entry.locked():
        done = entry.done()
        if done is not None and done["status"] != "failed":
            return done
        for need in job["needs"]:
            _verify(store, need)
        entry.begin(job["inputs"])
        clock = Clock()
        work = Work(store, entry, job["inputs"], job["context"], hooks, clock)
        try:
            facts = MAKERS[job["kind"]](work)
            entry.commit("ok", clock.facts(), **(facts or {}))
        except Diverged as error:
            entry.commit("diverged", clock.facts(), reason=str(error), step=error.step)
        except (ConfigError, StoreError, Interrupted):
            raise
        except Exception as error:  # a failure of one cell is its result, not the end of the matrix
            entry.commit("failed", clock.facts(), reason=f"{type(error).__name__}: {error}")
            raise
        return entry.done() or {}


@lru_cache(maxsize=64)
def _verify(store: Store, need: str) -> None:
    """Check an input's sha256 sums once a worker; set it aside if damaged, so that the next run makes it again."""
    entry = store.entry(*need.split("/"))
    try:
        entry.verified()
    except StoreError as error:
        if entry.state() in ("ok", "damaged"):
            raise StoreError(f"{error} (set aside as {entry.set_aside().name})") from None
        raise


# --- what several makers read; kept warm -----------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _tokenizer(folder: Path) -> Any:
    return models.load_tokenizer(folder)


@lru_cache(maxsize=6)
def _blocks(path: Path) -> data.Blocks:
    return data.load_blocks(path)


@lru_cache(maxsize=1)
def _distillation_set(path: Path, tokens: int) -> data.Blocks:
    return data.distillation_set(_blocks(path), tokens)


@lru_cache(maxsize=1)
def _frozen_model(folder: Path, runtime: models.Runtime) -> torch.nn.Module:
    return models.load(folder, runtime).requires_grad_(False)


@lru_cache(maxsize=1)
def _cached_teacher(
    folder: Path, model_folder: Path, runtime: models.Runtime, vocabulary: int
) -> teacher.CachedTeacher:
    return teacher.CachedTeacher(folder, models.head(_frozen_model(model_folder, runtime), vocabulary))


def _text(work: Work) -> Entry:
    return work.find("texts", work.inputs["text"])


def _text_tokenizer(work: Work) -> Any:
    text = json.loads((_text(work).path / "inputs.json").read_text())
    return _tokenizer(work.find("tokenizers", text["tokenizer"]).path / "tokenizer")


def model_folder(store: Store, key: str) -> Path:
    """Return the Hugging Face folder of a model entry."""
    return store.entry("models", key).path / "model"


# --- makers, one a kind ----------------------------------------------------------------------------------------------


def _corpus(work: Work) -> dict[str, list[data.Document]]:
    documents = data.read_corpus(work.context["corpus"], Path(work.context["base"]))
    if data.fingerprint(documents) != work.inputs["corpus"]:
        raise ConfigError("data.corpus: the text has changed since this run was planned; start the run again")
    return data.split(documents)


def make_tokenizer(work: Work) -> None:
    """Train, or copy, the tokenizer that all models of a suite share."""
    folder = work.entry.path / "tokenizer"
    if "path" in work.context:
        models.load_tokenizer(Path(work.context["path"])).save_pretrained(folder)
    else:
        data.train_tokenizer(_corpus(work)["train"], work.inputs["bpe"], folder)


def make_text(work: Work) -> dict[str, Any]:
    """Tokenise the splits."""
    tokenizer = _tokenizer(work.find("tokenizers", work.inputs["tokenizer"]).path / "tokenizer")
    rows = {}
    for name, documents in _corpus(work).items():
        work.hooks.stage(f"tokenising {name}")
        blocks = data.tokenise(documents, tokenizer, work.inputs["length"])
        data.save_blocks(blocks, work.entry.path / f"{name}.safetensors")
        rows[name] = len(blocks)
    return {"rows": rows, "length": work.inputs["length"], "vocabulary": len(tokenizer)}


def make_tasks(work: Work) -> dict[str, Any]:
    """Make the examination's items from the test split."""
    rows = tasks.build(_corpus(work)["test"], work.inputs["tasks"], work.inputs["items"])
    tasks.write(rows, work.entry.path)
    return {"items": {name: len(found) for name, found in rows.items()}}


def make_model(work: Work) -> dict[str, Any]:
    """Make a model's weights, or take over a saved folder; either way an ordinary Hugging Face folder results."""
    tokenizer = _text_tokenizer(work) if "text" in work.inputs else None
    folder = work.entry.path / "model"
    if "path" in work.context:
        source = Path(work.context["path"])
        models.check_folder(source)
        ignored = shutil.ignore_patterns("*.bin", "*.pt", "*.py")
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=ignored, copy_function=_link_or_copy)
        return {}
    text = _text(work)
    blocks = _blocks(text.path / "train.safetensors")
    ids = (tokenizer.eos_token_id, tokenizer.pad_token_id)
    config = models.architecture_config(work.inputs["init"], len(tokenizer), blocks.length, ids, work.inputs["dropout"])
    model = models.make(config, work.inputs["seed"]).to(work.runtime.device)
    models.check_head(model)
    facts: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    if pretrain := work.inputs.get("pretrain"):
        history = _learn(work, model, "sft", blocks, None, pretrain, len(tokenizer))
        facts["final_loss"] = history[-1]["loss"]
    _save_model(model, tokenizer, folder)
    return facts


def _link_or_copy(source: str, target: str) -> None:
    """Take over a file without doubling gigabytes where the disk allows it; sha256 sums guard it either way."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def make_cache(work: Work) -> dict[str, Any]:
    """Store the teacher's final hidden states over the distillation set."""
    vocabulary = len(_text_tokenizer(work))
    blocks = _distillation_set(_text(work).path / "train.safetensors", work.inputs["tokens"])
    model = _frozen_model(model_folder(work.store, work.inputs["teacher"]), work.runtime)
    dtype = teacher.DTYPES[work.inputs["dtype"]]

    def read(part: data.Blocks) -> teacher.Signal:
        return teacher.read_states(model, part, vocabulary, work.runtime.precision, dtype)

    def on_shard(done: int, count: int) -> None:
        work.hooks.emit({"event": "progress", "done": done, "total": count})
        if code := work.hooks.should_stop():
            raise Interrupted(f"stopped after shard {done}", code)

    teacher.write_cache(work.entry.path, blocks, read, on_shard)
    return {"rows": len(blocks), "hidden_size": int(model.get_output_embeddings().weight.shape[1])}


def make_cell(work: Work) -> dict[str, Any]:
    """Train one student, if its arm is an objective, and examine it; floor and ceiling are examined as they are."""
    inputs = work.inputs
    tokenizer = _text_tokenizer(work)
    subject = inputs["teacher"] if inputs["arm"] == "ceiling" else inputs["student"]
    folder = model_folder(work.store, subject)
    guide = _teacher_model(work, inputs["teacher"]) if inputs["arm"] == "objective" and "teacher" in inputs else None
    with work.clock.part("load_s"):
        model = models.load(folder, work.runtime)
        models.head(model, len(tokenizer))
    facts: dict[str, Any] = {}
    if inputs["arm"] == "objective":
        train_path = _text(work).path / "train.safetensors"
        blocks = _distillation_set(train_path, inputs["tokens"])
        history = _learn(work, model, inputs["objective"], blocks, guide, inputs["train"], len(tokenizer))
        _save_model(model, tokenizer, work.entry.path / "model")
        facts = {"final_loss": history[-1]["loss"], "tokens": _tokens(blocks, inputs["train"])}
    _examine(work, model, tokenizer, guide)
    return facts


def _teacher_model(work: Work, key: str) -> torch.nn.Module:
    return _frozen_model(model_folder(work.store, key), work.runtime)


def _teacher(work: Work, model: torch.nn.Module, blocks: data.Blocks, vocabulary: int) -> teacher.Teacher:
    inputs = work.inputs
    if inputs["signal"] == "cache":
        folder = work.find("teacher_cache", inputs["cache"]).path
        return _cached_teacher(folder, model_folder(work.store, inputs["teacher"]), work.runtime, vocabulary)
    return teacher.LiveTeacher(model, blocks, vocabulary, work.runtime.precision)


def _learn(work: Work, model, spec, blocks, guide, plan: dict[str, Any], vocabulary: int) -> list[dict[str, Any]]:
    """Train and write metrics.jsonl. `guide` is the teacher's model, or None."""
    chosen = objective(spec)
    settings = {key: value for key, value in plan.items() if key != "seed"}
    work.hooks.stage("training")
    with work.clock.part("train_s"):
        history = train.train(
            model,
            chosen,
            blocks,
            _teacher(work, guide, blocks, vocabulary) if chosen.needs_teacher else None,
            train.Plan(**settings),
            seed=plan.get("seed", work.inputs["seed"]),
            vocabulary=vocabulary,
            precision=work.runtime.precision,
            folder=work.entry.checkpoints,
            on_step=lambda record: work.hooks.emit({"event": "step", "total": settings["steps"], **record}),
            should_stop=work.hooks.should_stop,
        )
    lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in history)
    atomic_write(work.entry.path / "metrics.jsonl", lines)
    return history


def _tokens(blocks: data.Blocks, plan: dict[str, Any]) -> int:
    return plan["steps"] * plan["batch_rows"] * blocks.length


def _save_model(model: torch.nn.Module, tokenizer: Any, folder: Path) -> None:
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _examine(work: Work, model: torch.nn.Module, tokenizer: Any, guide: torch.nn.Module | None) -> None:
    """Write results.json (aggregates) and samples.parquet (a score an item)."""
    settings = work.inputs["examine"]
    folder = work.find("tasks", work.inputs["tasks"]).path
    paths = {name: folder / f"{name}.jsonl" for name in settings["tasks"]}
    work.hooks.stage("examining")
    with work.clock.part("examine_s"):
        found = harness.examine(model, tokenizer, paths, batch_size=settings["batch_size"])
        held_out = _blocks(_text(work).path / "test.safetensors")
        own = intrinsic.measure(
            model, guide, held_out, settings["intrinsic_tokens"], len(tokenizer), work.runtime.precision
        )
    buffer = io.BytesIO()
    pandas.DataFrame(found.items).to_parquet(buffer, index=False)
    atomic_write(work.entry.path / "samples.parquet", buffer.getvalue())
    write_json(work.entry.path / "results.json", dict(sorted({**found.metrics, **own}.items())))


MAKERS: dict[str, Callable[[Work], dict[str, Any] | None]] = {
    "tokenizers": make_tokenizer,
    "texts": make_text,
    "tasks": make_tasks,
    "models": make_model,
    "teacher_cache": make_cache,
    "cells": make_cell,
}
