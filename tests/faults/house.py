"""A tiny suite whose jobs run in this process, so that hundreds of crashes cost what one start of torch costs.

The very same program is what a real kill hits: `python -m tests.faults.house SUITE RESULTS` makes every job and ends.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench import failpoints
from kdbench.files import sha256_file
from kdbench.run.store import Entry, Store

SUITE = """\
name: faults
question: Does it end with the same bytes?
data:
  corpus: {{folder: {corpus}, files: "doc-0*.txt"}}
  tokenizer: {{bpe: 300}}
  length: 32
  tokens: 3072
models:
  small:
    init: {{architecture: opt, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, ffn_dim: 32}}
  big:
    init: {{architecture: opt, hidden_size: 24, num_hidden_layers: 1, num_attention_heads: 2, ffn_dim: 48}}
    pretrain: {{tokens: 2048, lr: 1e-2, batch_tokens: 512}}
students: [small]
teachers: [big]
objectives:
- kl
- {{name: distillm, phi: 0.9, capacity: 12, fresh: 0.5, label: replay}}
- {{name: gkd, label: written}}
- taid
seeds: [0]
train: {{steps: 12, batch_tokens: 128, lr: 1e-2, checkpoint_steps: 4}}
examine: {{tasks: [swap], items: 20, batch_size: 8, intrinsic_tokens: 64}}
compare: {{baseline: kl, tasks: [swap]}}
device: cpu
"""


@dataclass(frozen=True)
class House:
    """The jobs of a suite, planned once, each after those it needs."""

    jobs: list[Any]

    def job(self, title: str) -> Any:
        """Return the one job whose title or arm is as given."""
        found = [job for job in self.jobs if title in (job.kind, job.title, job.cell and job.cell.arm)]
        assert len(found) == 1, [job.title for job in self.jobs]
        return found[0]


def plan(suite: Path, changes: Sequence[str] = ()) -> House:
    """Plan a suite's jobs; `changes` are what `--set` takes."""
    from kdbench import registry
    from kdbench.run.jobs import Planner
    from kdbench.suite import loader
    from kdbench.suite.schema import Suite

    registry.objectives()
    planner = Planner(loader.validate(Suite, loader.override(loader.parse(suite), changes)), suite.parent)
    return House(planner.all())


def make(store: Store, job: Any) -> dict[str, Any]:
    """Make one job as a process does that has just started: nothing is warm, nothing is remembered."""
    from kdbench.run import cell, makers
    from kdbench.run.work import Hooks

    for one in (*vars(makers).values(), *vars(cell).values()):
        if hasattr(one, "cache_clear"):
            one.cache_clear()
    return cell.execute(store, json.loads(json.dumps(job.message())), Hooks())


def steps_left(store: Store, job: Any) -> int:
    """Make the rest of a job; return how many steps that took."""
    with failpoints.armed("step:99:crash") as point:
        make(store, job)
    return point.seen


def files_of(entry: Entry) -> dict[str, str]:
    """Return name → sha256 of every file that a complete entry lists, having looked at the files themselves."""
    done = entry.verified()
    return {name: sha256_file(entry.path / name) for name in done["files"]}


def link_tree(source: Path, target: Path) -> None:
    """Copy a store without doubling its bytes; safe, since no file of a store is ever written in place."""
    shutil.copytree(source, target, copy_function=os.link, dirs_exist_ok=True)


def main() -> None:
    """Make every job of a suite in this process."""
    import torch

    torch.set_num_threads(1)
    failpoints.arm_from_environment()
    store = Store(Path(sys.argv[2]))
    for job in plan(Path(sys.argv[1])).jobs:
        make(store, job)


if __name__ == "__main__":
    main()
