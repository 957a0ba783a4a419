"""Examining a student while it learns changes nothing in what it learns.

python -m pytest tests/evaluate/test_in_between.py
"""

from __future__ import annotations

import copy

import pytest
import torch

from kdbench.distill import train
from kdbench.distill.data import Blocks
from kdbench.evaluate.harness import examine
from kdbench.registry import objective


@pytest.mark.fault("G3", "lm-eval after every second step against none at all, with dropout")
def test_an_examination_in_between_leaves_the_training_as_it_was(model, tokenizer, small_tasks, tmp_path):
    model.config.dropout = model.model.decoder.dropout = 0.1
    for layer in model.model.decoder.layers:
        layer.dropout = 0.1
    ids = torch.randint(2, len(tokenizer), (16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    blocks = Blocks(ids, torch.ones(16, 24, dtype=torch.bool))
    plan = train.Plan(steps=6, batch_rows=4, lr=1e-2, checkpoint_steps=3, dropout=True)
    ends, examined = [], []

    def learn(folder, between):
        student = copy.deepcopy(model)

        def on_step(record):
            if between and record["step"] % 2 == 0:
                examined.append(examine(student, tokenizer, {"swap": small_tasks["swap"]}, batch_size=16))

        history = train.train(
            student, objective("sft"), blocks, None, plan, seed=5, vocabulary=len(tokenizer), precision="float32",
            folder=folder, on_step=on_step,
        )  # fmt: skip
        ends.append((history, torch.cat([parameter.detach().flatten() for parameter in student.parameters()])))

    learn(tmp_path / "plain", between=False)
    learn(tmp_path / "examined", between=True)
    assert len(examined) == 3 and ends[0][0] == ends[1][0] and torch.equal(ends[0][1], ends[1][1])
    assert examined[0] != examined[2], "it was examined while it learnt"
