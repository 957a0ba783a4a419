"""Tidy scores, checked and turned into one array [cells, items]; and the paired differences of two arms.

A cell here is (objective, student, teacher, seed). An arm that lacks a teacher, a seed or (the ceiling) a student has
null there, and stands beside every value of it that the other arm has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from kdbench.analysis.clusters import codes, grouped
from kdbench.errors import ConfigError, did_you_mean

COLUMNS = ("objective", "student", "teacher", "seed", "task", "item", "score")
Place = tuple[str | None, str | None]  # student, teacher


@dataclass(frozen=True)
class Scores:
    """All scores: `values[row, column]`, NaN where a cell has not answered an item."""

    values: np.ndarray
    columns: dict[str, slice]  # task -> its items
    arms: dict[str, dict[Place, dict[int | None, int]]]  # objective -> (student, teacher) -> seed -> row
    clusters: np.ndarray | None = None  # of each column; None where items do not belong together

    @property
    def in_unit(self) -> bool:
        """Whether all scores lie in 0..1, so that differences read as points (x 100)."""
        return bool(np.nanmin(self.values) >= 0 and np.nanmax(self.values) <= 1)

    def known(self, objective: str, what: str) -> None:
        """Raise a ConfigError when no rows carry this objective."""
        if objective not in self.arms:
            raise ConfigError(f"{what} {objective!r} is not in the scores.{did_you_mean(objective, self.arms)}")

    def rows(self, objective: str, place: Place) -> dict[int | None, int]:
        """Return seed -> row of an arm at a place, falling back on rows without teacher, then without student."""
        arm, (student, teacher) = self.arms[objective], place
        for candidate in ((student, teacher), (student, None), (None, teacher), (None, None)):
            if candidate in arm:
                return arm[candidate]
        return {}

    def places(self, a: str, b: str) -> list[Place]:
        """Return the (student, teacher) pairs where both arms stand, in the order of the scores."""
        found: dict[Place, None] = {}
        for student, teacher in self.arms[a]:
            for other_student, other_teacher in self.arms[b]:
                same_student = student == other_student or None in (student, other_student)
                same_teacher = teacher == other_teacher or None in (teacher, other_teacher)
                if same_student and same_teacher:
                    found[student or other_student, teacher or other_teacher] = None
        return list(found)


@dataclass(frozen=True)
class Paired:
    """Differences objective − baseline at one place: one block [seeds, items] a task."""

    tasks: tuple[str, ...]
    seeds: tuple[int | None, ...]
    columns: tuple[np.ndarray, ...]  # which items, one array a task
    blocks: tuple[np.ndarray, ...]
    places: int = 1
    clusters: tuple[np.ndarray | None, ...] = ()  # of each item, one array a task
    rows: tuple[int, int] = (-1, -1)  # whose scores: equal where two differences share an arm at a place

    @property
    def n_items(self) -> tuple[int, ...]:
        """How many items each task has."""
        return tuple(block.shape[1] for block in self.blocks)

    @property
    def units(self) -> tuple[np.ndarray, ...]:
        """The blocks with clusters, where there are any, in place of items."""
        groups = self.clusters or (None,) * len(self.blocks)
        return tuple(grouped(block, group) for block, group in zip(self.blocks, groups, strict=True))


@dataclass
class Notes:
    """Remarks about the data, each said once with the places it holds for."""

    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, text: str, where: str) -> None:
        """Remember that `text` holds at `where`."""
        self.found[text].append(where)

    def lines(self) -> list[str]:
        """Return one line a remark."""
        return [
            f"{text} ({where[0]}{f' and {len(where) - 1} more' if len(where) > 1 else ''})."
            for text, where in self.found.items()
        ]


def place_name(place: Place) -> str:
    """Return a place in words: `64x2 from 128x4`."""
    student, teacher = place
    return " from ".join(name for name in (student, teacher) if name is not None) or "all students"


def read(frame: pd.DataFrame, tasks: Sequence[str] | None = None) -> Scores:
    """Check tidy scores and pivot them.

    Args:
        frame: columns `objective, student, teacher, seed, task, item, score`, and optionally `item_hash` and `cluster`
            (items of one passage or document carry one value, and count as one draw; null: an item of its own).
        tasks: which tasks to keep, in this order; all, as they appear, by default.

    Raises:
        ConfigError: a column is missing, a score is not a finite number, a key occurs twice, an item's text differs
            between arms, a task is unknown, or nothing is left.
    """
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise ConfigError(f"the scores lack the column {missing[0]!r}; needed: {', '.join(COLUMNS)}")
    if not len(frame):
        raise ConfigError("the scores have no rows; run the suite first")
    for name in ("objective", "task", "item"):
        if frame[name].isna().any():
            raise ConfigError(f"the scores have rows without {name!r}; only teacher, student and seed may be null")
    task_codes, task_names = pd.factorize(frame["task"])
    wanted = list(dict.fromkeys(tasks)) if tasks is not None else list(task_names)
    for name in wanted:
        if name not in set(task_names):
            raise ConfigError(f"task {name!r} is not in the scores.{did_you_mean(name, map(str, task_names))}")
    if not wanted:
        raise ConfigError("tasks= is empty; name at least one task or leave it out")
    if "overall" in wanted:
        raise ConfigError("a task is named 'overall', which is kept for the mean over tasks; rename it")
    rank = np.full(len(task_names), -1)
    for position, name in enumerate(wanted):
        rank[list(task_names).index(name)] = position
    keep = rank[task_codes] >= 0
    position = rank[task_codes]
    if not keep.all():  # a copy of millions of rows is left out where it can be
        frame, position = frame[keep], position[keep]
    item_codes, items = pd.factorize(frame["item"])
    key = position * len(items) + item_codes
    present = np.bincount(key, minlength=len(wanted) * len(items)) > 0
    column = (np.cumsum(present) - 1)[key]
    ends = np.cumsum(present.reshape(len(wanted), len(items)).sum(axis=1))
    columns = {name: slice(int(end - start), int(end)) for name, end, start in _slices(wanted, ends)}
    _same_items(frame, column)
    return _pivot(frame, column, columns, codes(frame, column))


def _slices(names: list[str], ends: np.ndarray) -> list[tuple[str, int, int]]:
    """Return (name, end, width) of consecutive runs."""
    return list(zip(names, ends, np.diff(ends, prepend=0), strict=True))


def _same_items(frame: pd.DataFrame, column: np.ndarray) -> None:
    """Refuse scores where one (task, item) carries two hashes: the arms answered different questions."""
    if "item_hash" not in frame.columns:
        return
    hashes, _ = pd.factorize(frame["item_hash"])  # -1: no hash, as of scores that came from elsewhere
    first = np.full(int(column.max()) + 1, -1, dtype=hashes.dtype)
    first[column[hashes >= 0]] = hashes[hashes >= 0]
    if (differ := np.flatnonzero((hashes >= 0) & (first[column] != hashes))).size:
        row = frame.iloc[differ[0]]
        raise ConfigError(
            f"item {row['item']!r} of task {row['task']!r} has another item_hash for {row['objective']!r} than for "
            f"another arm ({differ.size:,} such rows): they were not asked the same questions. Evaluate all arms with "
            f"one version of the task"
        )


def _pivot(frame: pd.DataFrame, column: np.ndarray, columns: dict[str, slice], clusters: np.ndarray | None) -> Scores:
    """Return the array of scores and the index of its rows."""
    try:
        score = frame["score"].to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError):
        raise ConfigError(f"score must be a number; found the type {frame['score'].dtype}") from None
    if not (finite := np.isfinite(score)).all():
        row = frame.iloc[int(np.argmin(finite))]
        raise ConfigError(
            f"{np.count_nonzero(~finite):,} scores are NaN or infinite, first: objective {row['objective']!r}, "
            f"task {row['task']!r}, item {row['item']!r}. Drop the failed cell or evaluate it again"
        )
    code = np.zeros(len(frame), dtype=np.int64)
    for name in COLUMNS[:4]:
        codes, levels = pd.factorize(frame[name])
        code = code * (len(levels) + 1) + codes + 1
    cell, cells = pd.factorize(code)
    width = int(column.max()) + 1
    flat = cell * width + column
    if (counts := np.bincount(flat, minlength=len(cells) * width)).max() > 1:
        row = frame.iloc[int(np.argmax(counts[flat] > 1))]
        where = ", ".join(f"{name} {row[name]!r}" for name in COLUMNS[:-1])
        raise ConfigError(f"{np.count_nonzero(counts > 1):,} keys occur more than once, first: {where}")
    values = np.full(len(cells) * width, np.nan)
    values[flat] = score
    heads = frame.iloc[np.unique(cell, return_index=True)[1]][list(COLUMNS[:4])]
    return Scores(values.reshape(len(cells), width), columns, _arms(heads), clusters)


def _arms(heads: pd.DataFrame) -> dict[str, dict[Place, dict[int | None, int]]]:
    """Return the index of rows: objective -> (student, teacher) -> seed -> row."""
    arms: dict[str, dict[Place, dict[int | None, int]]] = {}
    for row, (objective, *rest) in enumerate(heads.itertuples(index=False)):
        student, teacher, seed = (None if pd.isna(value) else value for value in rest)
        seeds = arms.setdefault(str(objective), {}).setdefault((student, teacher), {})
        seeds[None if seed is None else int(seed)] = row
        if None in seeds and len(seeds) > 1:
            raise ConfigError(
                f"objective {objective!r} at {place_name((student, teacher))} has rows with and without a seed"
            )
    return arms


def pair(scores: Scores, a: str, b: str, place: Place, notes: Notes) -> Paired | None:
    """Return the differences a − b on the seeds and items that both have, or None where they share nothing."""
    rows_a, rows_b = scores.rows(a, place), scores.rows(b, place)
    where = f"{a} against {b}, {place_name(place)}"
    if None in rows_a or None in rows_b:
        seeds = list(rows_b if None in rows_a else rows_a)
    else:
        seeds = [seed for seed in rows_a if seed in rows_b]
        if alone := sorted(map(str, set(rows_a) ^ set(rows_b))):
            notes.add(f"seeds on one side only were left out: {', '.join(alone)}", where)
    seeds.sort(key=lambda seed: (seed is not None, seed or 0))
    if not seeds:
        notes.add("no common seed, so no comparison", where)
        return None
    left = scores.values[[rows_a.get(seed, rows_a.get(None, -1)) for seed in seeds]]
    right = scores.values[[rows_b.get(seed, rows_b.get(None, -1)) for seed in seeds]]
    found = _common(scores, seeds, left, right, notes, where)
    return found and replace(found, rows=(min(rows_a.values()), min(rows_b.values())))


def _common(
    scores: Scores, seeds: list, left: np.ndarray, right: np.ndarray, notes: Notes, where: str
) -> Paired | None:
    """Keep tasks that both arms have, seeds that have all of these tasks, and items that all of these seeds have."""
    difference = left - right
    both, either = ~np.isnan(difference), ~(np.isnan(left) & np.isnan(right))
    tasks = [task for task, part in scores.columns.items() if both[:, part].any()]
    if absent := [task for task, part in scores.columns.items() if task not in tasks and either[:, part].any()]:
        notes.add(f"tasks on one side only were left out: {', '.join(absent)}", where)
    whole = np.array([all(row[scores.columns[task]].any() for task in tasks) for row in both])
    if not tasks or not whole.any():
        notes.add("no common item, so no comparison", where)
        return None
    if not whole.all():
        lost = [str(seed) for seed, kept in zip(seeds, whole, strict=True) if not kept]
        notes.add(f"seeds that lack a task were left out: {', '.join(lost)}", where)
    kept = both[whole].all(axis=0)
    if dropped := sum(int((either[:, scores.columns[t]].any(axis=0) & ~kept[scores.columns[t]]).sum()) for t in tasks):
        notes.add(f"{dropped:,} items that some seed or side lacks were left out", where)
    columns = [np.flatnonzero(kept[scores.columns[task]]) + scores.columns[task].start for task in tasks]
    if not all(len(part) for part in columns):
        notes.add("a task has no item that all seeds share, so no comparison", where)
        return None
    blocks = tuple(difference[np.ix_(whole, part)] for part in columns)
    groups = tuple(None if scores.clusters is None else scores.clusters[part] for part in columns)
    return Paired(tuple(tasks), tuple(np.array(seeds, dtype=object)[whole]), tuple(columns), blocks, clusters=groups)


def pool(parts: Sequence[Paired], notes: Notes, where: str) -> Paired | None:
    """Return the mean of the differences over places, seed by seed and item by item, on what all places share.

    Averaging first keeps what the places have in common (the baseline's rows, the items, the seeds) from being counted
    as independent evidence. Places weigh the same.
    """
    seeds = [seed for seed in parts[0].seeds if all(seed in part.seeds for part in parts)]
    blocks, columns, clusters = [], [], []
    tasks = [task for task in parts[0].tasks if all(task in part.tasks for part in parts)]
    for task in tasks:
        at = [part.tasks.index(task) for part in parts]
        common = parts[0].columns[at[0]]
        for part, index in zip(parts[1:], at[1:], strict=True):
            common = np.intersect1d(common, part.columns[index], assume_unique=True)
        total = np.zeros((len(seeds), len(common)))
        for part, index in zip(parts, at, strict=True):
            rows = np.array([part.seeds.index(seed) for seed in seeds], dtype=int)
            total += part.blocks[index][np.ix_(rows, np.searchsorted(part.columns[index], common))]
        blocks.append(total / len(parts))
        columns.append(common)
        group = parts[0].clusters[at[0]] if parts[0].clusters else None
        clusters.append(None if group is None else group[np.searchsorted(parts[0].columns[at[0]], common)])
    if not seeds or not tasks or not all(len(common) for common in columns):
        notes.add("the pairs share no seed or no item, so they were not pooled", where)
        return None
    if any(len(part.seeds) > len(seeds) or len(part.tasks) > len(tasks) for part in parts):
        notes.add("the pooled row uses only seeds and tasks that all pairs share", where)
    return Paired(tuple(tasks), tuple(seeds), tuple(columns), tuple(blocks), len(parts), tuple(clusters))
