"""A golden trajectory: the loss of each step, to the last bit, of a few steps on the quickstart's own models.

python -m tests.golden      writes the file of this processor's vector instructions anew

It may be written anew when a change is meant to change results, and the same commit says so in CHANGELOG.md under
[Results]; or for other versions of torch and transformers, when no code changes with it. Never to make a test pass.
"""

from __future__ import annotations

import json
import platform
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent
OBJECTIVES = ("kl", "atkd", "reverse_kl", "sft")
STEPS, ROWS, SEED, VOCABULARY = 5, 40, 0, 2048
TEXT = """
Fellow citizens of the Senate and of the House of Representatives: we meet again in a year of peace and of good
harvests, and the accounts of the Treasury, which are laid before you, show that the public debt is less by a fifth
than it was when I last had the honour to address you. The treaties with our neighbours have been kept on both
sides. The mails now reach every county; the roads and harbours for which you provided are finished, or will be
before the winter. There remain the questions that you left open: the law of the public lands, the pay of seamen,
and the courts of the western districts.
""".strip()


def facts() -> dict[str, Any]:
    """Return what the last bits may rightly depend on."""
    import torch
    import transformers

    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
    }


def trajectories() -> dict[str, list[dict[str, str]]]:
    """Train the quickstart's student by each objective, from made weights; return loss and gradient norm as hex."""
    import torch

    from kdbench.distill import models, train
    from kdbench.distill.data import Blocks
    from kdbench.distill.teacher import LiveTeacher
    from kdbench.registry import objective
    from kdbench.suite import loader
    from kdbench.suite.schema import Suite

    suite = loader.validate(Suite, loader.parse(ROOT / "suites" / "quickstart.yaml"))
    length = suite.data.length
    text = torch.tensor([2 + byte for byte in TEXT.encode()], dtype=torch.int32)  # every byte of it is a token
    starts = [(row * 31) % (len(text) - length) for row in range(ROWS)]
    blocks = Blocks(torch.stack([text[at : at + length] for at in starts]), torch.ones(ROWS, length, dtype=torch.bool))

    def made(name: str, seed: int) -> torch.nn.Module:
        init = suite.models[name].init.model_dump()
        return models.make(models.architecture_config(init, VOCABULARY, length, (0, 1), dropout=False), seed)

    guide = made(suite.teachers[0], SEED + 1).eval().requires_grad_(False)
    plan = train.Plan(steps=STEPS, batch_rows=suite.train.batch_tokens // length, lr=suite.train.lr)
    found = {}
    for name in OBJECTIVES:
        with tempfile.TemporaryDirectory() as folder:
            history = train.train(
                made(suite.students[0], SEED), objective(name), blocks,
                LiveTeacher(guide, blocks, VOCABULARY, "float32"), plan, seed=SEED, vocabulary=VOCABULARY,
                precision="float32", folder=Path(folder),
            )  # fmt: skip
        found[name] = [{key: float(record[key]).hex() for key in ("loss", "grad_norm")} for record in history]
    return found


def path_of(capability: str) -> Path:
    """Return where the trajectory of a processor's vector instructions is kept, such as AVX2."""
    return HERE / f"quickstart_{capability}.json"


def stored() -> dict[str, Any]:
    """Return what the file of this processor holds, or else another's: `facts` and `trajectories`."""
    own = path_of(facts()["cpu_capability"])
    path = own if own.is_file() else min(HERE.glob("quickstart_*.json"))
    return json.loads(path.read_text(encoding="utf-8"))
