"""The table of cells: what became of each, what it cost, where its student and its run in MLflow are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kdbench.analysis.section import Context, Section

INTRINSIC = {  # metric in the store → head of its column
    "nats_per_token": "held-out nats/token",
    "kl_to_teacher": "KL to teacher",
    "reverse_kl_to_teacher": "reverse KL to teacher",
    "top1_agreement": "top-1 agreement",
}
NAMES = ("objective", "student", "teacher", "seed", "status", "loss")
COLUMNS = (*NAMES, *INTRINSIC.values(), "seconds", "key", "model")
RUN, SHOWN = "MLflow run", 12


def cells(known: Context) -> Section | None:
    """Every cell, failed ones too, with a link to the files of its run in MLflow where the mirror knows it."""
    if not known.cells:
        return None
    columns = (*COLUMNS, RUN) if known.runs else COLUMNS
    rows, links = [], {}
    for cell in known.cells:
        run = known.runs.get(cell.get("key", ""))
        name = run.run_id[:SHOWN] if run else "–"
        if run and run.folder:
            links[name] = run.folder
        rows.append([*(_text(head, _fact(cell, head)) for head in COLUMNS), *([name] if known.runs else [])])
    text = ["Models lie inside the results folder."]
    if known.runs:
        experiment = next(iter(known.runs.values())).experiment_id
        text += [
            "A run's link opens its files on this disk. With `kdbench ui` running, MLflow shows it at "
            f"127.0.0.1:5000/#/experiments/{experiment}/runs/ followed by the run's whole id, the folder's name."
        ]
    return Section("cells", "Cells", text, tables=[("", columns, rows)], links=links)


def _fact(cell: Mapping[str, Any], name: str) -> Any:
    for metric, head in INTRINSIC.items():
        if name == head:
            return cell.get("metrics", {}).get(metric)
    return cell.get(name)


def _text(name: str, value: Any) -> str:
    """Return one fact of a cell as text."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if name == "loss" or name in INTRINSIC.values():
        return f"{value:.4f}"
    if name == "seconds":
        return f"{value:,.1f}"
    return str(value)[:SHOWN] if name == "key" else str(value)
