"""`kdbench plan SUITE --power`: from the variance that was seen, or a prior, to what a suite can find."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdbench.analysis import power
from kdbench.analysis.results import item_scores, open_suite
from kdbench.analysis.verdict import OVERALL, compare
from kdbench.errors import ConfigError
from kdbench.suite import exam_items
from kdbench.suite.matrix import needs_teacher
from kdbench.suite.schema import Suite

# Means over the six contrasts of suites/quickstart.yaml (OPT 64x2 from 96x3 and 128x4, 3 seeds, 700 items a task).
PRIOR = {"seed": 4e-5, "overall_seed": 2e-5, "item": 0.033, "residual": 0.069}
PRIOR_WORDS = (
    "a prior: the quickstart's variance (minimal pairs scored 0 or 1, OPT 64x2, three seeds). Other models and tasks "
    "differ; run two or three seeds first and ask again"
)


def foresee(
    suite: Suite, results_dir: Path, margin: float | None, seeds: str | None, items: str | None
) -> dict[str, Any]:
    """Return what the suite can find, as plain data. Writes nothing, and is no look at the results.

    Args:
        margin: the difference that matters, in units of score; default: the suite's.
        seeds, items: comma-separated numbers to try; default: the suite's seeds, and the items that there are.

    Raises:
        ConfigError: a number is no number, or out of range.
    """
    margin = suite.compare.margin if margin is None else margin
    if not (margin > 0 and math.isfinite(margin)):
        raise ConfigError(f"--margin: expected a difference above 0 in units of score, found {margin}")
    known = _components(suite, results_dir)
    wanted = _numbers(seeds, "--seeds", 2) or [len(suite.seeds)]
    sizes = _numbers(items, "--items", 2) or [None]
    family = _family(suite)
    rows = [
        {"seeds": count, "items": size, "task": task, **_row(design, margin)}
        for size in sizes
        for count in wanted
        for task, design in _designs(suite, known, count, size, family).items()
    ]
    return {
        "suite": suite.name, "alpha": suite.compare.alpha, "margin": margin, "family": family,
        "wanted_power": power.WANTED, "source": known["source"], "prior": known["prior"],
        "assumed_items": {} if items else {task: known["tasks"][task]["items"] for task in known["assumed"]},
        "components": known["tasks"] | {OVERALL: {"seed": known["overall"]}}, "rows": rows,
        "needed": [{"items": size} | _needed(suite, known, size, max(wanted), family, margin) for size in sizes],
    }  # fmt: skip


def _numbers(text: str | None, option: str, least: int) -> list[int]:
    if text is None:
        return []
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option}: expected whole numbers such as 3,6,10, found {text!r}") from None
    if min(found) < least or max(found) > 10_000_000:
        raise ConfigError(f"{option}: expected numbers from {least} on, found {text!r}")
    return found


def _family(suite: Suite) -> int:
    """Return how many overall rows the suite's comparison will have: contrasts x places."""
    taught = {entry["label"]: needs_teacher(entry["spec"]) for entry in suite.objectives}
    named = suite.compare.contrasts or [(n, suite.compare.baseline) for n in taught if n != suite.compare.baseline]
    pairs = sum(max(1, len(suite.teachers_of(student))) for student in suite.students)
    places = [pairs if taught.get(a, True) or taught.get(b, True) else len(suite.students) for a, b in named]
    return max(1, sum(places))


def _components(suite: Suite, results_dir: Path) -> dict[str, Any]:
    """Return variance components by task, the seed variance of the overall mean, and where they come from."""
    found = _seen(suite, results_dir)
    if found is None:
        each = {name: PRIOR[name] for name in ("seed", "item", "residual")}
        items = {task: exam_items.planned(suite.examine, suite.examine.items, task) for task in suite.compare.tasks}
        tasks = {task: each | {"items": count} for task, (count, _) in items.items()}
        assumed = [task for task, (_, known) in items.items() if not known]
        return {
            "tasks": tasks, "overall": PRIOR["overall_seed"], "source": PRIOR_WORDS, "prior": True, "assumed": assumed,
        }  # fmt: skip
    means = found.groupby("task")[["seed", "item", "residual", "n_units"]].mean()
    tasks = {
        str(task): {name: max(0.0, float(row[name])) for name in ("seed", "item", "residual")}
        | {"items": int(row["n_units"])}
        for task, row in means.drop(index=OVERALL).iterrows()
    }
    overall = found[found.task == OVERALL]
    source = (
        f"what has been run of this suite: {len(overall)} contrasts with {int(overall.n_seeds.max())} seeds, averaged"
    )
    seed = max(0.0, float(overall.seed.mean()))
    return {"tasks": tasks, "overall": seed, "source": source, "prior": False, "assumed": []}


def _seen(suite: Suite, results_dir: Path) -> pd.DataFrame | None:
    """Return the variance of the suite's own contrasts, or None where no two seeds of any have been run."""
    try:
        scores = item_scores(open_suite(results_dir, suite.name), "acc")
        arms = set(scores["objective"])
        named = [pair for pair in suite.compare.contrasts if set(pair) <= arms]
        about = {"contrasts": named} if named else {"baseline": suite.compare.baseline}
        found = compare(scores, **about, tasks=suite.compare.tasks).variance
    except ConfigError:
        return None
    found = found[(found.student != "all") & (found.n_seeds > 1)]
    return found if set(found.task) >= {*suite.compare.tasks, OVERALL} else None


