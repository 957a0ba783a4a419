"""Examines a model in memory on tasks that exist elsewhere: lm-eval's own, or those of a trusted folder.

lm-eval builds the prompts, generates or scores, and judges; kdbench keeps a score an item. Task files may run code
(`!function`), so a folder is read only where the suite names it, and all its files are part of a result's key.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import ConfigError, KdbenchError, did_you_mean
from kdbench.evaluate import harness
from kdbench.files import digest, sha256_file
from kdbench.seeding import fenced

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SHOT_SEED = 1234  # by which lm-eval's command line draws the solved examples
LEFT_OUT = ("__pycache__",)


@dataclass(frozen=True)
class Wanted:
    """A task to be examined; `folder` holds its files, None: those that come with lm-eval. Else as in `examine:`."""

    task: str
    folder: Path | None = None
    shots: int | None = None
    limit: int | None = None
    metric: str | None = None
    chat: bool = False

    @property
    def where(self) -> str:
        """What errors call it."""
        return f"examine.lm_eval: task {self.task!r}"


def folder_fingerprint(folder: Path) -> str:
    """Return a sha256 over all files of a task folder, by relative name.

    Raises:
        ConfigError: when it is no folder or holds no task file.
    """
    if not list(folder.rglob("*.yaml")):
        raise ConfigError(f"examine.lm_eval: expected a folder of lm-eval task files (.yaml), found none at {folder}")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not {*path.parts} & {*LEFT_OUT}]
    return digest({str(path.relative_to(folder)): sha256_file(path) for path in paths})


def check(wanted: Sequence[Wanted]) -> None:
    """Build every task once, its data included, so that what is missing is said before any work starts.

    Raises:
        ConfigError: no such task, its files are wrong, or its data cannot be loaded.
    """
    with harness._quiet(), fenced(0, "tasks"):
        for one in wanted:
            _tasks(one)


def examine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    wanted: Sequence[Wanted],
    *,
    batch_size: int,
    seed: int = 0,
) -> harness.Examination:
    """Score `model`, on the device where it is; print nothing; leave RNGs, training mode and tokenizer as they were.

    Returns:
        metrics: `<task>/<metric>` for every score that has a value an item, and `<task>/score`, the one to compare by.
            Where a task filters answers in several ways, a metric is named `<metric>.<filter>`.
        items: as those of `harness.examine`, a dict an item and metric, with `primary`: whether it is that one. `item`
            counts through the subtasks of a group.

    Raises:
        ConfigError: as for `check`; the metric is unknown, has no value an item, or not from 0 to 1; or a prompt with
            its answer is longer than the model can read.
        KdbenchError: when the model's log-likelihoods are not finite.
    """
    training = [module for module in model.modules() if module.training]
    pad_token = tokenizer.pad_token
    metrics: dict[str, float] = {}
    items: list[dict[str, Any]] = []
    try:
        for one in wanted:
            with harness._quiet(), fenced(seed, "examine"):
                lm = harness._language_model()(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
                found = _evaluate(lm, one)
            rows = _scored(one, found)
            items += rows
            metrics |= _means(one, rows)
    finally:
        harness._put_back(model, training, tokenizer, pad_token)
    return harness.Examination(metrics, items)


def _evaluate(lm: Any, one: Wanted) -> Mapping[str, list[Mapping[str, Any]]]:
    """Return lm-eval's samples by subtask."""
    from lm_eval.evaluator import evaluate

    tasks = _tasks(one)
    for task in tasks.values():
        task.set_fewshot_seed(SHOT_SEED)  # or a second model would be shown other examples than the first
    try:
        found = evaluate(
            lm=lm,
            task_dict={"tasks": tasks},
            limit=one.limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=one.chat,
            fewshot_as_multiturn=one.chat,
        )
    except AssertionError as error:  # lm-eval's bare asserts on lengths
        raise ConfigError(
            f"{one.where}: lm-eval cannot ask a model of {lm.max_length} positions ({error or 'an item is longer'}); "
            "give the model more positions, or the task a smaller max_gen_toks or fewer shots"
        ) from error
    for name, task in tasks.items():
        if task.OUTPUT_TYPE in ("multiple_choice", "loglikelihood"):
            harness._check_finite(name, found["samples"][name])
    return {name: found["samples"][name] for name in tasks}


