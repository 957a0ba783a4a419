"""Find one examined cell among the results, by key, by name or by choice, and read what its examination left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.analysis.results import read_items, read_metrics
from kdbench.errors import ConfigError, StoreError, did_you_mean
from kdbench.evaluate import token_scores
from kdbench.files import read_json, read_records
from kdbench.run import plans
from kdbench.run.store import INPUTS, Store
from kdbench.suite.matrix import CEILING, split_labels, title

if TYPE_CHECKING:
    import pandas

CHOICES = {"objective": "arm", "student": "student", "teacher": "teacher", "seed": "seed", "suite": "suite"}
SHOWN = 8


@dataclass(frozen=True)
class Checkpoint:
    """One cell whose examination is in the store and whole.

    Attributes:
        suite: the suite that names it now; empty where none does any more.
        named: `arm`, `student`, `teacher`, `seed`; None where there is none.
    """

    store: Store
    key: str
    suite: str
    named: dict[str, Any]
    inputs: dict[str, Any] = field(repr=False)
    metrics: dict[str, float] = field(repr=False)

    @property
    def title(self) -> str:
        """`atkd · opt-64x2 ← opt-128x4 · seed 2`."""
        return title(self.named["arm"], self.named["student"], self.named["teacher"], self.named["seed"])

    @property
    def teacher(self) -> str | None:
        """The key of its teacher's model; None for an arm that has none. A ceiling is its own."""
        return self.inputs.get("teacher")

    @property
    def text(self) -> tuple[str, str]:
        """Which held-out text it was examined on: the tokenised text's key, and the split."""
        return self.inputs["text"], self.inputs["examine"].get("split", "test")

    @cached_property
    def items(self) -> pandas.DataFrame:
        """Its item scores: `task`, `metric`, `item`, `score`, `item_hash`; of an lm-eval task the primary ones."""
        found = read_items(self.store.entry("cells", self.key).path)
        return found if "primary" not in found else found[found["primary"].ne(False)].drop(columns="primary")

    @cached_property
    def tokens(self) -> pandas.DataFrame | None:
        """Its token scores; None if it was examined before they were kept. A ceiling's teacher is itself."""
        found = token_scores.read(self.store.entry("cells", self.key).path)
        if found is not None and self.inputs["arm"] == CEILING:
            return found.assign(teacher_log_prob=found.log_prob, teacher_entropy=found.entropy)
        return found

    @cached_property
    def last_step(self) -> dict[str, float]:
        """What the last step of its training logged; empty where nothing was trained."""
        path = self.store.entry("cells", self.key).path / "metrics.jsonl"
        records = read_records(path) if path.is_file() else []
        return records[-1] if records else {}


def find(store: Store, asked: str) -> Checkpoint:
    """Return the one examined cell that is asked for.

    Args:
        asked: the beginning of a key, `objective/student/teacher/seed` without what the cell has not, or a choice
            such as `objective=kl,seed=0`, in which `suite=` may stand too.

    Raises:
        ConfigError: none or several fit, or the cell has no examination; it names some that would do.
        StoreError: its files are damaged.
    """
    known = _planned(store)
    found = _matching(known, asked) or _unplanned(store, known, asked)
    keys = list(dict.fromkeys(cell["key"] for cell in found))
    if len(keys) != 1:
        raise ConfigError(_unclear(store, known, asked, found))
    return _read(store, found[0], asked)


def _planned(store: Store) -> list[dict[str, Any]]:
    """Every cell that a suite names now, the suite planned last first."""
    paths = sorted(store.root.glob("suites/*/plan.json"), key=lambda path: -path.stat().st_mtime)
    cells = [cell | {"suite": path.parent.name} for path in paths for cell in plans.read(path)["cells"]]
    if not cells:
        raise ConfigError(f"no results in {store.root}: expected suites/<name>/plan.json; run a suite first")
    return cells