def _designs(
    suite: Suite, known: dict[str, Any], seeds: int, items: int | None, family: int
) -> dict[str, power.Design]:
    """Return a design a task, and that of the overall mean."""
    given = np.array([suite.compare.weights.get(task, 1.0) for task in known["tasks"]])
    weights, designs = given / given.sum(), {}
    for task, one in known["tasks"].items():
        count = items or one["items"]
        designs[task] = power.Design(
            seeds,
            one["seed"],
            one["item"] / count,
            one["residual"] / count,
            count - 1.0,
            family,
            suite.compare.alpha,
            borrows=False,
        )
    parts = list(designs.values())
    item, residual = (
        sum(w * w * getattr(part, name) for w, part in zip(weights, parts, strict=True))
        for name in ("item", "residual")
    )
    freedom = sum(part.df_items for part in parts)
    designs[OVERALL] = replace(
        parts[0], seed=known["overall"], item=float(item), residual=float(residual), df_items=freedom, borrows=True
    )
    return designs


def _row(design: power.Design, margin: float) -> dict[str, float]:
    return {
        "detectable": power.detectable(design),
        "power_at_margin": power.power(design, margin),
        "equivalence_power": power.equivalence_power(design, margin),
    }


def _needed(
    suite: Suite, known: dict[str, Any], items: int | None, seeds: int, family: int, margin: float
) -> dict[str, Any]:
    """Return what the overall row needs to tell the margin from 0, and to show equivalence within it.

    For each of both the seeds that do with these items, and how many times as many items do with `seeds` seeds.
    """
    tests: dict[str, Callable[[power.Design], float]] = {
        "difference": lambda design: power.power(design, margin),
        "equivalence": lambda design: power.equivalence_power(design, margin),
    }

    def overall(count: int) -> power.Design:
        return _designs(suite, known, count, items, family)[OVERALL]

    def need(test: Callable[[power.Design], float]) -> dict[str, Any]:
        return {
            "seeds": power.seeds_for(lambda count: test(overall(count)) >= power.WANTED),
            "times_items": power.items_for(overall(seeds), lambda design: test(design) >= power.WANTED),
            "at_seeds": seeds,
        }

    return {name: need(test) for name, test in tests.items()}


def _points(margin: float) -> str:
    return f"{100 * margin:g} {'point' if margin == 0.01 else 'points'}"


def show(found: dict[str, Any]) -> None:
    """Print the answer for a person."""
    from rich.table import Table

    from kdbench.console import stdout_console

    console = stdout_console()
    margin = _points(found["margin"])
    table = Table(title=f"What {found['suite']} can find", title_justify="left", box=None, padding=(0, 1))
    for name in ("seeds", "items a task"):
        table.add_column(name, justify="right")
    table.add_column("task")
    for name in ("detectable", f"finds {margin}", f"shows ±{margin}"):
        table.add_column(name, justify="right")
    for row in found["rows"]:
        size = row["items"] or found["components"][row["task"]].get("items", "")
        table.add_row(
            str(row["seeds"]), f"{size:,}" if size else "", row["task"], f"{100 * row['detectable']:.1f} points",
            f"{100 * row['power_at_margin']:.0f} %", f"{100 * row['equivalence_power']:.0f} %",
        )  # fmt: skip
    console.print(table)
    for sentence in sentences(found):
        console.print(sentence, highlight=False, markup=False)


def sentences(found: dict[str, Any]) -> list[str]:
    """Return the answer in words."""
    margin, wanted = _points(found["margin"]), f"{100 * found['wanted_power']:.0f} %"
    said = [
        f"Detectable: the true difference that is found with {wanted} power at alpha {found['alpha']:g}, p adjusted "
        f"for a family of {found['family']}. Shows: the power to call two equal objectives equivalent.",
        f"Variance from {found['source']}.",
    ]
    if found["assumed_items"]:
        names = " and ".join(f"{task} ({count:,})" for task, count in found["assumed_items"].items())
        said.append(
            f"Assumed: the items of {names}, whose number is known only with the data; say it by `items:` beside the "
            "task, or try numbers with --items."
        )
    for one in found["needed"]:
        where = f" with {one['items']:,} items a task" if one["items"] else ""
        said.append(f"To tell {margin} from 0{where}, overall, {_in_words(one['difference'])}.")
        equal = _in_words(one["equivalence"])
        said.append(f"To show that two objectives differ by less than {margin}{where}, {equal}.")
    return said


def _in_words(need: dict[str, Any]) -> str:
    seeds, times, at = need["seeds"], need["times_items"], need["at_seeds"]
    by_seeds = f"it takes about {seeds:,} seeds" if seeds else "more seeds alone are not enough"
    if times is None:
        return f"{by_seeds}; with {at} seeds, more items alone are not enough"
    return by_seeds if times <= 1 else f"{by_seeds}; with {at} seeds, {times:.1f} times as many items would do"
