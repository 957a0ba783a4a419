"""Whose text a student learns from, as an objective declares it; `distill` makes it so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Sampling:
    """How text is generated after a prompt.

    Attributes:
        by: `student`; `teacher`; `mixed`: each token from teacher_share · p + (1 − teacher_share) · q (MiniLLM);
            `interleaved`: the student proposes, and the teacher resamples what is not among its `accepted` likeliest
            tokens (speculative KD).
        greedy: the likeliest token instead of a draw.
        beams: width of a beam search; 1 is none.
    """

    by: Literal["student", "teacher", "mixed", "interleaved"] = "student"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False
    beams: int = 1
    teacher_share: float = 0.0
    accepted: int = 25


@dataclass(frozen=True)
class Trajectories:
    """Whose text is learnt from.

    Attributes:
        fixed: text that exists before training: the `corpus`, or what the `teacher` wrote after the corpus' prompts.
        decoding: how the teacher wrote it.
        rollout: how text is generated while training; None: it never is.
        chance: that a global batch is generated instead of fixed; drawn once for the whole batch.
        adapts: whether that chance changes while training.
        paired: every batch holds both, half and half, after the same prompts.
        reuse: optimiser steps that one generated batch serves.
        replay: rows that a buffer of earlier rollouts holds; 0: no buffer.
        fresh: share of the generated batches that are made anew; the others come from the buffer.
    """

    fixed: Literal["corpus", "teacher"] = "corpus"
    decoding: Sampling = Sampling(by="teacher")
    rollout: Sampling | None = None
    chance: float = 1.0
    adapts: bool = False
    paired: bool = False
    reuse: int = 1
    replay: int = 0
    fresh: float = 1.0

    @property
    def reads_fixed(self) -> bool:
        """Whether some batches, now or later, hold text that exists before training."""
        return self.rollout is None or self.paired or self.adapts or self.chance < 1

    def __str__(self) -> str:
        fixed = {"corpus": "corpus", "teacher": "teacher text"}[self.fixed]
        if self.rollout is None:
            return fixed
        names = {"student": "student text", "teacher": "teacher text"}
        names |= {"mixed": "teacher-mixed student text", "interleaved": "interleaved text"}
        made = names[self.rollout.by]
        if self.paired:
            return f"{fixed} and {made}"
        return made if not self.reads_fixed else f"{fixed} or {made}"


CORPUS = Trajectories()
