"""The makers, one for each kind of entry. They run in warm worker processes that keep what several cells read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from kdbench import failpoints
from kdbench.api import Sampling
from kdbench.distill import (
    accuracy,
    checkpoint,
    data,
    engine,
    instructions,
    jumps,
    layouts,
    lora,
    memory,
    models,
    placement,
    rollout,
    source,
    teacher,
    train,
)
from kdbench.distill.group import Alone
from kdbench.errors import Diverged
from kdbench.evaluate import tasks
from kdbench.files import atomic_write, read_json
from kdbench.registry import objective
from kdbench.run import exams, material, origins, ranks
from kdbench.run.store import INPUTS, Entry, Store
from kdbench.run.watchdog import beating
from kdbench.run.work import Work
from kdbench.seeding import derive
from kdbench.suite.external import ARM

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
def _cached_teacher(
    folder: Path, model: torch.nn.Module, precision: str, vocabulary: int, dtype: torch.dtype
) -> teacher.CachedTeacher:
    return teacher.CachedTeacher(folder, teacher.LiveTeacher(model, None, vocabulary, precision, dtype))


_held: dict[tuple[Any, ...], torch.nn.Module] = {}  # the frozen model that is here, by what it was asked for with
FREE = (_cached_teacher.cache_clear, _held.clear)  # before other processes need the devices


def _frozen_model(*told: Any) -> torch.nn.Module:
    """Return a model that does not learn; another one is let go before, since two may not fit side by side."""
    if told not in _held:
        for drop in FREE:
            drop()
        memory.give_back()
        _held[told] = placement.load(*told)
    return _held[told]


VALIDATED_ROWS = 64  # held-out blocks by which an objective may steer itself


def _text(work: Work) -> Entry:
    return work.find("texts", work.inputs["text"])


def _tokenizer_folder(work: Work) -> Path:
    text = read_json(_text(work).path / INPUTS)
    return work.find("tokenizers", text["tokenizer"]).path / "tokenizer"


def _text_tokenizer(work: Work) -> Any:
    return _tokenizer(_tokenizer_folder(work))


@lru_cache(maxsize=64)
def _check_tokenizer(model: Path, folder: Path) -> None:
    models.check_tokenizer(model, _tokenizer(folder))


def model_folder(store: Store, key: str) -> Path:
    """Return the Hugging Face folder of a model entry."""
    return store.entry("models", key).path / "model"


# --- makers, one a kind ----------------------------------------------------------------------------------------------


def make_tokenizer(work: Work) -> None:
    """Train, or copy, the tokenizer that all models of a suite share."""
    folder = work.entry.path / "tokenizer"
    if "hub" in work.context:
        models.load_tokenizer(origins.tokenizer_folder(work.context)).save_pretrained(folder)
    elif "gguf" in work.context:
        origins.gguf_tokenizer(Path(work.context["gguf"])).save_pretrained(folder)
    elif "path" in work.context:
        source = Path(work.context["path"])
        origins.check_unchanged(origins.tokenizer_files(source), work.inputs["files"], source)
        models.load_tokenizer(source).save_pretrained(folder)
    else:
        data.train_tokenizer(material.splits(work)["train"], work.inputs["bpe"], folder)


def make_text(work: Work) -> dict[str, Any]:
    """Tokenise the splits."""
    tokenizer = _tokenizer(work.find("tokenizers", work.inputs["tokenizer"]).path / "tokenizer")
    found, facts = material.rows(work, tokenizer)
    for name, blocks in found.items():
        data.save_blocks(blocks, work.entry.path / f"{name}.safetensors")
    rows = {name: len(blocks) for name, blocks in found.items()}
    return {"rows": rows, "length": work.inputs["length"], "vocabulary": len(tokenizer)} | facts


def make_tasks(work: Work) -> dict[str, Any]:
    """Make the items of an examination from the test split, those of tuning from the dev split."""
    documents = material.splits(work)[work.inputs.get("split", "test")]
    rows = tasks.build(documents, work.inputs["tasks"], work.inputs["items"])
    tasks.write(rows, work.entry.path)
    return {"items": {name: len(found) for name, found in rows.items()}}


def make_model(work: Work) -> dict[str, Any]:
    """Make a model's weights, or take them over; either way an ordinary Hugging Face folder results."""
    folder, inputs = work.entry.path / "model", work.inputs
    if "path" in work.context:
        source = Path(work.context["path"])
        origins.take_over(source, folder)
        origins.check_unchanged(models.folder_fingerprint(folder), inputs["weights"], source)
        return {}
    if "hub" in inputs:
        work.hooks.stage(f"fetching {inputs['hub']['id']}")
        source = origins.downloaded(work.context, folder)
        if source != folder:
            origins.take_over(source, folder, link=True)  # nobody writes into the Hub's cache
        return {}
    if "from" in inputs or "gguf" in inputs:
        if "gguf" in inputs:
            model = origins.dequantised(work.context, inputs["gguf"])
        else:
            model = origins.shorten(model_folder(work.store, inputs["from"]), inputs["layers"])
        models.check_head(model)
        _save_model(model, _tokenizer(work.find("tokenizers", inputs["tokenizer"]).path / "tokenizer"), folder)
        return {"parameters": sum(p.numel() for p in model.parameters())}
    tokenizer, told = _text_tokenizer(work), work.training
    blocks = _blocks(_text(work).path / "train.safetensors")
    if "fsdp" in told:
        ranks.train(work, free=FREE)
    if "base" in inputs:
        model = models.load(model_folder(work.store, inputs["base"]), work.runtime)
        models.head(model, len(tokenizer))
    else:
        ids = (tokenizer.eos_token_id, data.padding_id(tokenizer))
        config = models.architecture_config(inputs["init"], len(tokenizer), blocks.length, ids, inputs["dropout"])
        model = models.make(config, inputs["seed"]).to(work.runtime.device)
        models.check_head(model)
    facts: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    if told:
        if "tokens" in inputs:
            blocks = data.distillation_set(blocks, inputs["tokens"])
        history = _learn(work, model, "sft", blocks, None, told, len(tokenizer))
        facts |= {"final_loss": history[-1]["loss"]} | memory.facts(history) | jumps.facts(history)
    _save_model(model, tokenizer, folder)
    return facts


