"""Compare a suite as it asks, and see to it that its report says so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.analysis import equal_time, mirror, report
from kdbench.analysis.answer import answer
from kdbench.analysis.results import SuiteResults, history, item_scores, open_suite
from kdbench.files import SUM, atomic_write, digest
from kdbench.run import plans, reports
from kdbench.run.tuning_words import in_words as tuning_in_words

if TYPE_CHECKING:
    import pandas as pd

    from kdbench.analysis.verdict import Comparison


def conclude(results_dir: Path, suite: str) -> tuple[Comparison, dict[str, Path]]:
    """Compare as the suite asks and return the comparison with the files of a report that says so.

    The report stands if it was made from the same plan and cells; otherwise it is written.

    Raises:
        ConfigError: no results.
        StoreError: the report cannot be written.
    """
    results = open_suite(results_dir, suite)
    runs = mirror.runs(results.store, results.folder)
    if standing := reports.standing(results.folder, _source(results, runs)):
        return answer(results, None, None, "acc"), standing
    return _write_own(results)


def write_report(results_dir: Path, suite: str | None, keep: Path | None = None) -> tuple[Comparison, dict[str, Path]]:
    """Compare as the suite asks and write its report; return both.

    Args:
        keep: a folder that is made, for the report with item scores and plan, instead of the suite's own: all that
            somebody else needs to check the verdict, and no weights.

    Raises:
        ConfigError: no results.
        StoreError: the report cannot be written.
    """
    results = open_suite(results_dir, suite)
    if keep is None:
        return _write_own(results)
    found, written = _write(results, keep, {})
    return found, written | _sources(item_scores(results, "acc"), results.plan, keep)


def _write_own(results: SuiteResults) -> tuple[Comparison, dict[str, Path]]:
    """Write the report in the suite's own folder, and vouch for it."""
    with reports.alone(results.folder):
        if plans.read(results.folder / plans.FILE) != results.plan:  # another run asks otherwise by now
            results = open_suite(results.store.root, results.name)
        runs = mirror.runs(results.store, results.folder)
        reports.withdraw(results.folder)
        found, written = _write(results, results.folder, runs)
        reports.vouch(results.folder, _source(results, runs), written.values())
    return found, written


def _source(results: SuiteResults, runs: dict[str, mirror.MirroredRun]) -> str:
    """Return a digest of all that a report is made from."""
    cells = [
        (cell["key"], cell["status"], cell.get("done", {}).get(SUM), runs.get(cell["key"])) for cell in results.cells
    ]
    return digest([results.plan, cells])


def _write(
    results: SuiteResults, folder: Path, runs: dict[str, mirror.MirroredRun]
) -> tuple[Comparison, dict[str, Path]]:
    scores, plan = item_scores(results, "acc"), results.plan
    found = answer(results, None, None, "acc", lambda _, metric: scores)
    return found, report.write(
        folder,
        found,
        suite={"name": plan["suite"]["name"], "question": plan["suite"]["question"], "description": ""},
        facts=_facts(plan),
        cells=[_row(cell, results.store.root) for cell in results.cells],
        history=equal_time.apart(history(results), plan),
        scores=equal_time.apart(scores, plan),
        sizes=sizes(results),
        plan=plan,
        results=results,
        runs=runs,
    )


def _sources(scores: pd.DataFrame, plan: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Write what a report was made from, and return it by name."""
    columns = ("objective", "student", "teacher", "task", "item")
    raw = scores.astype(dict.fromkeys(columns, "category")).to_parquet(index=False, compression="zstd")
    written = {name: folder / name for name in ("scores.parquet", "plan.json")}
    atomic_write(written["scores.parquet"], raw)
    plans.write(written["plan.json"], plan)
    return written


def _facts(plan: dict[str, Any]) -> dict[str, str]:
    environment = plan["environment"]
    facts = {
        "seeds": ", ".join(map(str, plan["suite"]["seeds"])),
        "protocol": environment["protocol"],
        "versions": ", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
        "device": f"{environment['device']}, {environment['precision']}, {environment['threads']} thread(s) a worker",
        "overrides": " ".join(plan["overrides"]) or "none",
    }
    if plan["suite"].get("arms"):
        facts["trained elsewhere"] = ", ".join(arm["external"]["label"] for arm in plan["suite"]["arms"])
    tuned = tuning_in_words(plan)
    return facts | {"tuning": tuned} if tuned else facts


def sizes(results: SuiteResults) -> dict[str, int]:
    """Return model → parameters, as far as the store knows them."""
    found: dict[str, int] = {}
    for cell in results.plan["cells"]:
        for role in ("student", "teacher"):
            name, key = cell[role], cell["inputs"].get(role)
            if name and name not in found and isinstance(key, str) and key.isalnum():
                done = results.store.entry("models", key).done()
                found |= {name: int(done["parameters"])} if done and done.get("parameters") else {}
    return found


def _row(cell: dict[str, Any], root: Path) -> dict[str, Any]:
    """Return what the report's sections may know of a cell; its model's path is inside the results folder `root`."""
    model = Path(cell["model"]).relative_to(root) if "model" in cell else ""
    done, timing = cell.get("done", {}), cell.get("timing", {})
    row = {
        "key": cell["key"],
        "objective": cell["arm"],
        "student": cell["student"],
        "teacher": cell["teacher"],
        "seed": cell["seed"],
        "status": cell["status"] + (", trained elsewhere" if cell.get("elsewhere") else ""),
        "loss": done.get("final_loss"),
        "seconds": timing.get("wall_s"),
        "train_s": timing.get("train_s"),
        "model": str(model),
        "timing": timing,
        "done": done,
    }
    return row | {"metrics": cell.get("metrics", {})}
