"""One student learns: a plain loop over batches addressed by their step. Knows nothing of the store or of MLflow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench import failpoints
from kdbench.api import LossParts, Measured, Objective, Step, Tokens
from kdbench.distill import checkpoint, memory
from kdbench.distill.data import Blocks
from kdbench.distill.engine import Engine
from kdbench.distill.group import Alone, clip, total
from kdbench.distill.loss import TeacherStates, fused_loss, fused_probe, step_weights
from kdbench.distill.models import body, head
from kdbench.distill.rollout import Limits, Writers, write
from kdbench.distill.source import Text, TextSource
from kdbench.distill.teacher import Signal, Teacher, forward_rows, joined, read_states
from kdbench.distill.timing import part
from kdbench.errors import ConfigError, Diverged, Interrupted
from kdbench.seeding import derive, fenced


@dataclass(frozen=True)
class Plan:
    """How to train: the suite's `train:` or a model's `pretrain:`, with what it is applied to."""

    steps: int
    batch_rows: int
    lr: float
    warmup: float = 0.05
    schedule: str = "cosine"
    weight_decay: float = 0.0
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    micro_batch: int | None = None
    dropout: bool = False
    checkpoint_steps: int = 50
    compile: bool = False
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class Batch:
    """The global batch of one optimiser step.

    Attributes:
        ids: `[B, T]`.
        mask: `[B, T-1]` bool, valid targets.
        signal: the teacher's, of the valid tokens; None where the loss reads none.
        sampled: `[B]` bool, rows that were written while training.
        noise: a number of this step, from which each token's own follows.
        positions: `[B, T]`, where rows hold several documents.
        of_all: where several processes train, the tokens of the global batch, of which these rows are a part.
        first: which of them is the first of these rows.
    """

    ids: Tensor
    mask: Tensor
    signal: Signal | None
    sampled: Tensor
    noise: int = 0
    positions: Tensor | None = None
    of_all: Tokens | None = None
    first: int = 0

    def hidden(self, model: nn.Module, rows: slice, precision: str) -> Tensor:
        """Return a model's final hidden states of some rows' valid tokens, `[n, H]`."""
        places = None if self.positions is None else self.positions[rows, :-1]
        return body(model, self.ids[rows, :-1], precision, places)[self.mask[rows]]

    def tokens(self) -> Tokens:
        """Return what is known of all valid tokens of the global batch before their loss is made."""
        if self.of_all is not None:
            return self.of_all
        row = torch.arange(self.mask.shape[0], device=self.mask.device)[:, None].expand(self.mask.shape)[self.mask]
        signal = self.signal
        return Tokens(
            sequence=row,
            log_prob_target=None if signal is None else signal.log_prob_target,
            teacher_entropy=None if signal is None else signal.entropy,
            sampled=self.sampled[row],
            target=self.ids[:, 1:][self.mask],
            number=self.noise + torch.arange(len(row), device=row.device),
            drawn=None if signal is None else signal.drawn,
        )

    def cut(self, rows: int | None) -> Iterator[tuple[slice, slice]]:
        """Yield micro-batches of so many rows (None: all at once): the rows, and their tokens among those of all."""
        size, start = rows or self.ids.shape[0], self.first
        for begin in range(0, self.ids.shape[0], size):
            some = slice(begin, begin + size)
            end = start + int(self.mask[some].sum())
            yield some, slice(start, end)
            start = end

    def states(self, window: slice) -> TeacherStates | None:
        """Return the teacher's side of some valid tokens."""
        if self.signal is None:
            return None
        states, mine = self.signal.states, slice(window.start - self.first, window.stop - self.first)
        return TeacherStates(states.hidden[mine], states.head)