def make_cache(work: Work) -> dict[str, Any]:
    """Store the teacher's signal over the distillation set, and measure what its layout loses."""
    vocabulary = len(_text_tokenizer(work))
    blocks = _distillation_set(_text(work).path / "train.safetensors", work.inputs["tokens"])
    model = _teacher_model(work)
    layout, at_once = _layout(work.inputs), teacher.forward_rows()

    def read(part: data.Blocks, dtype: torch.dtype = layout.read_dtype) -> teacher.Signal:
        return teacher.read_states(model, part, vocabulary, work.runtime.precision, dtype, at_once)

    def exact(part: data.Blocks) -> tuple[torch.Tensor, torch.Tensor]:
        states = read(part, torch.float32).states
        return states.hidden, states.head

    with beating(model, work.hooks):
        teacher.write_cache(work.entry.path, blocks, read, work.hooks.shard, layout)
        effect = accuracy.measure(layout, blocks, exact)
    told = {"quantize": work.inputs["quantize"]} if "quantize" in work.inputs else {}
    teacher.record(work.entry.path, effect=effect, **told)
    hidden_size = int(model.get_output_embeddings().weight.shape[1])
    unsure = teacher.uncertainty(work.entry.path)
    return {"rows": len(blocks), "hidden_size": hidden_size, "effect": effect, "uncertainty": unsure}


def _layout(inputs: dict[str, Any]) -> layouts.Layout:
    """Return what a cache stores, from the inputs of its key."""
    return layouts.Layout(inputs.get("layout", "hidden"), layouts.DTYPES[inputs["dtype"]], inputs.get("k", 0))


