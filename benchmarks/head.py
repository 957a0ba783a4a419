"""Rows 1: the loss head, forward and backward, from hidden states to the gradients of student states and head.

The floor is four matrix products that nobody can avoid: teacher logits, student logits, and the two gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import kdbench
from benchmarks import head_peers
from benchmarks.measure import Absent, Bench, Found, require_memory, watched
from benchmarks.rows import Row, against
from benchmarks.states import States, draw
from kdbench.api import Objective, Source, Tokens
from kdbench.distill.loss import TeacherStates, fused_loss, step_weights

GROUP = "head"
CLOSED = ("kl", "reverse_kl", "jsd", "atkd")
LARGE = 151_936
ROOM = 10  # [N, V] tensors that a dense divergence holds at its worst moment


class Hellinger(Objective):
    """The squared Hellinger distance, written as a user would: plain torch, no gradient by hand."""

    name = "bench_hellinger"
    source = Source(title="the benchmark's own", year=2026)

    def terms(self, student, teacher, tokens):
        gap = (0.5 * teacher.log_probs).exp() - (0.5 * student.log_probs).exp()
        return {"hellinger": gap.square().sum(-1)}


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    **{name: (lambda name=name: kdbench.objective(name)) for name in CLOSED},
    "user-written": Hellinger,
}


def run(bench: Bench) -> list[Row]:
    """Measure every contestant at every vocabulary."""
    rows = []
    student, teacher = bench.pick((768, 2048), (768, 2048), (16, 32))
    tokens = bench.pick(2048, 2048, 64)
    for vocabulary in bench.pick((50_272, LARGE), (50_272, LARGE), (512,)):
        size = {"tokens": tokens, "vocabulary": vocabulary, "student": student, "teacher": teacher}
        short = bench.scale == "quick" and vocabulary == LARGE
        rows += _rows(replace(bench, turns=1) if short else bench, size)
    return rows


def _rows(bench: Bench, size: dict[str, int]) -> list[Row]:
    calls = {("floor", ""): _call(bench, size, "floor", "kl")}
    for objective in OBJECTIVES:
        for contestant in CONTESTANTS:
            if contestant != "floor" and (contestant != "kdbench, log p stored" or objective == "atkd"):
                calls[contestant, objective] = _call(bench, size, contestant, objective)
    found = bench.interleaved(calls, repeats=bench.pick(3, 3, 1))
    floor, rows = found["floor", ""], []
    for objective in OBJECTIVES:
        what = f"{objective}, V = {size['vocabulary']:,}"
        ours = found["kdbench", objective]
        bound = 1.3 if objective in CLOSED else 2.0
        for (contestant, of), one in found.items():
            if of == objective:
                target = ("<=", bound) if contestant.startswith("kdbench") else None
                note = _agreement(one, found["dense", objective], ours)
                rows.append(against(GROUP, f"{what}: time", (contestant, "floor"), (one, floor), target, note=note))
        pair = (ours, found["trl", objective])
        stated = ("<=", 0.6) if objective in head_peers.BETAS else None  # TRL has no other
        rows.append(against(GROUP, f"{what}: time", ("kdbench", "trl"), pair, stated))
        pair = (ours, found["dense", objective])
        note = _without_gradients(*pair, size)
        rows.append(
            against(GROUP, f"{what}: memory", ("kdbench", "dense"), pair, ("<=", 0.1), "extra_bytes", note=note)
        )
    return rows


def _call(bench: Bench, size: dict[str, int], contestant: str, objective: str) -> tuple[str, dict[str, Any]]:
    settings = size | {"contestant": contestant, "objective": objective, "device": bench.device}
    return "benchmarks.head:once", settings


def _agreement(one: Found, dense: Found, ours: Found) -> str:
    """Say where a contestant's gradient is another one: then the times compare different functions."""
    reference = dense if "missing" not in dense else ours
    if {"missing"} & (one.keys() | reference.keys()) or one["norms"] is None:
        return ""
    gaps = [abs(a / b - 1) for a, b in zip(one["norms"], reference["norms"], strict=True)]
    return f"its gradient differs by {max(gaps):.1e}" if max(gaps) > 1e-3 else ""


def _without_gradients(ours: Found, dense: Found, size: dict[str, int]) -> str:
    if {"missing"} & (ours.keys() | dense.keys()) or ours["extra_bytes"] is None or dense["extra_bytes"] is None:
        return ""
    given = 4 * size["student"] * (size["tokens"] + size["vocabulary"])
    ratio = (ours["extra_bytes"] - given) / max(1, dense["extra_bytes"] - given)
    return f"{ratio:.3f} beyond the gradients themselves ({given / 2**20:,.0f} MiB on both sides)"


