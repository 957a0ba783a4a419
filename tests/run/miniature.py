"""Every suite in small: the same YAML, and `--set` options that put tiny models, texts and tasks in place of its own.

A model keeps its architecture and what is peculiar to it: a projection, norms after the sublayers, shared keys, a
vocabulary that is padded in its own way, and its place in the order of sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdbench.distill import facts, models
from kdbench.suite import loader
from tests.distill.tokenizers_of import tokenizer
from tests.run.test_instruction_suite import records, write_rows

SUITES = Path(__file__).parents[2] / "suites"
KINDS = {"opt": "opt", "gpt_neox": "neox", "llama": "llama"}  # the tokenizer of a family
LENGTH = 160  # tokens in a row: the alpaca prompt takes half of it with these tokenizers
SHARED = {  # columns by name, since lm-eval compiles a template anew for every item and example
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"train": "train.jsonl", "test": "test.jsonl"}},
    "test_split": "test",
    "fewshot_split": "train",
    "doc_to_text": "asked",
    "metadata": {"version": 1.0},
}
CHOSEN = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "label"}
WRITTEN = {"output_type": "generate_until", "doc_to_target": "answer"}
WRITTEN |= {"generation_kwargs": {"until": ["."], "max_gen_toks": 3, "do_sample": False}}
TASKS = {"mmlu": (CHOSEN, "acc"), "bbh_fewshot": (WRITTEN, "exact_match"), "drop": (WRITTEN, "exact_match")}


@dataclass(frozen=True)
class Cut:
    """How a suite is cut down to seconds.

    Attributes:
        students, teachers: those that are kept; of the others the suite's other tests speak.
        more: `--set` options beside those that every suite gets.
    """

    students: tuple[str, ...]
    teachers: tuple[str, ...]
    more: tuple[str, ...] = ()


def _listed(names: tuple[str, ...]) -> str:
    return f"[{', '.join(names)}]"


def options(name: str, cut: Cut, folder: Path, corpus: Path) -> list[str]:
    """Return the `--set` options of a suite's miniature, whose models and texts are written into `folder`."""
    data = loader.parse(SUITES / f"{name}.yaml").data
    kept = {role: _listed(getattr(cut, role)) for role in ("students", "teachers")}
    found = [f"{role}={names}" for role, names in kept.items()] + ["skip=[]"] * ("skip" in data)
    found += ["seeds=[0, 1]", "train.steps=2", "train.lr=1e-2", "examine.intrinsic_tokens=256", "device=cpu"]
    for number, claim in enumerate(data.get("claims", [])):
        if "scope" in claim:
            found.append(f"claims.{number}.scope={_scope(claim, cut)}")
    follows = "instructions" in data["data"]
    found += _follow(data, cut, folder) if follows else _read(data, cut, corpus)
    return [part for one in (*found, *cut.more) for part in ("--set", one)]


def _scope(claim: dict[str, Any], cut: Cut) -> str:
    """Return a claim's scope over the models that are kept: all students, and those of its teachers that are there."""
    wanted = [name for name in cut.teachers if name in claim["scope"]["teacher"]]
    return f"{{teacher: {_listed(tuple(wanted))}}}"


def _read(data: dict[str, Any], cut: Cut, corpus: Path) -> list[str]:
    """Options of a suite that makes its models and reads plain text."""
    found = [f'data.corpus={{folder: {corpus}, files: "*.txt"}}', "data.tokenizer.bpe=320", "data.length=32"]
    found += ["data.tokens=2048", "train.batch_tokens=128", "examine.items=20"]
    for rank, model in enumerate(sorted({*cut.students, *cut.teachers}, key=lambda one: _width(data, one))):
        width = 16 + 8 * rank
        sizes = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 2 * width}
        found += [f"models.{model}.init.{field}={value}" for field, value in sizes.items()]
        found += [f"models.{model}.pretrain.tokens=2048", f"models.{model}.pretrain.batch_tokens=512"]
    return found


def _follow(data: dict[str, Any], cut: Cut, folder: Path) -> list[str]:
    """Options of a suite over instructions, whose models are saved ones."""
    write_rows(folder / "records.jsonl", records(160))
    write_tasks(folder / "tasks")
    found = [f"data.instructions.file={folder / 'records.jsonl'}", f"data.tokenizer={{path: {folder / 'tokenizer'}}}"]
    found += [f"data.instructions.{split}=0.1" for split in ("dev", "test")] + [f"data.length={LENGTH}"]
    found += [f"data.tokens={16 * LENGTH}", f"train.batch_tokens={2 * LENGTH}", "train.micro_batch=1"]
    found += ["examine.tasks=[]", "rollouts={new_tokens: 4}"]
    for number in range(len(data["examine"]["lm_eval"])):
        found += [f"examine.lm_eval.{number}.path={folder / 'tasks'}", f"examine.lm_eval.{number}.limit=6"]
    for rank, model in enumerate(sorted({*cut.students, *cut.teachers}, key=lambda one: _width(data, one))):
        write_model(data, model, 16 + 8 * rank, folder)
        found += [f"models.{model}.{field}=null" for field in ("hub", "config")]
        found += [f"models.{model}.path={folder / model}"]
        if "finetune" in data["models"][model]:
            found += [f"models.{model}.finetune.tokens={4 * LENGTH}", f"models.{model}.finetune.micro_batch=2"]
            found += [f"models.{model}.finetune.batch_tokens={2 * LENGTH}"]
    return found


def _width(data: dict[str, Any], model: str) -> tuple[int, int]:
    """Return what a model of the suite is ordered by: its real width, and teachers after students of the same."""
    spec = data["models"][model]
    config = spec.get("config") or spec["init"]
    return config["hidden_size"], model in data["teachers"]


def write_model(data: dict[str, Any], name: str, width: int, folder: Path) -> None:
    """Save a tiny random model of a suite's model's architecture, and the tokenizer of its family."""
    real = data["models"][name]["config"]
    words = tokenizer(KINDS[real["architecture"]])
    inner = "ffn_dim" if "ffn_dim" in real else "intermediate_size"
    tiny = real | {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 2, inner: 2 * width}
    tiny["vocab_size"] = len(words) + real["vocab_size"] - data["data"]["tokenizer"]["vocabulary"]
    if "word_embed_proj_dim" in real:
        tiny["word_embed_proj_dim"] = width // (1 + (real["word_embed_proj_dim"] < real["hidden_size"]))
    if "num_key_value_heads" in real:
        tiny["num_key_value_heads"] = 2 // (1 + (real["num_key_value_heads"] < real["num_attention_heads"]))
    ids = {f"{role}_token_id": getattr(words, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    models.make(facts.declared(tiny | ids), seed=width).save_pretrained(folder / name)
    words.save_pretrained(folder / "tokenizer")


def write_tasks(folder: Path) -> None:
    """Write tasks that have the names of lm-eval's own, and are nothing like them but for how they are asked."""
    folder.mkdir()
    for name, (form, metric) in TASKS.items():
        scored = {"metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}]}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | SHARED | form | scored))
    rows = [
        {"asked": f"Is {n} odd?", "choices": ["Yes", "No"], "label": (n + 1) % 2, "answer": ["No", "Yes"][n % 2]}
        for n in range(24)
    ]
    write_rows(folder / "train.jsonl", rows[:12])
    write_rows(folder / "test.jsonl", rows[12:])