def make_teacher_text(work: Work) -> dict[str, Any]:
    """Let the teacher write after the prompts of the distillation set, a shard at a time."""
    vocabulary = len(_text_tokenizer(work))
    blocks = _distillation_set(_text(work).path / "train.safetensors", work.inputs["tokens"])
    model = _teacher_model(work)
    writers = rollout.Writers(model, model, work.runtime.precision)
    limits, sampling = _limits(work, vocabulary), Sampling(**work.inputs["decoding"])

    def make(number: int, part: data.Blocks) -> dict[str, torch.Tensor]:
        drawn = derive(0, "teacher text", number)
        text, _ = rollout.write(sampling, writers, instructions.prompts(part, limits), limits, drawn)
        return {"ids": text.ids, "mask": text.mask}

    with beating(model, work.hooks):
        teacher.write_shards(work.entry.path, blocks, make, work.hooks.shard)
    text = _teacher_text(work.entry.path)
    return {"rows": len(text), "generated_tokens": int(text.mask.sum())}


def make_cell(work: Work) -> dict[str, Any]:
    """Train one student, if its arm is an objective, and examine it; floor and ceiling are examined as they are."""
    inputs = work.inputs
    tokenizer = _text_tokenizer(work)
    ceiling = inputs["arm"] == "ceiling"
    folder = model_folder(work.store, inputs["teacher" if ceiling else "student"])
    trained = inputs["arm"] == "objective"
    for role in ("student", "teacher"):
        if role in inputs:
            _check_tokenizer(model_folder(work.store, inputs[role]), _tokenizer_folder(work))
    if trained and "fsdp" in inputs["train"]:
        ranks.train(work, free=FREE)
    guided = inputs["arm"] in ("objective", ARM) and "teacher" in inputs
    guide = _teacher_model(work) if guided else None
    with work.clock.part("load_s"):
        model = _teacher_model(work) if ceiling else models.load(folder, work.runtime)
        models.head(model, len(tokenizer))
    facts: dict[str, Any] = {}
    if trained:
        blocks = _distillation_set(_text(work).path / "train.safetensors", inputs["tokens"])
        tuner = lora.adapted(model, inputs["train"], inputs["seed"])
        history = _learn(work, model, inputs["objective"], blocks, guide, inputs["train"], len(tokenizer))
        if tuner is not None:
            model = lora.merge(tuner)
        model.eval()
        if work.context.get("keep", True):  # of a trial only the scores are wanted
            _save_model(model, tokenizer, work.entry.path / "model")
        read = inputs["train"]["steps"] * inputs["train"]["batch_rows"] * blocks.length
        facts = {"final_loss": history[-1]["loss"], "tokens": read, "steps": inputs["train"]["steps"]}
        facts |= source.facts(history) | memory.facts(history) | jumps.facts(history)
    held_out = _blocks(_text(work).path / f"{inputs['examine'].get('split', 'test')}.safetensors")
    exams.examine(work, model, tokenizer, guide, held_out)
    return facts


def train_share(work: Work, group: Alone) -> None:
    """Train a cell's student, or a teacher on its text, with the other processes of the group: each calls this."""
    inputs, vocabulary = work.inputs, len(_text_tokenizer(work))
    told = work.training
    model = models.load(model_folder(work.store, inputs.get("student") or inputs["base"]), work.runtime)
    lora.adapted(model, told, inputs.get("seed", 0))
    group.shard(model)
    guide = _teacher_model(work) if "teacher" in inputs else None
    path = _text(work).path / "train.safetensors"
    blocks = _distillation_set(path, inputs["tokens"]) if "tokens" in inputs else _blocks(path)
    _learn(work, model, inputs.get("objective", "sft"), blocks, guide, told, vocabulary, group)


def _teacher_model(work: Work) -> torch.nn.Module:
    """Return the job's teacher, with room left for the student that learns from it."""
    student = work.inputs.get("student")
    form = placement.form(work.inputs, work.context, model_folder(work.store, student) if student else None)
    return _frozen_model(model_folder(work.store, work.inputs["teacher"]), work.runtime, form)


def _teacher(work: Work, model: torch.nn.Module, blocks: data.Blocks, vocabulary: int) -> teacher.Teacher:
    inputs = work.inputs
    if inputs["signal"] == "cache":
        cache = work.find("teacher_cache", inputs["cache"])
        dtype = _layout(read_json(cache.path / INPUTS)).read_dtype
        return _cached_teacher(cache.path, model, work.runtime.precision, vocabulary, dtype)
    return teacher.LiveTeacher(model, blocks, vocabulary, work.runtime.precision)