def once(
    contestant: str, objective: str, tokens: int, vocabulary: int, student: int, teacher: int, device: str
) -> Found:
    """Make the gradients once, after a tiny warm-up; return time, memory, loss and the gradients' norms."""
    if contestant == "dense" and device == "cpu":
        require_memory(4 * (ROOM * tokens * vocabulary + vocabulary * (teacher + 3 * student)), "the dense formula")
    work = CONTESTANTS[contestant]
    work(draw(32, 256, 16, 16, device), objective)
    states = draw(tokens, vocabulary, student, teacher, device)
    with watched(device) as seen:
        loss = work(states, objective)
    grads = (states.student_hidden.grad, states.student_head.grad)
    norms = None if loss is None else [float(g.double().norm()) for g in grads]
    return seen.facts() | {"loss": loss, "norms": norms}


# --- contestants ------------------------------------------------------------------------------------------------------


def _floor(x: States, objective: str, rows: int = 256) -> None:
    """The products alone, in chunks over buffers that are used again."""
    with torch.no_grad():
        hidden, head = x.student_hidden.detach(), x.student_head.detach()
        student, teacher = (torch.empty(rows, head.shape[0], device=head.device) for _ in range(2))
        grad_hidden, grad_head = torch.empty_like(hidden), torch.zeros_like(head)
        for begin in range(0, len(hidden), rows):
            part = slice(begin, min(begin + rows, len(hidden)))
            n = part.stop - begin
            torch.mm(x.teacher_hidden[part], x.teacher_head.t(), out=teacher[:n])
            torch.mm(hidden[part], head.t(), out=student[:n])
            torch.mm(student[:n], head, out=grad_hidden[part])
            grad_head.addmm_(student[:n].t(), hidden[part])
    x.student_hidden.grad, x.student_head.grad = grad_hidden, grad_head


def _kdbench(x: States, objective: str) -> float:
    """The public function, which knows the states alone."""
    chosen = OBJECTIVES[objective]()
    parts = kdbench.linear_loss(chosen, x.student_hidden, x.student_head, x.teacher_hidden, x.teacher_head, x.targets)
    parts.total.backward()
    return float(parts.total.detach())


def _stored(x: States, objective: str) -> float:
    """What a cell of a matrix does: the cache holds log p(target) beside the states, so ATKD need not look for it."""
    chosen = OBJECTIVES[objective]()
    weights = step_weights(chosen, _tokens(x))
    teacher = TeacherStates(x.teacher_hidden, x.teacher_head)
    parts = fused_loss(chosen, x.student_hidden, x.student_head, teacher, x.targets, weights)
    parts.total.backward()
    return float(parts.total.detach())


def _tokens(x: States) -> Tokens:
    # Made by draw(), as a cache would have it: no product of this size falls into the time that is measured.
    return Tokens(
        sequence=torch.zeros_like(x.targets), log_prob_target=x.log_prob_target, teacher_entropy=None, target=x.targets
    )


def _dense(x: States, objective: str) -> float:
    """The formula on full logits, its gradient by autograd."""
    with torch.no_grad():
        teacher = x.teacher_hidden @ x.teacher_head.t()
    student = x.student_hidden @ x.student_head.t()
    if objective == "user-written":
        value = kdbench.loss(OBJECTIVES[objective](), student, teacher, x.targets).total
    elif objective == "atkd":
        value = _dense_atkd(teacher, student, x)
    else:
        value = _dense_divergence(objective, teacher.log_softmax(-1), student.log_softmax(-1)) / len(x.targets)
    value.backward()
    return float(value.detach())


def _dense_divergence(objective: str, log_p: Tensor, log_q: Tensor) -> Tensor:
    if objective == "kl":
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    if objective == "reverse_kl":
        return F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
    return 0.5 * sum(F.kl_div(log_m, one, reduction="sum", log_target=True) for one in (log_p, log_q))


def _dense_atkd(teacher: Tensor, student: Tensor, x: States) -> Tensor:
    weights = step_weights(OBJECTIVES["atkd"](), _tokens(x)).named
    index = x.targets[:, None]
    log_p, log_q = (one.log_softmax(-1).gather(-1, index)[:, 0] for one in (teacher, student))
    rest_p, rest_q = (torch.log1p(-one.exp()) for one in (log_p, log_q))
    target = log_p.exp() * (log_p - log_q) + rest_p.exp() * (rest_p - rest_q)
    others = [one.scatter(-1, index, -1e30).log_softmax(-1) for one in (teacher, student)]
    diversity = F.kl_div(others[1], others[0], reduction="none", log_target=True).sum(-1)
    return (weights["tkd"].float() * target).sum() + (weights["dkd"].float() * diversity).sum()


def _peer(work: Callable[[States, str], float]) -> Callable[[States, str], float]:
    def checked(x: States, objective: str) -> float:
        if objective not in head_peers.BETAS:
            raise Absent("has no such objective")
        return work(x, objective)

    return checked


CONTESTANTS: dict[str, Callable[[States, str], float | None]] = {
    "floor": _floor,
    "kdbench": _kdbench,
    "kdbench, log p stored": _stored,
    "dense": _dense,
    "trl": _peer(head_peers.trl),
    "liger": _peer(head_peers.liger),
    "torchtune": _peer(head_peers.torchtune),
}
