"""Tiny real things that many tests share: a corpus on disk, a suite file over it, and a way to call the program."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

SUBJECTS = ("The nation", "Our people", "This government", "The congress", "A free country", "Every citizen")
VERBS = ("has", "is proud of", "was given", "needs", "honours", "protects", "remembers")
OBJECTS = ("the law", "a great peace", "its old friends", "the common good", "a fair trade", "the public land")
TAILS = (
    "in this year",
    "for the world",
    "with all nations",
    "by the grace of time",
    "and its children",
    "without fear",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each test carry its rows of the matrix of faults in its report, from a process of pytest-xdist too."""
    for item in items:
        item.user_properties += [("fault", list(mark.args)) for mark in item.iter_markers("fault")]


def pytest_collection_finish() -> None:
    """Spare collections of garbage what every test imports: looked through each time, it took a third of the time."""
    gc.freeze()


def sentences(rng: random.Random, count: int) -> str:
    """Return `count` plain English sentences."""
    parts = (
        "{} {} {} {}.".format(*(rng.choice(bank) for bank in (SUBJECTS, VERBS, OBJECTS, TAILS))) for _ in range(count)
    )
    return " ".join(parts)


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory) -> Path:
    """Thirty small documents of several paragraphs."""
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(30):
        rng = random.Random(index)
        text = "\n\n".join(sentences(rng, 12) for _ in range(6))
        (folder / f"doc-{index:02d}.txt").write_text(text, encoding="utf-8")
    return folder


SUITE = """\
name: tiny
question: Does it work?
data:
  corpus: {{folder: {corpus}, files: "*.txt"}}
  tokenizer: {{bpe: 320}}
  length: 32
  tokens: 4096
models:
  small:
    init: {{architecture: opt, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, ffn_dim: 32}}
  big:
    init: {{architecture: opt, hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 2, ffn_dim: 48}}
    pretrain: {{tokens: 8192, lr: 1e-2, batch_tokens: 512}}
students: [small]
teachers: [big]
objectives: [sft, kl, atkd]
seeds: [0, 1, 2]
train: {{steps: 12, batch_tokens: 256, lr: 1e-2, checkpoint_steps: 3}}
examine: {{tasks: [swap, replace], items: 30, batch_size: 16, intrinsic_tokens: 512}}
compare:
  contrasts: [[kl, sft], [atkd, kl]]
  tasks: [swap, replace]
device: cpu
"""


@pytest.fixture
def suite_file(tmp_path, corpus_folder) -> Path:
    """A suite that runs in seconds, in a folder of its own."""
    path = tmp_path / "tiny.yaml"
    path.write_text(SUITE.format(corpus=corpus_folder), encoding="utf-8")
    return path


def kdbench(*arguments: object, check: int | None = 0, cwd: Path | None = None, **environment: str):
    """Run the program as a user does; return the finished process."""
    process = subprocess.run(
        [sys.executable, "-m", "kdbench.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
        timeout=240,
    )
    if check is not None:
        assert process.returncode == check, f"exit {process.returncode}\n{process.stdout}\n{process.stderr}"
    return process


def call(*arguments: object):
    """Run a command in this process, which is fast; for commands that start no workers."""
    from click.testing import CliRunner

    from kdbench.cli import main

    return CliRunner().invoke(main, [str(one) for one in arguments])
