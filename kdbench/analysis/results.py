"""Read results back from the store: only what is complete and checksummed is shown."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import ConfigError, StoreError, did_you_mean
from kdbench.files import read_json, read_records, read_table
from kdbench.run import plans
from kdbench.run.clock import train_seconds
from kdbench.run.store import Store
from kdbench.suite.external import ARM, CONTROL, Arm, External
from kdbench.suite.matrix import CEILING

if TYPE_CHECKING:
    import pandas

COLUMNS = ["objective", "student", "teacher", "seed", "task", "item", "score"]
GRADED = "acc"
APART = "of another protocol"  # the status of a cell whose results are no part of the comparison
METRICS = {GRADED: (GRADED, 1.0), "word_log_likelihood": ("word_nll", -1.0)}  # name → (as stored, sign: more is better)


@dataclass(frozen=True)
class SuiteResults:
    """What the store holds of a suite.

    Attributes:
        plan: suite, overrides, environment and cells as last planned.
        cells: one dict a cell: its names, `key`, `status` (`ok`, `diverged`, `failed`, `missing`, `damaged`, or APART),
            `elsewhere` (whether the student was trained elsewhere), and what is known.
    """

    store: Store
    plan: dict[str, Any]
    cells: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The suite's name."""
        return self.plan["suite"]["name"]

    @property
    def folder(self) -> Path:
        """Where the report goes."""
        return self.store.suite_folder(self.name)

    @property
    def seeds(self) -> list[int]:
        """The suite's seeds."""
        return self.plan["suite"]["seeds"]

    @cached_property
    def externals(self) -> dict[str, External]:
        """The arms of students trained elsewhere: label → settings."""
        arms = [Arm.model_validate(arm).external for arm in self.plan["suite"].get("arms", ())]
        return {arm.label: arm for arm in arms}


def open_suite(results_dir: Path | str, suite: str | None = None) -> SuiteResults:
    """Read a suite's results; without a name, the one planned last.

    Raises:
        ConfigError: no such suite in the folder.
        StoreError: its plan is damaged, or it or a cell was written by a later kdbench.
    """
    store = Store(Path(results_dir))
    known = {path.parent.name: path for path in store.root.glob("suites/*/plan.json")}
    if not known:
        raise ConfigError(f"no results in {store.root}: expected suites/<name>/plan.json; run a suite first")
    name = suite or max(known, key=lambda one: known[one].stat().st_mtime)
    if name not in known:
        raise ConfigError(f"no results of suite {name!r} in {store.root}.{did_you_mean(name, known)}")
    plan = plans.read(known[name])
    return SuiteResults(store, plan, [_cell(store, entry, plan["environment"]) for entry in plan["cells"]])


def _cell(store: Store, planned: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    entry = store.entry("cells", planned["key"])
    facts = {name: planned[name] for name in ("arm", "student", "teacher", "seed", "key")}
    facts["elsewhere"] = planned["inputs"]["arm"] == ARM
    if not plans.comparable(planned["inputs"], environment):
        return facts | {"status": APART, "path": entry.path}
    done = entry.done()
    if done is None:
        entry.refuse_later()
        return facts | {"status": "missing", "path": entry.path}
    try:
        scores = [name for name in done["files"] if not name.startswith("model/")]  # a run looks at the weights
        entry.verified(*scores)
        if done["status"] == "ok" and "results.json" not in done["files"]:
            raise StoreError(f"{entry.path}: DONE.json vouches for no results.json")
        metrics = read_metrics(entry.path) if done["status"] == "ok" else {}
    except StoreError as error:
        return facts | {"status": "damaged", "reason": str(error), "path": entry.path}
    if "train_s" in done["timing"]:
        done = done | {"timing": done["timing"] | {"train_s": train_seconds(done)}}
    subject = planned["inputs"].get("student") if planned["arm"] != CEILING else planned["inputs"]["teacher"]
    model = entry.path / "model"
    if not model.is_dir():
        model = store.entry("models", str(subject)).path / "model"
    return facts | {
        "status": done["status"],
        "path": entry.path,
        "model": model,
        "metrics": metrics,
        "timing": done["timing"],
        "done": done,
    }


def read_metrics(folder: Path) -> dict[str, float]:
    """Read a cell's metrics.

    Raises:
        StoreError: they are not there, or are no numbers by name.
    """
    found = read_json(folder / "results.json")
    if not isinstance(found, dict) or not all(isinstance(value, int | float) for value in found.values()):
        raise StoreError(f"cannot read {folder / 'results.json'}: expected numbers by name, found something else")
    return found


def read_items(folder: Path) -> pandas.DataFrame:
    """Read a cell's item scores.

    Raises:
        StoreError: they are not there, or are something else.
    """
    return read_table(folder / "samples.parquet", texts=("task", "metric", "item_hash"), numbers=("score",))


def load_scores(results_dir: Path | str, suite: str | None = None, metric: str = "acc") -> pandas.DataFrame:
    """Return the item scores of a suite as a tidy table, a row an item.

    Columns: `objective` (an arm's label, `floor`, or `ceiling`), `student`, `teacher` (null where none is needed),
    `seed` (null where nothing is drawn), `task`, `item` (id and content hash), `score` (more is better). Of students
    trained elsewhere whose seeds do not correspond to the suite's, `seed` is the suite's seed that they are set
    against: see `kdbench.suite.external.External.stands_beside`.

    Args:
        metric: `acc` (0 or 1 an item) or `word_log_likelihood` (nats per word, negative).

    Raises:
        ConfigError: no such suite or metric, or no cell is complete.
    """
    if metric not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}.{did_you_mean(metric, METRICS)}")
    return item_scores(open_suite(results_dir, suite), metric)


