"""What each of two processes does in tests of training together; its results are files that the tests compare."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file

from kdbench.distill import checkpoint, lora, memory, train
from kdbench.distill.data import Blocks, batch_rows
from kdbench.distill.group import Alone, Ranks, whole
from kdbench.distill.rollout import Limits
from kdbench.distill.teacher import LiveTeacher
from kdbench.errors import Interrupted
from kdbench.registry import objective
from tests.distill.conftest import LENGTH, VOCABULARY, tiny

GRADIENTS = [  # objective, family, rows of the batch, rows at once
    ("sft", "opt", 8, None),
    ("atkd", "opt", 8, None),
    ("atkd", "llama", 7, 1),
    ("kl+sekd", "opt", 7, 1),
    ("reverse_kl+atkd", "llama", 2, None),
]
FAMILIES = {"opt": {}, "llama": {"intermediate_size": 32, "tie_word_embeddings": False}}
TRAININGS = {
    "atkd": {},
    "gkd+atkd": {"steps": 4},
    "distillm": {"batch_rows": 8, "steps": 5},
    "kl+sekd": {"gradient_checkpointing": True, "micro_batch": 2, "steps": 3},
}
LIMITS = Limits(prompt_tokens=4, new_tokens=8, length=LENGTH, eos=0, pad=1, vocabulary=VOCABULARY)


def text() -> Blocks:
    """Twenty-four rows, some short, one without a target."""
    ids = torch.randint(2, VOCABULARY, (24, LENGTH), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    mask = torch.ones(24, LENGTH, dtype=torch.bool)
    mask[::3, 8:] = False
    mask[5] = mask[:, 0] = False
    return Blocks(ids, mask)


def teacher(blocks: Blocks, device: str = "cpu") -> LiveTeacher:
    return LiveTeacher(tiny(1, width=24).to(device).eval().requires_grad_(False), blocks, VOCABULARY, "float32")


def gradient(group: Alone, spec: str, family: str, rows: int, micro: int | None):
    """Return loss, terms and gradient of one global batch."""
    blocks, model = text(), tiny(0, architecture=family, **FAMILIES[family])
    group.shard(model)
    learner = learner_of(group, model, blocks, train.Plan(steps=3, batch_rows=rows, lr=1e-2, micro_batch=micro))
    chosen = objective(spec)
    from kdbench.distill.source import Text

    drawn = batch_rows(0, 0, len(blocks), rows)
    found = Text(drawn, blocks.select(drawn), torch.zeros(rows, dtype=torch.bool))
    sums = learner._gradient(chosen, learner.batch(found, chosen, 0), 0, micro)
    gradients = {name: whole(one.grad) for name, one in model.named_parameters() if one.grad is not None}
    return {"total": sums.total, "terms": sums.terms}, gradients


def learner_of(group: Alone, model, blocks: Blocks, plan: train.Plan):
    from kdbench.distill.source import TextSource

    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.lr)
    source, micro = TextSource(blocks, 0, plan.batch_rows), memory.MicroBatch(plan.micro_batch, plan.batch_rows)
    return train._Learner(
        model, optimizer, source, teacher(blocks), plan, 0, VOCABULARY, "float32", None, micro, group
    )  # fmt: skip


def training(group: Alone, spec: str, folder: Path, adapters: bool = False, device: str = "cpu", **options):
    """Train six steps on batches of seven rows; return the history and the trained weights."""
    settings = {"steps": 6, "batch_rows": 7, "lr": 1e-2, "checkpoint_steps": 3} | TRAININGS.get(spec, {})
    blocks, model = text(), tiny(0).to(device)
    if adapters:
        lora.adapt(model, {"r": 4, "alpha": 16, "targets": ["q_proj", "fc1"]}, 3)
    group.shard(model)
    more = {"limits": LIMITS, "held_out": blocks, "teacher_text": Blocks(blocks.ids.flip(0), blocks.mask.flip(0))}
    history = train.train(
        model, objective(spec), blocks, teacher(blocks, device), train.Plan(**settings), seed=5, vocabulary=VOCABULARY,
        precision="float32", folder=folder, group=group, **more, **options,
    )  # fmt: skip
    return history, {name: whole(value).detach().clone() for name, value in checkpoint.trained(model)}


def keep(folder: Path, name: str, facts, tensors) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(facts))
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")


def everything(group: Alone, folder: Path) -> None:
    """Do all that the tests compare, and leave the results in `folder/rank-N`."""
    mine = folder / f"rank-{group.rank}"
    for case in GRADIENTS:
        keep(mine, f"gradient {case}", *gradient(group, *case))
    for spec in TRAININGS:
        keep(mine, f"training {spec}", *training(group, spec, folder / "checkpoints" / spec))
    if find_spec("peft"):
        keep(mine, "adapters", *training(group, "kl", folder / "checkpoints" / "lora", adapters=True))
    for stop in (1, 2):
        stops = iter([0] * (stop - 1) + [143])
        try:  # only the first process is told to stop
            tell = (lambda stops=stops: next(stops)) if group.rank == 0 else (lambda: 0)
            training(group, "atkd", folder / "checkpoints" / "stopped", should_stop=tell)
        except Interrupted as error:
            keep(mine, f"stopped {stop}", {"code": error.exit_code}, {})
    keep(mine, "resumed", *training(group, "atkd", folder / "checkpoints" / "stopped"))


def main(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    group = Ranks(rank, size, torch.device("cpu"), folder / "meeting")
    everything(group, folder)
    group.leave()


def on_gpus(rank: int, size: int, folder: Path) -> None:
    torch.cuda.set_device(rank)
    group = Ranks(rank, size, torch.device("cuda", rank), folder / "meeting")
    keep(folder / f"rank-{rank}", "training atkd", *training(group, "atkd", folder / "c", device="cuda"))
    group.leave()
