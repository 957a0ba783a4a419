"""A corpus made ready for the groups that examine or plan: tokenizer, tasks, saved models, and a suite file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import tiny
from benchmarks.measure import Absent
from kdbench.distill import data
from kdbench.errors import ConfigError
from kdbench.evaluate import tasks


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    vocabulary: int = 2048
    length: int = 64
    items: int = 300
    smoke: bool = False

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Width and layers of student and teachers."""
        return {"student": (16, 1), **tiny.SMOKE} if self.smoke else {"student": tiny.STUDENT, **tiny.TEACHERS}


def read(corpus: Mapping[str, str]) -> list[data.Document]:
    """Read the text.

    Raises:
        Absent: when it is not installed.
    """
    try:
        return data.read_corpus(dict(corpus), Path("."))
    except ConfigError as error:
        raise Absent(str(error)) from None


def save_models(corpus: Mapping[str, str], sizes: Sizes, folder: Path) -> None:
    """Write a tokenizer of the corpus, and the student and the teachers with it, as Hugging Face folders."""
    documents = data.split(read(corpus))
    data.train_tokenizer(documents["train"], sizes.vocabulary, folder / "tokenizer")
    from kdbench.distill.models import load_tokenizer

    tokenizer = load_tokenizer(folder / "tokenizer")
    for seed, (name, shape) in enumerate(sizes.shapes.items()):
        # Items are sentences, which may be longer than a block.
        made = tiny.model(shape, sizes.vocabulary, 512, seed, teacher=name != "student")
        tiny.save(made, tokenizer, folder / name)


def save_tasks(corpus: Mapping[str, str], names: tuple[str, ...], items: int, folder: Path) -> dict[str, Path]:
    """Write the items of each task, and the folder by which plain lm-eval finds them."""
    paths = tasks.write(tasks.build(data.split(read(corpus))["test"], names, items), folder)
    tasks.write_lm_eval_folder(folder.resolve(), names, folder / "lm_eval")
    return paths


def suite_text(corpus: Mapping[str, str], sizes: Sizes, folder: Path, **settings: Any) -> str:
    """Return a suite over the saved models; `settings` are `objectives`, `seeds`, `steps`, `batch_tokens`, `lr`."""
    names = {name: str(folder / name) for name in sizes.shapes}
    suite = {
        "name": "bench",
        "question": "What does a matrix cost?",
        "data": {
            "corpus": dict(corpus),
            "tokenizer": {"path": str(folder / "tokenizer")},
            "length": sizes.length,
            "tokens": settings["steps"] * settings["batch_tokens"],
        },
        "models": {name: {"path": path} for name, path in names.items()},
        "students": ["student"],
        "teachers": [name for name in names if name != "student"],
        "objectives": settings["objectives"],
        "seeds": settings["seeds"],
        "train": {
            "steps": settings["steps"],
            "batch_tokens": settings["batch_tokens"],
            "lr": settings["lr"],
            "schedule": "constant",
            "warmup": 0,
        },
        "examine": {"tasks": ["swap", "replace"], "items": sizes.items, "batch_size": 64, "intrinsic_tokens": 2048},
        "compare": {"contrasts": [["reverse_kl", "kl"]], "tasks": ["swap", "replace"]},
        "device": "cpu",
        "threads": 1,
    }
    import yaml

    return yaml.safe_dump(suite, sort_keys=False, allow_unicode=True)
