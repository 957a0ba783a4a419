"""Read what lm-eval itself writes (`lm_eval … --log_samples --output_path DIR`) into scores that `compare` takes."""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.analysis.results import COLUMNS
from kdbench.errors import ConfigError, StoreError, did_you_mean
from kdbench.files import ordinary, read_json

if TYPE_CHECKING:
    import pandas

Source = str | Path
_STAMPED = re.compile(r"samples_(.+)_(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.jsonl")
_PER_UNIT = ("word_perplexity", "byte_perplexity", "bits_per_byte")  # stored as [log-likelihood, words or bytes]
_HASHES = ("doc_hash", "prompt_hash", "target_hash")
_OWN = "kdbench_"  # before the names of tasks that kdbench writes for lm-eval


@dataclass(frozen=True)
class _Asked:
    """What a call chose, and what could not serve it."""

    metric: str | None
    filter: str | None
    metrics: set[str] = field(default_factory=set)  # seen in any task
    filters: set[str] = field(default_factory=set)
    left_out: list[str] = field(default_factory=list)  # tasks without such a score


def load_lm_eval(
    path: Source | Mapping[str, Source | Mapping[int, Source]],
    *,
    label: str | None = None,
    student: str | None = None,
    teacher: str | None = None,
    seed: int | None = None,
    metric: str | None = None,
    filter: str | None = None,
) -> pandas.DataFrame:
    """Return the item scores that lm-eval logged, as the tidy table that `kdbench.compare` takes, a row an item.

    Columns: `objective`, `student`, `teacher`, `seed`, `task`, `item`, `score` (more is better), `item_hash`. An item
    is named by its doc_id and a hash of document, prompt and target, so that different questions are never paired. Of
    tasks that kdbench wrote for lm-eval, names and items are those of `kdbench.load_scores`, so that the two tables
    go together: `pandas.concat([…], join="inner")`.

    Args:
        path: a `samples_….jsonl`, or a folder with the samples of one model; or label → such a path, or label →
            {seed: path}.
        label, student, teacher, seed: what the rows are named by, where `path` does not say. Default label: the name of
            the folder.
        metric: default: each task's first that is a number an item. `word_perplexity`, `byte_perplexity` and
            `bits_per_byte` become log-likelihood per word or byte, in nats. What is better when it is lower is negated.
        filter: of lm-eval, for the tasks that have several.

    Raises:
        ConfigError: no samples, a damaged line, several models in one folder, an unknown metric or filter, several
            filters and none chosen, or labels that were asked different things.

    Warns:
        UserWarning: where a task was run several times (the newest counts), or has no such score (left out).
    """
    import pandas

    asked = _Asked(metric, filter)
    names = {"student": student, "teacher": teacher}
    frames = [_frame(source, {**names, **own}, asked) for source, own in _sources(path, label, seed)]
    _settle(asked, any(len(frame) for frame in frames))
    found = pandas.concat(frames, ignore_index=True)
    _same_questions(found)
    return found


