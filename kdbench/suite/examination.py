"""Tasks of an examination that exist elsewhere: lm-eval's own, or those of a folder beside the suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, model_validator

from kdbench.errors import did_you_mean
from kdbench.suite.judging import Judge
from kdbench.suite.part import NAME, Part


class LmEvalTask(Part):
    """One lm-eval task, group or tag; its items count alike, whichever subtask they are of."""

    task: str = Field(pattern=NAME, description="its name in lm-eval, such as piqa, mmlu, bbh_fewshot")
    path: str | None = Field(
        None,
        min_length=1,
        description="folder of lm-eval task files, relative to the suite file; they may run code, so name only folders "
        "that you trust. Their own relative paths start in this folder. Default: the tasks that come with lm-eval",
    )
    shots: int | None = Field(None, ge=0, le=100, description="solved examples before a question; default: the task's")
    limit: int | None = Field(None, gt=0, description="score only so many items, of each subtask; default: all")
    items: int | None = Field(
        None, gt=0, description="items that are scored, for `plan` alone; default: what is known of lm-eval's own tasks"
    )
    metric: str | None = Field(None, description="the score to compare by, from 0 to 1; default: the task's first")
    judge: Judge | None = Field(
        None,
        description="a model that holds each written answer against the task's reference; arms are compared by it",
    )
    chat: bool = Field(False, description="ask through the tokenizer's chat template, as `template: chat` trains")

    @property
    def on_hub(self) -> bool:
        """Whether its items, or its judge, come from the Hugging Face Hub."""
        return self.path is None or (self.judge is not None and self.judge.hub is not None)


def names(examine: Mapping[str, Any]) -> list[str]:
    """Return the names of all tasks of an `examine:` section given as plain data."""
    return [*examine["tasks"], *(entry["task"] for entry in examine.get("lm_eval", ()))]


class WithLmEval(Part):
    """What `examine:` says of tasks from elsewhere."""

    tasks: tuple[str, ...]
    lm_eval: tuple[LmEvalTask, ...] = Field((), description="lm-eval tasks, examined in the same memory")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tasks."""
        return (*self.tasks, *(entry.task for entry in self.lm_eval))

    @model_validator(mode="after")
    def _names_differ(self) -> WithLmEval:
        if not self.names:
            raise ValueError("expected a task in `tasks` or `lm_eval`, found none")
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise ValueError(f"the task {twice[0]!r} stands twice; scores are told apart by the task's name")
        return self


def problems(compared: Sequence[str], examined: WithLmEval, own: Sequence[str], tuned: bool) -> list[str]:
    """Return a sentence for everything in `compare.tasks` that is not examined or may not be used so.

    Args:
        own: the names of all tasks that kdbench makes from text.
        tuned: whether the suite chooses settings by trials.
    """
    known = {*own, *examined.names}
    found = [
        f"compare.tasks: unknown task {name!r}.{did_you_mean(name, known)}" for name in compared if name not in known
    ]
    absent = [name for name in compared if name in known and name not in examined.names]
    if absent:
        found.append(f"compare.tasks: {absent} are not examined; examine.tasks has {list(examined.names)}")
    if not compared:
        found.append(f"compare.tasks: expected a task to compare by, found none; examine has {list(examined.names)}")
    elsewhere = [entry.task for entry in examined.lm_eval if entry.task in compared]
    if tuned and elsewhere:
        found.append(
            f"tune: chooses by tasks made from the dev split, and compare.tasks names {elsewhere} of lm-eval, whose "
            "items may not choose what they judge; leave out `tune` or these tasks"
        )
    return found