def learning_rate(plan: Plan, step: int) -> float:
    """Return the rate of a 0-based step: linear warm-up, then the schedule down to 0 after the last step."""
    warm = max(1, round(plan.warmup * plan.steps))
    if step < warm:
        return plan.lr * (step + 1) / warm
    done = (step - warm) / max(1, plan.steps - warm)
    return (
        plan.lr * {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[plan.schedule]
    )


def train(
    model: nn.Module,
    objective: Objective,
    blocks: Blocks,
    teacher: Teacher | None,
    plan: Plan,
    *,
    seed: int,
    vocabulary: int,
    precision: str,
    folder: Path,
    limits: Limits | None = None,
    teacher_text: Blocks | None = None,
    engine: Engine | None = None,
    held_out: Blocks | None = None,
    on_step: Callable[[dict[str, Any]], None] = lambda record: None,
    should_stop: Callable[[], int] = lambda: 0,
    group: Alone | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place and return the history, a record a step.

    Args:
        blocks: the text; `teacher` knows the same rows.
        vocabulary: the tokenizer's size; both heads are cut to it.
        folder: for checkpoints; training goes on from the newest whole one.
        limits, teacher_text: for objectives that learn from other text than `blocks`.
        engine: writes the student's text; default: transformers' own loop.
        held_out: for objectives that adapt to the loss on text that is not trained on.
        should_stop: asked after each step; a non-zero exit code saves and raises Interrupted.
        group: the processes that train it together, each calling this; default: this one alone.

    Raises:
        Diverged: when loss or gradient is not finite; the step is not applied.
        Interrupted: after saving.
        OutOfMemory: a single row does not fit, or what cannot be cut into rows.
    """
    group = group or Alone()
    learning = [parameter for _, parameter in checkpoint.trained(model)]
    optimizer = torch.optim.AdamW(learning, lr=plan.lr, betas=plan.betas, weight_decay=plan.weight_decay)
    state = group.in_turn(lambda: checkpoint.load(folder))
    source = TextSource(blocks, seed, plan.batch_rows, teacher_text, limits)
    if limits is not None:
        writers = Writers(model, None if teacher is None else teacher.model, precision)
        source.write = lambda sampling, given, drawn: group.first(  # together they write what one of them would
            group.inside(lambda: write(sampling, writers, given, limits, drawn))
        )
    if limits is not None and engine is not None:
        source.write = lambda sampling, given, drawn: engine.write(sampling, given, limits, drawn)
    if state.step:
        checkpoint.unpack(state.tensors, model, optimizer)
        source.unpack(state.tensors)
    model.train(plan.dropout)
    micro = memory.MicroBatch.resumed(plan.micro_batch, plan.batch_rows, state.history, group.size)
    learner = _Learner(model, optimizer, source, teacher, plan, seed, vocabulary, precision, held_out, micro, group)
    sizes = partial(memory.sizes, model, plan.batch_rows, blocks.length, vocabulary)
    for index in range(state.step, plan.steps):
        with memory.explained("a training step", sizes):
            record, state.kept = learner.step(objective, Step(index, plan.steps, state.kept), state.history)
        state.history.append(record)
        on_step(record)
        failpoints.hit("step")
        code = group.first(should_stop())
        if code or (index + 1) % plan.checkpoint_steps == 0 or index + 1 == plan.steps:
            state.step, state.tensors = index + 1, checkpoint.pack(model, optimizer) | source.pack()
            if group.rank == 0:
                checkpoint.save(folder, state)
        if code:
            raise Interrupted(f"stopped after step {index + 1}; saved", code)
    optimizer.zero_grad(set_to_none=True)  # the examination needs the room
    model.eval()
    return state.history


@dataclass
class _Learner:
    """What a step works with."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    source: TextSource
    teacher: Teacher | None
    plan: Plan
    seed: int
    vocabulary: int
    precision: str
    held_out: Blocks | None
    micro: memory.MicroBatch
    group: Alone

    def step(self, objective: Objective, at: Step, history: list[dict[str, Any]]) -> tuple[dict[str, Any], dict]:
        """Take one optimiser step; return its record, and what the objective keeps for the next."""
        now, plan = objective.at(at), self.plan
        rate = learning_rate(plan, at.index)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with part("data"):
            text = self.source.text(at.index, now.trajectories)
        with part("teacher states"):
            batch = self.batch(text, now, at.index)
        found = self.micro.fit(lambda rows: self._gradient(now, batch, at.index, rows), lambda: self._sizes(batch))
        with part("optimiser"):
            norm = clip(self.model, plan.clip)
        if not (math.isfinite(found.total) and math.isfinite(norm)):
            what = f"loss {found.total}, gradient norm {norm}: not finite"
            raise Diverged(at.index + 1, what, history[-1]["loss"] if history else None, history)
        with part("optimiser"):
            self.optimizer.step()
        kept = dict(objective.observe(at, Measured(found.total, found.watched, self._validate)))
        if bad := [name for name, value in kept.items() if not math.isfinite(value)]:
            what = f"the objective's state {bad[0]} = {kept[bad[0]]} is not finite"
            raise Diverged(at.index + 1, what, found.total, history)
        record = {"step": at.index + 1, "loss": found.total}
        record |= {f"loss/{name}": value for name, value in found.terms.items()}
        record |= {f"watch/{name}": value for name, value in found.watched.items() if math.isfinite(value)}
        record |= {f"state/{name}": value for name, value in kept.items()}
        record |= {f"rollout/{name}": value for name, value in text.stats.items()}
        return record | {"grad_norm": norm, "lr": rate} | self.micro.record(), kept

    def _gradient(self, now: Objective, batch: Batch, index: int, rows: int | None) -> Sums:
        """Leave the batch's gradient in the parameters; may be called again with fewer rows."""
        plan = self.plan
        self.optimizer.zero_grad(set_to_none=True)
        with _stream(plan.dropout, self.seed, index, self.group.rank):
            with part("probe"):
                tokens = self._known(now, batch, rows)
            with memory.checkpointed(self.model, plan.gradient_checkpointing, plan.dropout):
                return backward(
                    self.model, now, batch, tokens, rows, self.vocabulary, self.precision, self.group, plan.compile
                )

    def _sizes(self, batch: Batch) -> str:
        return memory.sizes(self.model, *batch.ids.shape, self.vocabulary)

    def batch(self, text: Text, objective: Objective, index: int) -> Batch:
        """Ask the teacher about a step's text: the cache where it knows the rows, else the model, once."""
        device = next(self.model.parameters()).device
        signal = self._signal(text, objective, index) if objective.reads_teacher else None
        ids, mask = text.blocks.ids.long().to(device), text.blocks.mask[:, 1:].to(device)
        places = None if text.blocks.positions is None else text.blocks.positions.to(device)
        noise = derive(self.seed, "noise", index) >> 24
        return self.group.part(Batch(ids, mask, signal, text.sampled.to(device), noise, places))

    def _signal(self, text: Text, objective: Objective, index: int) -> Signal:
        """Return the teacher's signal of the rows that this process reads."""
        assert self.teacher is not None
        known, mine = len(text.rows), self.group.rows(len(text.blocks))
        cached = text.rows[mine.start : min(mine.stop, known)]
        parts = [self.teacher.signal(cached)] if len(cached) else []
        if known and objective.trajectories.rollout is None and index + 1 < self.plan.steps:
            coming = self.source.corpus_rows(index + 1)
            self.teacher.expect(coming[self.group.rows(len(coming))])
        if known < mine.stop:
            parts.append(self.teacher.read(text.blocks.select(torch.arange(max(known, mine.start), mine.stop))))
        return joined(parts)

    @torch.no_grad()
    def _known(self, objective: Objective, batch: Batch, micro_batch: int | None) -> Tokens:
        """Return the batch's tokens with what the objective probes of them: a forward pass, if it probes at all."""
        tokens = batch.tokens()
        if not objective.probes or not len(tokens):
            return tokens
        if not self.source.known:
            probed = self.group.inside(lambda: self._probed(objective, batch, tokens, micro_batch))
            self.source.known = self.group.joined(probed)
        known = {name: values.to(batch.ids.device) for name, values in self.source.known.items()}  # of a checkpoint
        return tokens.knowing(known)

    def _probed(self, objective: Objective, batch: Batch, tokens: Tokens, micro_batch: int | None) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {}
        weight = head(self.model, self.vocabulary)
        for rows, window in batch.cut(micro_batch):
            hidden = batch.hidden(self.model, rows, self.precision)
            probed = fused_probe(objective, hidden, weight, batch.states(window), tokens.part(window))
            for name, values in probed.items():  # nothing where these rows hold no valid token
                found.setdefault(name, []).append(values)
        return {name: torch.cat(values) for name, values in found.items()}

    def _validate(self) -> float:
        held_out = self.held_out
        if held_out is None:
            raise ConfigError("this objective adapts to the loss on held-out text; expected such text, found none")
        training, at_once = self.model.training, forward_rows(self.group.size)
        self.model.eval()
        found = self.group.inside(
            lambda: read_states(self.model, held_out, self.vocabulary, self.precision, torch.float32, at_once)
        )
        self.model.train(training)
        return self.group.first(-float(found.log_prob_target.double().mean()))


def _stream(dropout: bool, seed: int, step: int, rank: int) -> AbstractContextManager[None]:
    """Dropout draws from the global RNG; give it a stream of its own for each step and process."""
    return fenced(derive(seed, "dropout", step), f"step/{rank}" if rank else "step") if dropout else nullcontext()


@dataclass
class Sums:
    """A global batch's loss, its terms, and what is watched, added up over micro-batches."""

    total: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)
    watched: dict[str, float] = field(default_factory=dict)

    def add(self, parts: LossParts) -> None:
        """Add a micro-batch's."""
        self.total += float(parts.total.detach())
        self._add(parts.terms, parts.watched)

    def join(self, other: Sums) -> None:
        """Add another process'."""
        self.total += other.total
        self._add(other.terms, other.watched)

    def _add(self, terms: Mapping[str, Any], watched: Mapping[str, Any]) -> None:
        for mine, theirs in ((self.terms, terms), (self.watched, watched)):
            for name, value in theirs.items():
                mine[name] = mine.get(name, 0.0) + float(value)


def backward(
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    tokens: Tokens,
    micro_batch: int | None,
    vocabulary: int,
    precision: str,
    group: Alone | None = None,
    compiled: bool = False,
) -> Sums:
    """Accumulate the gradient of one global batch, `micro_batch` rows at a time.

    Weights are made once, over the whole batch, so the split changes nothing but the order of additions; neither do
    several processes, whose gradients add up. The sums are of all of them.
    """
    sums, group = Sums(), group or Alone()
    if not len(tokens):
        return sums
    weights = step_weights(objective, tokens)

    def forward(rows: slice, window: slice) -> tuple[Tensor, LossParts]:
        with part("student forward"):
            hidden = batch.hidden(model, rows, precision)
        target, states = weights.tokens.target[window], batch.states(window)
        with part("loss with heads"):
            weight = head(model, vocabulary)
            parts = fused_loss(objective, hidden, weight, states, target, weights, window.start, compiled=compiled)
        return parts.total, parts

    for rows, window in batch.cut(micro_batch):
        loss, parts = group.inside(partial(forward, rows, window))
        with part("student backward"):
            (loss * group.size if group.size > 1 else loss).backward()  # FSDP averages over processes
        sums.add(parts)
    return total(group.everyone(sums))