def _sources(path: Any, label: str | None, seed: int | None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield each path with the names that it brings."""
    if not isinstance(path, Mapping):
        yield Path(path), {"objective": label or _default_label(Path(path)), "seed": seed}
        return
    if label is not None or not path:
        raise ConfigError("load_lm_eval: expected a mapping of labels to folders, or one folder and label=")
    for name, source in path.items():
        if isinstance(source, Mapping) and seed is not None:
            raise ConfigError(f"load_lm_eval: {name!r} names its own seeds, and seed={seed} names another")
        for number, one in source.items() if isinstance(source, Mapping) else [(seed, source)]:
            yield Path(one), {"objective": str(name), "seed": number}


def _default_label(path: Path) -> str:
    return path.resolve().parent.name if path.suffix == ".jsonl" else path.resolve().name


def _frame(source: Path, names: dict[str, Any], asked: _Asked) -> pandas.DataFrame:
    import pandas

    rows = [
        (task.removeprefix(_OWN), *row) for task, path in _files(source).items() for row in _scored(path, task, asked)
    ]
    frame = pandas.DataFrame(rows, columns=["task", "item", "score", "item_hash"])
    for name in ("objective", "student", "teacher"):
        frame[name] = pandas.Series(names[name], frame.index, dtype="object")
    frame["seed"] = pandas.array([names["seed"]] * len(frame), dtype="Int64")
    return frame[[*COLUMNS, "item_hash"]]


def _files(source: Path) -> dict[str, Path]:
    """Return the newest file of samples of each task of one model."""
    if source.is_file():
        found = _STAMPED.fullmatch(source.name)
        return {found[1] if found else source.stem: source}
    files = sorted(path for path in source.rglob("samples_*.jsonl") if _STAMPED.fullmatch(path.name))
    if not files:
        bare = source.is_dir() and any(source.rglob("results_*.json"))
        found = "results without samples: lm_eval needs --log_samples" if bare else "none"
        raise ConfigError(f"expected samples_<task>_<time>.jsonl of lm-eval in {source}, found {found}")
    if len(folders := sorted({str(path.parent) for path in files})) > 1:
        raise ConfigError(
            f"{source} holds samples of {len(folders)} models: {', '.join(folders)}. Give one of these folders, or "
            "label → folder"
        )
    newest: dict[str, Path] = {}
    counts: dict[str, int] = {}
    for path in files:  # sorted by time within a task
        task = _STAMPED.fullmatch(path.name)[1]  # type: ignore[index]
        newest[task], counts[task] = path, counts.get(task, 0) + 1
    if again := [task for task, count in counts.items() if count > 1]:
        text = f"{source}: {', '.join(again)} run several times; the newest counts, such as {newest[again[0]].name}"
        warnings.warn(text, UserWarning, stacklevel=5)
    return newest


def _scored(path: Path, task: str, asked: _Asked) -> list[tuple[str, float, str]]:
    """Return (item, score, item_hash) of every item; none where the task has no such score."""
    rows = list(_lines(path))
    if not rows:
        raise ConfigError(f"{path} is empty: expected a line an item")
    rows = _filtered(rows, path, asked)
    metric = _metric(rows, path, asked)
    if metric is None:
        asked.left_out.append(task)
        return []
    sign = 1.0 if metric in _PER_UNIT or _more_is_better(path, task, metric) else -1.0
    found: dict[Any, tuple[str, float, str]] = {}
    for row in rows:
        score, item = _number(metric, row["scores"].get(metric)), row["doc_id"]
        if score is None or not math.isfinite(score):
            raise ConfigError(f"{path}: {metric} of doc_id {item} is {row['scores'].get(metric)}, expected a number")
        if item in found:
            raise ConfigError(f"{path}: doc_id {item} stands twice; keep the file of one run")
        found[item] = (f"{item}-{row['hash'][:8]}", sign * score, row["hash"])
    return list(found.values())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield of each line what is needed; documents and answers are dropped at once."""
    try:
        with ordinary(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield _line(line, f"{path}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


def _line(line: str, where: str) -> dict[str, Any]:
    try:
        sample = json.loads(line)
        hashes = "".join(sample[name] for name in _HASHES)
        kept = {"doc_id": sample["doc_id"], "filter": str(sample.get("filter", "none"))}
        names = sample["metrics"]
        scores = {str(name): sample[name] for name in names}
    except (ValueError, RecursionError):
        raise ConfigError(f"{where}: expected a JSON object a line, found {line[:40]!r}…; was it cut off?") from None
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{where}: expected a sample as lm-eval 0.4.13 writes it; missing: {error}") from None
    return kept | {"hash": hashlib.sha256(hashes.encode()).hexdigest()[:16], "scores": scores}


def _filtered(rows: list[dict[str, Any]], path: Path, asked: _Asked) -> list[dict[str, Any]]:
    """Keep the rows of one filter."""
    filters = list(dict.fromkeys(row["filter"] for row in rows))
    asked.filters.update(filters)
    if len(filters) == 1:
        return rows
    if asked.filter not in filters:
        hint = did_you_mean(asked.filter, filters) if asked.filter else f" Choose with filter=: {', '.join(filters)}."
        raise ConfigError(f"{path}: expected one filter, found {len(filters)}.{hint}")
    return [row for row in rows if row["filter"] == asked.filter]


def _metric(rows: list[dict[str, Any]], path: Path, asked: _Asked) -> str | None:
    """Return the metric that was asked for, or the first with a number an item; None where the task has none such."""
    names = rows[0]["scores"]
    asked.metrics.update(names)
    if asked.metric is not None:
        return asked.metric if asked.metric in names else None
    plain = (name for name in names if name not in _PER_UNIT)
    return next(
        (name for name in plain if all(_number(name, row["scores"].get(name)) is not None for row in rows)), None
    )


def _number(metric: str, value: Any) -> float | None:
    """Return an item's score; None where the value takes part in one over all items, such as F1's (gold, guess)."""
    if metric in _PER_UNIT and isinstance(value, list) and len(value) == 2 and value[1]:
        return float(value[0]) / float(value[1])
    return float(value) if isinstance(value, bool | int | float) else None


def _more_is_better(path: Path, task: str, metric: str) -> bool:
    """Ask the aggregate file that lm-eval wrote beside the samples."""
    stamp = _STAMPED.fullmatch(path.name)
    try:
        known = read_json(path.with_name(f"results_{stamp[2]}.json")) if stamp else {}
        return known.get("higher_is_better", {}).get(task, {}).get(metric) is not False
    except (StoreError, AttributeError):
        return True


def _settle(asked: _Asked, anything: bool) -> None:
    """Say what was asked for in vain."""
    if asked.filter is not None and asked.filter not in asked.filters:
        raise ConfigError(f"no task has the filter {asked.filter!r}.{did_you_mean(asked.filter, asked.filters)}")
    if not anything:
        hint = did_you_mean(asked.metric, asked.metrics) if asked.metric else f" Known: {', '.join(asked.metrics)}."
        raise ConfigError(f"no task has {asked.metric or 'a metric with a number an item'}.{hint}")
    if asked.left_out:
        what = asked.metric or "a metric with a number an item"
        tasks = ", ".join(dict.fromkeys(asked.left_out))
        warnings.warn(f"left out, for lack of {what}: {tasks}", UserWarning, stacklevel=3)


def _same_questions(found: pandas.DataFrame) -> None:
    """Refuse labels that share a task and not one item of it: they were asked different things."""
    for task, part in found.groupby("task", sort=False):
        items = {label: set(rows["item"]) for label, rows in part.groupby("objective", sort=False)}
        first, *others = items
        for other in others:
            if not items[first] & items[other]:
                raise ConfigError(
                    f"{first!r} and {other!r} share no item of task {task!r}: their documents or prompts differ. Run "
                    "lm_eval on both with the same task version, few-shot examples and chat template"
                )