def _limits(work: Work, vocabulary: int) -> rollout.Limits:
    tokenizer = _text_tokenizer(work)
    length = _blocks(_text(work).path / "train.safetensors").length
    given = work.inputs["rollouts"]
    ids = {"eos": tokenizer.eos_token_id, "pad": data.padding_id(tokenizer)}
    return rollout.Limits(given["prompt_tokens"], given["new_tokens"], length, vocabulary=vocabulary, **ids)


def _other_text(work: Work, model: torch.nn.Module, vocabulary: int) -> dict[str, Any]:
    """Return what an objective learns from beside the corpus: how text is written, the teacher's and held-out text."""
    if "rollouts" not in work.inputs:
        return {}
    found: dict[str, Any] = {"limits": _limits(work, vocabulary)}
    if "engine" in work.inputs:
        folder, share = model_folder(work.store, work.inputs["student"]), work.context["engine_memory"]
        found["engine"] = engine.start(model, folder, work.runtime.precision, found["limits"].length, share)
    found["held_out"] = data.first_blocks(_blocks(_text(work).path / "dev.safetensors"), VALIDATED_ROWS)
    if "teacher_text" in work.inputs:
        found["teacher_text"] = _teacher_text(work.find("teacher_texts", work.inputs["teacher_text"]).path)
    return found


@lru_cache(maxsize=2)
def _teacher_text(folder: Path) -> data.Blocks:
    parts = [data.load_blocks(path) for path in sorted(folder.glob("shard-*.safetensors"))]
    return data.Blocks(torch.cat([part.ids for part in parts]), torch.cat([part.mask for part in parts]))


def _learn(
    work: Work, model, spec, blocks, guide, plan: dict[str, Any], vocabulary: int, group: Alone | None = None
) -> list[dict[str, Any]]:
    """Train and write metrics.jsonl. `guide` is the teacher's model, or None. With `fsdp` others have trained."""
    if "fsdp" in plan and group is None:
        return checkpoint.take_weights(work.entry.checkpoints, model)
    chosen, group = objective(spec), group or Alone()
    settings = {key: value for key, value in plan.items() if key not in ("seed", "lora", "fsdp")}
    if blocks.positions is not None:
        models.check_packing(model)
    work.hooks.stage("training")
    work.clock.counts["train_steps"] = 0  # said of a training that was complete before, too

    def on_step(record: dict[str, Any]) -> None:
        work.clock.count("train_steps")
        work.hooks.emit({"event": "step", "total": settings["steps"], **record})

    with _history(work, group) as history, work.clock.part("train_s"):
        history += train.train(
            model,
            chosen,
            blocks,
            _teacher(work, guide, blocks, vocabulary) if guide is not None else None,
            train.Plan(**settings),
            seed=plan["seed"] if "seed" in plan else work.inputs["seed"],
            vocabulary=vocabulary,
            precision=work.runtime.precision,
            folder=work.entry.checkpoints,
            **_other_text(work, model, vocabulary),
            on_step=on_step,
            should_stop=work.hooks.should_stop,
            group=group,
        )
    return history


@contextmanager
def _history(work: Work, group: Alone) -> Iterator[list[dict[str, Any]]]:
    """Give a list for the records of a training, and write them; of one that diverged, those of the steps before."""
    history: list[dict[str, Any]] = []
    try:
        yield history
    except Diverged as error:
        history += error.history
        raise
    finally:
        if history and group.rank == 0:
            lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in history)
            atomic_write(work.entry.path / "metrics.jsonl", lines)


def _save_model(model: torch.nn.Module, tokenizer: Any, folder: Path) -> None:
    failpoints.hit("weights")
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


MAKERS: dict[str, Callable[[Work], dict[str, Any] | None]] = {
    "tokenizers": make_tokenizer,
    "texts": make_text,
    "tasks": make_tasks,
    "models": make_model,
    "teacher_texts": make_teacher_text,
    "teacher_cache": make_cache,
    "cells": make_cell,
}
