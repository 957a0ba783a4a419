"""How the verdict was reached: sentences for the page, and one paragraph to paste into a paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdbench.analysis.labels import count, listed
from kdbench.analysis.words import OVERALL, number, unit
from kdbench.files import digest
from kdbench.suite.external import CONTROL

if TYPE_CHECKING:
    from kdbench.analysis.verdict import Comparison

UNTUNED = "Objectives were not tuned: one learning rate and one set of hyper-parameters served all of them"
PAIRED = (
    "Within a seed every objective has the same initial student, the same batches in the same order and the same "
    "items, so differences are paired."
)


def paragraphs(comparison: Comparison, facts: Mapping[str, str]) -> list[str]:
    """Return how the verdict was reached, in sentences."""
    table = comparison.table[comparison.table.task == OVERALL]
    tasks = [name for name in dict.fromkeys(comparison.table.task) if name != OVERALL]
    seeds, items = _span(table.n_seeds), _span(table.n_items)
    contrasts = ", ".join(f"{a} against {b}" for a, b in comparison.contrasts)
    return [
        f"Contrasts: {contrasts}. Tasks: {', '.join(tasks)}; {seeds} seeds and {items} items in a row. {paired(facts)}",
        f"Method: {comparison.method}",
        f"The confirmatory family has {count(len(table), 'overall row')}, tested at {comparison.alpha:g}. Differences "
        f"within ±{number(comparison, comparison.margin)} {unit(comparison)} count as equivalent.",
        f"{tuning(facts)}.",
        "Gap recovered is (score − floor) / (ceiling − floor): the floor is the untouched student, the ceiling "
        "its teacher.",
    ]


def paired(facts: Mapping[str, str]) -> str:
    """Return what every objective has in common within a seed, and who is no part of it."""
    other = facts.get("trained elsewhere")
    return PAIRED + (f" Not so {other}, {CONTROL}: there only the items are the same." if other else "")


def tuning(facts: Mapping[str, str]) -> str:
    """Return how hyper-parameters were chosen, without the last full stop."""
    return (facts.get("tuning") or UNTUNED).rstrip(".")


def _span(values: Any) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def for_a_paper(
    comparison: Comparison, plan: Mapping[str, Any], facts: Mapping[str, str], sizes: Mapping[str, int]
) -> str:
    """Return a paragraph that says what was run and tested, exactly enough to be run again.

    Args:
        plan: a suite's plan.json.
        sizes: model → parameters, of those that are known.
    """
    suite, environment = plan["suite"], plan["environment"]
    train, table = suite["train"], comparison.table[comparison.table.task == OVERALL]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    arms = [one["label"] for one in suite["objectives"]]
    tasks = [name for name in dict.fromkeys(comparison.table.task) if name != OVERALL]
    keys = sorted(cell["key"] for cell in plan["cells"] if cell["key"])
    overrides = f" with {', '.join(plan['overrides'])}" if plan["overrides"] else ""
    return (
        f"We compared {count(len(arms), 'training objective')} ({listed(arms, most=12)}) with kdbench {_version()} "
        f"(protocol {environment['protocol']}; {versions}; {environment['device']}, {environment['precision']}), suite "
        f"{suite['name']}{overrides}. Students: {_models(suite['students'], sizes)}; teachers: "
        f"{_models(suite['teachers'], sizes)}. Each student was trained with AdamW for {train['steps']:,} steps of "
        f"{train['batch_tokens']:,} tokens ({train['schedule']} schedule from a peak learning rate of {train['lr']:g} "
        f"unless tuned, warm-up {train['warmup']:g}, weight decay {train['weight_decay']:g}), "
        f"with seeds {listed([str(seed) for seed in suite['seeds']], most=12)}. {paired(facts)} {tuning(facts)}. "
        f"Scores are the mean over {listed(tasks, most=12)}; a contrast rests on {_span(table.n_seeds)} seeds and "
        f"{_span(table.n_items)} items. Tests: {comparison.method} The family had {count(len(table), 'row')}, at level "
        f"{comparison.alpha:g}; differences within ±{number(comparison, comparison.margin)} {unit(comparison)} count "
        f"as equivalent. The matrix has {count(len(keys), 'cell')}; the sha256 of its sorted keys begins "
        f"{digest(keys)[:16]}."
    )  # fmt: skip


def _version() -> str:
    from importlib import metadata

    return metadata.version("kdbench")


def _models(names: list[str], sizes: Mapping[str, int]) -> str:
    return listed([f"{name} ({sizes[name]:,} parameters)" if sizes.get(name) else name for name in names], most=12)
