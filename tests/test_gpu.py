"""What needs a GPU; skipped where there is none, and never run on one by the authors (README, "GPUs").

python -m pytest -m gpu tests/test_gpu.py
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

from kdbench.api import Sampling
from kdbench.distill import engine, models, placement, rollout, train
from kdbench.distill.loss import TeacherStates, fused_loss, loss, step_weights
from kdbench.distill.placement import Form
from kdbench.distill.rollout import Limits, Writers
from kdbench.distill.teacher import LiveTeacher, read_states
from kdbench.registry import objective
from tests.distill.conftest import LENGTH, VOCABULARY, tiny
from tests.distill.ranks import text
from tests.distill.saved import made

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here"),
]
CUDA = models.Runtime("cuda", "float32", 1)
PLAN = train.Plan(steps=30, batch_rows=8, lr=3e-3)
WIDE = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 128}


def trained(spec: str, precision: str, folder):
    model, guide = tiny(0, width=64).cuda(), tiny(1, width=96).cuda().eval().requires_grad_(False)
    blocks = text()
    teacher = LiveTeacher(guide, blocks, VOCABULARY, "float32")
    history = train.train(
        model, objective(spec), blocks, teacher, PLAN, seed=5, vocabulary=VOCABULARY, precision=precision, folder=folder
    )
    return [record["loss"] for record in history]


@pytest.mark.parametrize("spec", ["sft", "kl", "atkd", "reverse_kl+atkd"])
def test_training_in_bf16_stays_close_to_training_in_fp32(spec, tmp_path):
    """Stated tolerance: losses of the last ten steps differ by 5 % on average, and both fall alike."""
    fine, coarse = (trained(spec, precision, tmp_path / precision) for precision in ("float32", "bfloat16"))
    assert sum(coarse[-10:]) == pytest.approx(sum(fine[-10:]), rel=0.05)
    assert fine[-1] < fine[0] and coarse[-1] < coarse[0]


def peak_of(work) -> int:
    """Return the bytes that `work` takes at its worst moment beyond what was there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("spec", ["kl", "reverse_kl", "atkd"])
def test_the_fused_loss_takes_a_fifth_of_the_dense_one_s_memory_at_most(spec):
    """4,096 tokens of 50,272 classes, as OPT has, from 768 numbers each: one [N, V] tensor is 0.8 GB in fp32."""
    tokens, classes, width = 4096, 50_272, 768
    rng = torch.Generator("cuda").manual_seed(0)
    hidden, taught = (torch.randn(tokens, width, device="cuda", generator=rng) for _ in range(2))
    heads = [0.02 * torch.randn(classes, width, device="cuda", generator=rng) for _ in range(2)]
    targets, chosen = torch.randint(classes, (tokens,), device="cuda", generator=rng), objective(spec)
    hidden.requires_grad_(), heads[0].requires_grad_()

    def dense():
        loss(chosen, hidden @ heads[0].t(), taught @ heads[1].t(), targets).total.backward()

    def fused():
        fused_loss(chosen, hidden, heads[0], TeacherStates(taught, heads[1]), targets, weights).total.backward()

    weights = step_weights(chosen, _known(taught, heads[1], targets))
    peaks, gradients = [], []
    for work in (dense, fused):
        hidden.grad = heads[0].grad = None
        peaks.append(peak_of(work))
        gradients.append(hidden.grad)
    assert torch.allclose(*gradients, atol=1e-6, rtol=1e-3)
    assert peaks[1] <= peaks[0] / 5, f"{peaks[1] / 1e9:.2f} of {peaks[0] / 1e9:.2f} GB"


@torch.no_grad()
def _known(taught, head, targets):
    from kdbench.api import Tokens

    log_p = (taught @ head.t()).log_softmax(-1)
    picked = log_p.gather(-1, targets[:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    row = torch.zeros_like(targets)
    return Tokens(sequence=row, log_prob_target=picked, teacher_entropy=entropy, sampled=row.bool(), target=targets)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu")
    made("llama", seed=1, **WIDE).save_pretrained(path)
    return path


def states(model, precision="float32"):
    return read_states(model, text(), VOCABULARY, precision, torch.float32)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (quantize)")
def test_a_teacher_in_few_bits_is_read_on_the_gpu(bits, folder):
    found, whole = states(placement.load(folder, CUDA, Form(bits=bits))), states(models.load(folder, CUDA))
    apart = (found.log_prob_target - whole.log_prob_target).abs().mean()
    assert 0 < apart < {"8bit": 0.03, "4bit": 0.2}[bits] * whole.log_prob_target.abs().mean()


def test_a_teacher_whose_last_layers_lie_in_the_machine_s_memory_says_the_same(folder):
    here = {name: 0 for name in ("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1")}
    away = {name: "cpu" for name in ("model.layers.2", "model.layers.3", "model.norm", "lm_head")}
    spread = models.load(folder, CUDA, options={"device_map": here | away})
    assert models.head(spread, VOCABULARY).device.type == "cuda"
    assert torch.allclose(states(spread).states.hidden, states(models.load(folder, CUDA)).states.hidden, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed (extra: vllm)")
def test_vllm_writes_greedily_what_transformers_writes(folder):
    """Weights are changed after the engine has started: it must write by the new ones."""
    student = models.load(folder, CUDA)
    limits = Limits(prompt_tokens=4, new_tokens=8, length=LENGTH, eos=0, pad=1, vocabulary=VOCABULARY)
    given = [torch.tensor([5, 6, 7, 8]), torch.tensor([9, 3]), torch.tensor([4])]
    writer = engine.start(student, folder, "float32", LENGTH, 0.2)
    for _ in range(2):
        found, _ = writer.write(Sampling("student", greedy=True), given, limits, 3)
        expected, _ = rollout.write(
            Sampling("student", greedy=True), Writers(student, None, "float32"), given, limits, 3
        )
        assert torch.equal(found.ids, expected.ids) and torch.equal(found.mask, expected.mask)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices are here")
def test_two_gpus_train_the_student_of_one(tmp_path):
    from torch.multiprocessing import start_processes

    from kdbench.distill.group import Alone
    from tests.distill import ranks
    from tests.distill.test_group import close, found

    start_processes(ranks.on_gpus, args=(2, tmp_path), nprocs=2, start_method="spawn")
    history, weights = ranks.training(Alone(), "atkd", tmp_path / "alone", device="cuda")
    theirs, their_weights = found(tmp_path, 0, "training atkd")
    assert [one["loss"] for one in theirs] == pytest.approx([one["loss"] for one in history], rel=1e-3)
    assert close(their_weights, {name: one.cpu() for name, one in weights.items()}, atol=2e-3)