def _unplanned(store: Store, known: list[dict[str, Any]], asked: str) -> list[dict[str, Any]]:
    """Cells that no suite names any more, such as those of settings that were changed since; by key alone."""
    planned = {cell["key"] for cell in known}
    paths = store.root.glob(f"cells/{asked}*/{INPUTS}") if asked.isalnum() else []
    try:
        return [_from_inputs(path, known) for path in paths if path.parent.name not in planned]
    except (AttributeError, KeyError, TypeError) as error:
        raise StoreError(f"cell {asked!r}: its {INPUTS} is damaged ({error!r}); run its suite again") from None


def _from_inputs(path: Path, known: list[dict[str, Any]]) -> dict[str, Any]:
    """Name a cell by what it was asked, as the suites' cells that share its model or objective are named."""
    inputs = read_json(path)

    def name(role: str, called: str) -> str | None:
        alike = (cell[called] for cell in known if cell["inputs"].get(role) == inputs.get(role))
        return next(alike, None) if inputs.get(role) else None

    found = {role: name(role, role) or (inputs.get(role) or "")[:8] or None for role in ("student", "teacher")}
    arm = name("objective", "arm") or inputs.get("objective", {}).get("name", inputs["arm"])
    return {"key": path.parent.name, "inputs": inputs, "suite": "", "arm": arm, "seed": inputs["seed"], **found}


def _matching(known: list[dict[str, Any]], asked: str) -> list[dict[str, Any]]:
    if "=" in asked.partition("(")[0]:
        wanted = {CHOICES[name]: value for name, value in _choices(asked).items()}
        return [cell for cell in known if all(cell[k] is None or str(cell[k]) == v for k, v in wanted.items())]
    return [cell for cell in known if path_of(cell) == asked] or [
        cell for cell in known if asked and cell["key"].startswith(asked)
    ]


def _choices(asked: str) -> dict[str, str]:
    wanted = {}
    for choice in split_labels(asked):
        name, _, value = choice.partition("=")
        if name not in CHOICES:
            raise ConfigError(
                f"{asked}: expected objective=…, student=…, teacher=…, seed=… or suite=…, found {choice!r}."
                f"{did_you_mean(name, CHOICES)}"
            )
        wanted[name] = value
    return wanted


def path_of(cell: Mapping[str, Any]) -> str:
    """Return how a cell is called on the command line: `kl/opt-64x2/opt-128x4/0`, `floor/opt-64x2`."""
    return "/".join(str(cell[name]) for name in ("arm", "student", "teacher", "seed") if cell[name] is not None)


def _unclear(store: Store, known: list[dict[str, Any]], asked: str, found: list[dict[str, Any]]) -> str:
    many = len({cell["suite"] for cell in known}) > 1
    done = [cell for cell in known if store.entry("cells", cell["key"]).done()]
    listed = found or done or known
    some = "; ".join(
        f"{cell['key'][:8]} {path_of(cell)}" + (f" (suite {cell['suite']})" if many and cell["suite"] else "")
        for cell in listed[:SHOWN]
    )
    more = f"; and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    near = did_you_mean(asked, map(path_of, known)) if not found else ""
    return (
        f"cell {asked!r}: expected one cell of {store.root}, found {len(found) or 'none'}."
        f"{near if 'mean' in near else ''} {'These fit' if found else 'There are'}: {some}{more}"
    )


def _read(store: Store, cell: dict[str, Any], asked: str) -> Checkpoint:
    entry = store.entry("cells", cell["key"])
    done = entry.done()
    entry.refuse_later()
    if done is None or done["status"] != "ok":
        state = "is not run yet" if done is None and not entry.path.exists() else f"is {entry.state()}"
        again = f"kdbench run the suite {cell['suite']!r} first" if cell["suite"] else "run its suite first"
        raise ConfigError(f"cell {asked!r}: expected one that was examined, but {path_of(cell)} {state}; {again}")
    entry.verified(*(name for name in done["files"] if "/" not in name))  # the model's weights are not read here
    named = {name: cell[name] for name in ("arm", "student", "teacher", "seed")}
    return Checkpoint(store, cell["key"], cell["suite"], named, cell["inputs"], read_metrics(entry.path))