def _tasks(one: Wanted) -> dict[str, Task]:
    return _built(one, None if one.folder is None else folder_fingerprint(one.folder))


@lru_cache(maxsize=64)
def _built(one: Wanted, _fingerprint: str | None) -> dict[str, Task]:
    """Build the tasks once a process for the same files; relative paths in them start in their folder."""
    manager = _manager(one.folder, _fingerprint)
    if one.task not in manager.all_tasks:
        raise ConfigError(f"{one.where}: lm-eval knows none of this name.{did_you_mean(one.task, manager.all_tasks)}")
    try:
        with contextlib.chdir(one.folder) if one.folder else contextlib.nullcontext():
            tasks = manager.load(one.task)["tasks"]
    except Exception as error:  # task files run code and load data of any origin
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{one.where} cannot be built: {reason:.300} (its data may be on the Hub: is the network there?)"
        ) from error
    for name, task in tasks.items():
        own = task.get_config("num_fewshot")
        if one.shots and own == 0:
            raise ConfigError(
                f"{one.where}: {name} is a task without solved examples, so `shots` must be 0 or left out"
            )
        if one.shots is not None or own is None:
            task.set_config(key="num_fewshot", value=one.shots or 0)
    return tasks


@lru_cache(maxsize=8)
def _manager(folder: Path | None, _fingerprint: str | None) -> TaskManager:
    """Index the task files: of a folder at once; those of lm-eval, thousands, in a quarter of a minute."""
    from lm_eval.tasks import TaskManager

    return TaskManager() if folder is None else TaskManager(include_path=folder, include_defaults=False)


def _scored(one: Wanted, found: Mapping[str, list[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return a row for every item and every metric that gives each item a number."""
    rows: list[dict[str, Any]] = []
    for number, sample in enumerate(_by_item(found)):
        for part in sample:
            metrics = {name: part[name] for name in part["metrics"] if _is_number(part[name])}
            suffix = "" if len(sample) == 1 else f".{part['filter']}"  # a comma is no part of MLflow's names
            rows += [
                {
                    "task": one.task, "metric": name + suffix, "item": number, "score": float(value),
                    "item_hash": _item_hash(part),
                }
                for name, value in metrics.items()
            ]  # fmt: skip
    primary = _primary(one, rows)
    return [row | {"primary": row["metric"] == primary} for row in rows]


def _by_item(found: Mapping[str, list[Mapping[str, Any]]]) -> list[list[Mapping[str, Any]]]:
    """Return the samples of each item, one for each of the task's filters, subtask by subtask."""
    items: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for name, samples in found.items():
        for sample in samples:
            items.setdefault((name, sample["doc_id"]), []).append(sample)
    return list(items.values())


def _item_hash(sample: Mapping[str, Any]) -> str:
    """Return a hash of what was asked: document, prompt with its solved examples, and target."""
    hashes = "".join(sample[part] for part in ("doc_hash", "prompt_hash", "target_hash"))
    return hashlib.sha256(hashes.encode()).hexdigest()[:16]


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) or getattr(value, "shape", None) == ()


def _primary(one: Wanted, rows: Sequence[Mapping[str, Any]]) -> str:
    known = list(dict.fromkeys(row["metric"] for row in rows))
    chosen = one.metric or (known[0] if known else "")
    if chosen not in known:
        raise ConfigError(
            f"{one.where}: expected a metric with a number for each item, found {one.metric or 'none'!r}."
            f"{did_you_mean(chosen, known)}"
        )
    scores = [row["score"] for row in rows if row["metric"] == chosen]
    if not all(map(math.isfinite, scores)):
        raise KdbenchError(f"{one.where}: expected finite scores of {chosen}, found others")
    if not 0 <= min(scores) <= max(scores) <= 1:
        raise ConfigError(
            f"{one.where}: expected scores from 0 to 1, of which more is better, to compare by; found {chosen} from "
            f"{min(scores):g} to {max(scores):g}; choose another `metric:` among {known}"
        )
    return chosen


def _means(one: Wanted, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean of every metric over the items, those of subtasks weighing alike."""
    sums: dict[str, list[float]] = {}
    for row in rows:
        for name in (row["metric"], "score") if row["primary"] else (row["metric"],):
            sums.setdefault(f"{one.task}/{name}", []).append(row["score"])
    return {name: sum(values) / len(values) for name, values in sums.items() if all(map(math.isfinite, values))}