def item_scores(found: SuiteResults, metric: str) -> pandas.DataFrame:
    """Return the item scores of a suite that is open; columns, metrics and errors as for `load_scores`."""
    import pandas

    cells, tables = [], []
    for cell in found.cells:
        if cell["status"] == "ok":
            names = {"objective": cell["arm"], "teacher": cell["teacher"], "seed": _row_seed(found, cell)}
            items = read_items(cell["path"])
            for student in found.plan["suite"]["students"] if cell["arm"] == CEILING else [cell["student"]]:
                cells.append(names | {"student": student})  # a ceiling stands beside every student
                tables.append(items)
    if not cells:
        raise ConfigError(f"suite {found.name!r} has no complete cell in {found.store.root}; run it first")
    stored, sign = METRICS[metric]
    raw = pandas.concat(tables, ignore_index=True)  # once: what is done to each of thousands of tables takes longest
    named = pandas.DataFrame(cells, dtype="object").astype({"seed": "Int64"})
    of = named.index.repeat([len(table) for table in tables])
    wanted = _chosen(raw, stored).to_numpy()
    raw, named = raw[wanted].reset_index(drop=True), named.loc[of[wanted]].reset_index(drop=True)
    named["task"], named["score"] = raw["task"], raw["score"] * sign
    named["item"] = raw["item"].astype(str) + "-" + raw["item_hash"].str.slice(0, 8)
    return named[COLUMNS]


def _row_seed(found: SuiteResults, cell: dict[str, Any]) -> int | None:
    """Return the seed under which a cell's scores are compared."""
    arm = found.externals[cell["arm"]] if cell["elsewhere"] else None
    return arm.stands_beside(cell["seed"], found.seeds) if arm else cell["seed"]


def _chosen(raw: pandas.DataFrame, stored: str) -> pandas.Series:
    """Say which rows a metric is made of; of the scores of an lm-eval task `acc` means its primary one."""
    wanted = raw["metric"] == stored
    if "primary" not in raw:
        return wanted
    elsewhere = raw["primary"].notna()
    return (wanted & ~elsewhere) | ((raw["primary"] == True) & (stored == GRADED))  # noqa: E712  (None is neither)


def external_notes(found: SuiteResults) -> list[str]:
    """Say of the arms trained elsewhere what a comparison with them can and cannot mean."""
    there = {cell["arm"] for cell in found.cells if cell["elsewhere"] and cell["status"] == "ok"}
    arms = {label: arm for label, arm in found.externals.items() if label in there}
    if not arms:
        return []
    about = (
        f"{', '.join(arms)}: {CONTROL}; start, data, budget and tuning may differ, and whether the held-out "
        "text was read is not known here, so a difference is one between these students, not between objectives alone"
    )
    return [about, *(f"{label}: {_seeds_in_words(arm, found.seeds)}" for label, arm in arms.items())]


def _seeds_in_words(arm: External, seeds: list[int]) -> str:
    if not arm.has("seed"):
        return "one model stands beside all seeds; the interval does not know what another training of it would score"
    if arm.seeds_correspond:
        return "paired by seed, since the suite says that its seeds correspond"
    beside = {own: arm.stands_beside(own, seeds) for own in arm.numbers(seeds)}
    pairs = ", ".join(f"{own} against {other}" for own, other in beside.items() if other in seeds)
    return (
        f"its seeds do not correspond to the suite's, so they are set against others, fixed beforehand (its seed "
        f"{pairs}); the interval holds the seed variance of both sides, and nothing is gained by pairing"
    )


def history(results: SuiteResults) -> pandas.DataFrame:
    """Return the training curves: objective, student, teacher, seed, step, loss and its terms."""
    import pandas

    records = []
    for cell in results.cells:
        path = cell["path"] / "metrics.jsonl"
        if cell["status"] == "ok" and path.is_file():
            names = {name: cell[name] for name in ("student", "teacher", "seed")} | {"objective": cell["arm"]}
            records += [names | record for record in read_records(path)]
    return pandas.DataFrame(records)
