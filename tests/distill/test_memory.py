"""A step that does not fit is cut smaller, and nothing else changes.

python -m pytest tests/distill/test_memory.py
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from kdbench.distill import memory, models, train
from kdbench.errors import ConfigError, Interrupted, OutOfMemory
from tests.distill.conftest import VOCABULARY, tiny
from tests.distill.test_train import PLAN, batch_of, learn, live, moving, weights

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.6 GiB"
CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


class Small:
    """A device that holds so many rows: its layers raise as torch does where more come."""

    def __init__(self, rows: int, error: Exception):
        self.rows, self.error, self.seen = rows, error, []

    def __call__(self, module, arguments):
        self.seen.append(arguments[0].shape[0] if arguments else 0)
        if self.seen[-1] > self.rows:
            raise self.error


def on(device, model):
    """Put a model on a small device."""
    model.get_input_embeddings().register_forward_pre_hook(device)
    return model


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("atkd", torch.OutOfMemoryError(CUDA)),
        ("atkd", RuntimeError(CPU)),
        ("atkd", MemoryError()),
        ("atkd", OSError(12, "no")),
        ("kl+sekd", torch.OutOfMemoryError(CUDA)),
    ],
    ids=["cuda", "cpu", "py", "os", "two passes of the student"],
)
@pytest.mark.fault("F1", "layers that raise as torch does, for CUDA, the CPU and Python: halved, the same student")
def test_a_batch_that_does_not_fit_is_halved_and_trains_the_same_student(spec, error, teacher_model, blocks, tmp_path):
    roomy, tight, device = tiny(0), tiny(0), Small(3, error)
    learn(roomy, spec, blocks, live(teacher_model, blocks), tmp_path / "a")
    history = learn(on(device, tight), spec, blocks, live(teacher_model, blocks), tmp_path / "b")
    assert torch.allclose(weights(roomy), weights(tight), atol=2e-3)
    assert [record["micro_batch"] for record in history] == [2] * 8
    assert [rows for rows in device.seen if rows > 3] == [8, 4]  # met twice, never again
    assert memory.facts(history) == {"micro_batches_cut": [{"rows": 2, "from_step": 1}]}


@pytest.mark.fault("F1", "an interruption after the cut: the whole batch is not tried again")
def test_a_cut_batch_is_not_tried_whole_again_after_an_interruption(teacher_model, blocks, tmp_path):
    stops = iter([0, 0, 143])
    with pytest.raises(Interrupted):
        first = on(Small(4, RuntimeError(CPU)), tiny(0))
        learn(first, "kl", blocks, live(teacher_model, blocks), tmp_path, should_stop=lambda: next(stops))
    device = Small(4, RuntimeError(CPU))
    learn(on(device, tiny(0)), "kl", blocks, live(teacher_model, blocks), tmp_path)
    assert max(device.seen) == 4


@pytest.mark.fault("F2", "a single row does not fit: sizes and advice")
def test_a_row_that_does_not_fit_ends_with_sizes_and_advice(blocks, tmp_path):
    device = Small(0, RuntimeError(CPU))
    with pytest.raises(OutOfMemory, match=r"^out of memory: .* parameters, .* rows .*gradient_checkpointing"):
        learn(on(device, tiny(0)), "sft", blocks, None, tmp_path)
    assert device.seen == [8, 4, 2, 1]


@pytest.mark.fault("F1", "a teacher that does not fit in its usual rows: read in fewer, the same states, tried once")
def test_a_teacher_that_does_not_fit_is_read_in_fewer_rows(teacher_model, blocks):
    exact, device = live(teacher_model, blocks).read(blocks), Small(3, torch.OutOfMemoryError(CUDA))
    teacher = live(on(device, teacher_model), blocks)
    for _ in range(2):
        found = teacher.read(blocks)
        assert torch.allclose(found.states.hidden, exact.states.hidden, atol=1e-5)
        assert torch.allclose(found.log_prob_target, exact.log_prob_target, atol=1e-5)
        assert torch.allclose(found.entropy, exact.entropy, atol=1e-5)
    assert [rows for rows in device.seen if rows > 3] == [16, 8, 4]


@pytest.mark.fault("F2", "a teacher of which no row fits: sizes and advice")
def test_a_teacher_of_which_no_row_fits_ends_with_sizes_and_advice(teacher_model, blocks):
    with pytest.raises(OutOfMemory, match=r"^out of memory: .* parameters, .*DefaultCPUAllocator.*a larger device"):
        live(on(Small(0, RuntimeError(CPU)), teacher_model), blocks).read(blocks)


def short(*_, **__):
    """Find no memory."""
    raise torch.OutOfMemoryError(CUDA)


@pytest.mark.parametrize(
    ("owner", "name", "spec"),
    [
        (torch.optim.AdamW, "step", "kl"),
        (train, "clip", "kl"),
        (train, "write", "gkd"),
        (train, "read_states", {"name": "distillm", "validations": 4}),
    ],
    ids=["the optimiser", "the gradient's norm", "text that is written", "held-out text"],
)
@pytest.mark.fault("F2", "no memory for the optimiser's moments, for text that is written, for held-out text")
def test_what_cannot_be_cut_ends_with_sizes_and_advice(owner, name, spec, teacher_model, blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(owner, name, short)
    with pytest.raises(OutOfMemory, match=r"^out of memory: a training step does not fit \(.* parameters, .*CUDA out"):
        moving(spec, blocks, live(teacher_model, blocks), tmp_path)


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), OSError(28, "no space left"), ValueError("odd")])
def test_what_is_not_of_memory_is_not_explained_as_such(error):
    with pytest.raises(type(error)) as raised, memory.explained("a step"):
        raise error
    assert raised.value is error


def test_an_error_that_is_not_of_memory_is_not_swallowed(blocks, tmp_path):
    device = Small(3, RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        learn(on(device, tiny(0)), "sft", blocks, None, tmp_path)
    assert device.seen == [8]


def test_where_everything_fits_nothing_is_recorded(blocks, tmp_path):
    history = learn(tiny(0), "sft", blocks, None, tmp_path)
    assert not any("micro_batch" in record for record in history) and memory.facts(history) == {}


REAL = """
import resource, sys, tempfile
from pathlib import Path
import torch
torch.set_num_threads(1)
from kdbench.distill import train
from kdbench.distill.data import Blocks
from kdbench.registry import objective
from tests.distill.conftest import tiny
rows, length = 64, 256
model = tiny(0, width=64, ffn_dim=1024)
ids = torch.randint(2, 61, (rows, length), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
blocks = Blocks(ids, torch.ones(rows, length, dtype=torch.bool))
plan = train.Plan(steps=2, batch_rows=rows, lr=1e-3)
def learn(cap):
    if cap:
        pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (pages + cap, -1))
    return train.train(model, objective("sft"), blocks, None, plan, seed=0, vocabulary=61, precision="float32",
                       folder=Path(tempfile.mkdtemp()))
