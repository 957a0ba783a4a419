"""Tasks from elsewhere, some of whose answers a judge compares with the task's own reference.

A judged task gets a score an item like any other, `judge`, by which arms are compared; the task's own metrics are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.distill.records import Record
from kdbench.distill.templates import said
from kdbench.errors import ConfigError
from kdbench.evaluate import harness, lm_eval_tasks
from kdbench.evaluate import judge as judging
from kdbench.evaluate.judge import Judge, Judgement, Pair
from kdbench.evaluate.lm_eval_tasks import Wanted
from kdbench.seeding import fenced

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

FILE = "judged.parquet"
Samples = Mapping[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Asked:
    """A task, and who judges its answers; None: its own metrics do."""

    task: Wanted
    judge: Judge | None = None


def check(asked: Sequence[Asked]) -> None:
    """Build every task and look at every judge, so that what is missing is said before any work starts.

    Raises:
        ConfigError: as for `lm_eval_tasks.check` and `judge.check`, or a judged task has no written answers.
    """
    lm_eval_tasks.check([one.task for one in asked])
    for one in asked:
        if one.judge is not None:
            _check_written(one.task)
            judging.check(one.judge)


def _check_written(task: Wanted) -> None:
    for name, built in lm_eval_tasks._tasks(task).items():
        if built.OUTPUT_TYPE != "generate_until":
            raise ConfigError(
                f"{task.where}: judge: expected a task whose answers are written (generate_until), found {name}, which "
                f"is {built.OUTPUT_TYPE}; leave out `judge`"
            )


def examine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    asked: Sequence[Asked],
    *,
    batch_size: int,
    seed: int = 0,
) -> tuple[harness.Examination, list[dict[str, Any]]]:
    """Score `model` as `lm_eval_tasks.examine` does; the judge is loaded on the same device.

    Returns:
        The examination. Of a judged task it has, beside the task's own, `judge` (0, 0.5 or 1, the primary score),
            `judge_flip` (1: the verdict changed with the order) and `judge_cut` (1: the texts were cut).
        A row for every judged item: `task`, `item`, `question`, `answer`, `reference`, `as_a`, `as_b`.

    Raises:
        ConfigError, KdbenchError: as `lm_eval_tasks.examine` and `judge.judge_all`.
    """
    plain = [one.task for one in asked if one.judge is None]
    found = lm_eval_tasks.examine(model, tokenizer, plain, batch_size=batch_size, seed=seed)
    metrics, items, told = dict(found.metrics), list(found.items), []
    for one in asked:
        if one.judge is not None:
            samples = _samples(model, tokenizer, one.task, batch_size, seed)
            told += _judged(one.task, one.judge, samples, str(model.device), batch_size)
            rows = lm_eval_tasks._scored(one.task, samples)
            items += rows
            metrics |= lm_eval_tasks._means(one.task, rows)
    return harness.Examination(metrics, items), told


def _samples(model: Any, tokenizer: Any, task: Wanted, batch_size: int, seed: int) -> Samples:
    """Return lm-eval's samples by subtask, the written answers among them."""
    _check_written(task)
    training = [module for module in model.modules() if module.training]
    pad_token = tokenizer.pad_token
    try:
        with harness._quiet(), fenced(seed, "examine"):
            lm = harness._language_model()(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
            return lm_eval_tasks._evaluate(lm, task)
    finally:
        harness._put_back(model, training, tokenizer, pad_token)


def _judged(task: Wanted, judge: Judge, samples: Samples, device: str, batch_size: int) -> list[dict[str, Any]]:
    """Put the judge's scores before the samples' own; return a row for every item."""
    items = lm_eval_tasks._by_item(samples)
    if any(len(parts) > 1 for parts in items):
        raise ConfigError(f"{task.where}: judge: expected one filter of the answers, found several")
    alone = [parts[0] for parts in items]
    pairs = [_pair(task, sample) for sample in alone]
    found = judging.judge_all(judge, pairs, device=device, batch_size=batch_size)
    rows = []
    for number, (sample, pair, one) in enumerate(zip(alone, pairs, found, strict=True)):
        scores = _scores(one)
        sample |= scores
        sample["metrics"] = [*scores, *sample["metrics"]]
        texts = {"question": pair.question, "answer": pair.answer, "reference": pair.reference}
        rows.append({"task": task.task, "item": number} | texts | {"as_a": one.as_a, "as_b": one.as_b})
    return rows


def _scores(one: Judgement) -> dict[str, float]:
    return {"judge": one.score, "judge_flip": float(one.flipped), "judge_cut": float(one.cut)}


def _pair(task: Wanted, sample: Mapping[str, Any]) -> Pair:
    """Return what is judged: the record's own words where it has some, else the whole prompt; the first reference."""
    target = sample["target"]
    reference = target[0] if isinstance(target, list | tuple) and target else target
    if not isinstance(reference, str) or not reference.strip():
        raise ConfigError(
            f"{task.where}: judge: expected a reference answer in words for every item, found {reference!r:.40} for "
            f"item {sample['doc_id']}"
        )
    doc = sample["doc"]
    if isinstance(doc.get("instruction"), str):
        question = said(Record(doc["instruction"].strip(), (doc.get("input") or "").strip(), ""))
    else:
        question = sample["arguments"][0][0]
    return Pair(question, str(sample["resps"][0][0]).strip(), reference.strip())
