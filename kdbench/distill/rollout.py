"""Text that a model writes: batched generation after prompts of any length, by transformers' own `generate`.

What is drawn depends on the weights, the prompts and the seed alone: a run that was killed draws the same again, and
two objectives with the same trajectories and the same student see the same text.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdbench import failpoints
from kdbench.api import Sampling
from kdbench.distill.data import Blocks
from kdbench.divergences import NEG_INF, log_mixture
from kdbench.seeding import fenced


@dataclass(frozen=True)
class Limits:
    """What bounds a generation.

    Attributes:
        prompt_tokens: how many tokens of a block, from its start, make the prompt.
        new_tokens: at most so many are written.
        length: width of the blocks that result.
        eos, pad: token ids; they may be one.
        vocabulary: the tokenizer's size; ids beyond it, of a padded head, are never drawn.
    """

    prompt_tokens: int
    new_tokens: int
    length: int
    eos: int
    pad: int
    vocabulary: int


@dataclass(frozen=True)
class Writers:
    """Who may write. `teacher` is None where no sampling asks for it."""

    student: nn.Module
    teacher: nn.Module | None
    precision: str


def prompts(blocks: Blocks, limits: Limits) -> list[Tensor]:
    """Return the prompt of each block, `[1 … prompt_tokens]` ids; padding is no part of it."""
    real = blocks.mask.sum(1) + 1  # a block's first token is real and never a target
    if blocks.positions is not None:  # of a packed row, its first document
        real = ((blocks.positions == 0).cumsum(1) == 1).sum(1)
    return [ids[: max(1, min(limits.prompt_tokens, int(n)))].long() for ids, n in zip(blocks.ids, real, strict=True)]


@torch.no_grad()
def write(
    sampling: Sampling, writers: Writers, given: Sequence[Tensor], limits: Limits, seed: int
) -> tuple[Blocks, dict[str, float]]:
    """Continue prompts. Targets are the written tokens, up to the first EOS and with it; a prompt never is.

    Returns:
        The text, `[B, length]`, padded on the right; and what is to be logged: `tokens` written, mean `length`,
        `eos_rate`, the share of rows that ended by EOS, and `acceptance` where the teacher judges proposals.
    """
    width = max(len(prompt) for prompt in given)
    room = min(limits.new_tokens, limits.length - width)
    if room <= 0:
        return _assemble(given, [prompt[:0] for prompt in given], limits)
    writer = writers.teacher if sampling.by == "teacher" else writers.student
    assert writer is not None
    device = next(writer.parameters()).device
    failpoints.hit("rollout")
    padded = torch.full((len(given), width), limits.pad)
    attention = torch.zeros_like(padded)
    for row, prompt in enumerate(given):
        padded[row, width - len(prompt) :] = prompt
        attention[row, width - len(prompt) :] = 1
    processors: list[Any] = [_InVocabulary(limits.vocabulary)]
    judge = None
    if sampling.by in ("mixed", "interleaved"):
        assert writers.teacher is not None
        judge = _Judged(sampling, writers.teacher, attention.to(device), limits)
        processors.append(judge)
    training = writer.training
    writer.eval()
    try:
        enabled = writers.precision == "bfloat16"
        with fenced(seed, "rollout"), torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled):
            whole = writer.generate(
                padded.to(device),
                attention_mask=attention.to(device),
                generation_config=_settings(sampling, room, limits),
                logits_processor=processors,
            )
    finally:
        writer.train(training)
    written = [_until_eos(row, limits.eos) for row in whole[:, width:].cpu()]
    blocks, stats = _assemble(given, written, limits)
    if judge is not None and sampling.by == "interleaved":
        stats["acceptance"] = judge.acceptance()
    return blocks, stats


def _settings(sampling: Sampling, room: int, limits: Limits) -> Any:
    from transformers import GenerationConfig

    drawn = not sampling.greedy and sampling.beams == 1
    chosen = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p} if drawn else {}
    return GenerationConfig(
        max_new_tokens=room,
        do_sample=drawn,
        num_beams=sampling.beams,
        eos_token_id=limits.eos,
        pad_token_id=limits.pad,
        use_cache=True,
        **chosen,
    )


def _until_eos(row: Tensor, eos: int) -> Tensor:
    """Cut what `generate` padded. EOS itself is kept, so that stopping is learnt, also where PAD is the same id."""
    ends = (row == eos).nonzero()
    return row[: int(ends[0]) + 1] if len(ends) else row


def _assemble(given: Sequence[Tensor], written: list[Tensor], limits: Limits) -> tuple[Blocks, dict[str, float]]:
    ids = torch.full((len(given), limits.length), limits.pad, dtype=torch.int32)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (prompt, text) in enumerate(zip(given, written, strict=True)):
        begin, end = len(prompt), len(prompt) + len(text)
        ids[row, :begin], ids[row, begin:end] = prompt, text
        mask[row, begin:end] = True
    count = sum(len(text) for text in written)
    ended = sum(bool(len(text)) and int(text[-1]) == limits.eos for text in written)
    stats = {"tokens": float(count), "length": count / len(given), "eos_rate": ended / len(given)}
    return Blocks(ids, mask), stats


class _InVocabulary:
    """Excludes the ids by which some models pad their output head."""

    def __init__(self, size: int):
        self.size = size

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float()
        scores[:, self.size :] = NEG_INF
        return scores


class _Judged:
    """Turns the student's scores into those of a text that the teacher has a hand in, with a KV cache of its own.

    `mixed`: a · p + (1 − a) · q. `interleaved`: a proposal y ~ q outside the teacher's K likeliest tokens is redrawn
    from p, so y ~ q on these K, and p with the mass that q leaves elsewhere.
    """

    def __init__(self, sampling: Sampling, teacher: nn.Module, attention: Tensor, limits: Limits):
        self.sampling, self.teacher, self.attention, self.limits = sampling, teacher, attention, limits
        self.cache: Any = None
        self.positions = "position_ids" in inspect.signature(teacher.forward).parameters
        self.accepted, self.judged = 0.0, 0
        self.width = attention.shape[1]

    def acceptance(self) -> float:
        """Return the expected share of proposals that were kept."""
        return self.accepted / max(1, self.judged)

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        log_p, log_q = self._teacher(ids), scores.log_softmax(-1)
        if self.sampling.by == "mixed":
            return log_mixture(log_p, log_q, self.sampling.teacher_share)
        likeliest = log_p.topk(min(self.sampling.accepted, log_p.shape[-1]), -1).indices
        kept = torch.full_like(log_q, NEG_INF).scatter(-1, likeliest, log_q.gather(-1, likeliest))
        mass = kept.exp().sum(-1).clamp(max=1)
        going = ~(ids[:, self.width :] == self.limits.eos).any(-1)
        self.accepted += float(mass[going].sum())
        self.judged += int(going.sum())
        return torch.logaddexp(kept, log_p + torch.log1p(-mass)[:, None])

    def _teacher(self, ids: Tensor) -> Tensor:
        """Return the teacher's log p of the next token, `[B, V]`."""
        new = ids if self.cache is None else ids[:, -1:]
        grown = ids.shape[1] - self.attention.shape[1]
        self.attention = torch.nn.functional.pad(self.attention, (0, grown), value=1)
        extra = {}
        if self.positions:
            extra["position_ids"] = (self.attention.cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1] :]
        found = self.teacher(
            input_ids=new, attention_mask=self.attention, past_key_values=self.cache, use_cache=True, **extra
        )
        self.cache = found.past_key_values
        logits = found.logits[:, -1].float()
        logits[:, self.limits.vocabulary :] = NEG_INF
        return logits.log_softmax(-1)