warm = train.Plan(steps=1, batch_rows=1, lr=1e-3)
train.train(model, objective("sft"), blocks, None, warm, seed=0, vocabulary=61, precision="float32",
            folder=Path(tempfile.mkdtemp()))
print([record["micro_batch"] for record in learn(int(sys.argv[1]))])
"""


@pytest.mark.slow
@pytest.mark.fault("F3", "RLIMIT_AS, 100 MiB more than is in use: met by smaller micro-batches")
def test_a_real_shortage_of_memory_is_met_by_smaller_micro_batches():
    """The process may take 100 MiB more than it has; a forward pass over the whole batch takes several times that."""
    process = subprocess.run(
        [sys.executable, "-c", REAL, str(100 * 2**20)], capture_output=True, text=True, timeout=240
    )
    assert process.returncode == 0, process.stderr[-2000:]
    sizes = eval(process.stdout)
    assert len(sizes) == 2 and sizes[0] >= sizes[1] and 1 <= sizes[1] < 64


@pytest.mark.parametrize("architecture", ["opt", "gpt_neox", "llama"])
def test_gradient_checkpointing_gives_equal_gradients_and_no_dropout(architecture, teacher_model, blocks):
    fields = {"intermediate_size": 32} if architecture != "opt" else {"dropout": 0.5}
    fields |= {"attention_dropout": 0.5}
    student = tiny(0, architecture=architecture, **fields).eval()
    batch, found = batch_of(blocks, live(teacher_model, blocks)), []
    from kdbench.registry import objective

    for enabled in (False, True):
        student.zero_grad()
        with memory.checkpointed(student, enabled, dropout=False):
            train.backward(student, objective("atkd"), batch, batch.tokens(), None, VOCABULARY, "float32")
        found.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
    assert torch.allclose(*found, atol=1e-7) and found[0].abs().max() > 0
    assert not student.training and not student.is_gradient_checkpointing
    assert student.config.attention_dropout == 0.5


def test_gradient_checkpointing_computes_the_layers_again(blocks, tmp_path):
    calls = []
    for enabled in (False, True):
        model, count = tiny(0), []
        layer = next(m for n, m in model.named_modules() if n.endswith("layers.0.fc1"))
        layer.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        plan = train.Plan(**{**PLAN.__dict__, "steps": 1, "gradient_checkpointing": enabled})
        learn(model, "sft", blocks, None, tmp_path / str(enabled), plan=plan)
        calls.append(len(count))
    assert calls == [1, 2]


def test_an_architecture_that_cannot_is_refused(student, monkeypatch):
    monkeypatch.setattr(type(student), "supports_gradient_checkpointing", False)
    with pytest.raises(ConfigError, match="gradient_checkpointing"), memory.checkpointed(student, True, False):
        pass
    models.check_head(student)
