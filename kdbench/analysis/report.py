"""The report of one suite: a page that needs nothing but itself, the same in Markdown, and the forest plot alone."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.analysis import plots, words
from kdbench.analysis.page import PAGE
from kdbench.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd

    from kdbench.analysis.verdict import Comparison

INTRINSIC = {  # metric in the store → head of its column
    "nats_per_token": "held-out nats/token",
    "kl_to_teacher": "KL to teacher",
    "reverse_kl_to_teacher": "reverse KL to teacher",
    "top1_agreement": "top-1 agreement",
}
FILES = ("report.html", "report.md", "forest.svg", "forest.png")
NAMES = ("objective", "student", "teacher", "seed", "status", "loss")
CELL_COLUMNS = (*NAMES, *INTRINSIC.values(), "seconds", "key", "model")
UNTUNED = "Objectives were not tuned: one learning rate and one set of hyper-parameters served all of them"
Table = tuple[str, Sequence[str], list[list[str]]]  # title, head, rows


def write(
    folder: Path,
    comparison: Comparison,
    *,
    suite: Mapping[str, str],
    facts: Mapping[str, str],
    cells: Sequence[Mapping[str, Any]],
    history: pd.DataFrame | None,
) -> dict[str, Path]:
    """Write report.html, report.md, forest.svg and forest.png, and return their paths by name.

    Args:
        folder: made if it is missing.
        suite: `name`, `question`, `description`.
        facts: machine, versions, protocol and so on, as they should be read; `tuning` replaces the sentence that says
            objectives were not tuned.
        cells: `key, objective, student, teacher, seed, status, loss, seconds, model` of every cell, failed ones too,
            and its `metrics`, of which the intrinsic ones are shown.
        history: `objective, step, loss` for the training curves, or None.

    Raises:
        StoreError: the folder cannot be written.
    """
    paths = {name: folder / name for name in FILES}
    plots.forest(comparison, paths["forest.svg"])
    plots.forest(comparison, paths["forest.png"])
    pictures = {"forest": paths["forest.svg"].read_text(encoding="utf-8"), **_pictures(comparison, history)}
    tables = words.sections(comparison)
    method = paragraphs(comparison, facts)
    listed = ("Cells", CELL_COLUMNS, [[_cell(name, _fact(cell, name)) for name in CELL_COLUMNS] for cell in cells])
    atomic_write(paths["report.html"], _html(comparison, suite, facts, tables, listed, method, pictures))
    atomic_write(paths["report.md"], _markdown(comparison, suite, facts, tables, listed, method))
    return paths


def paragraphs(comparison: Comparison, facts: Mapping[str, str]) -> list[str]:
    """Return how the verdict was reached, in sentences."""
    table = comparison.table[comparison.table.task == words.OVERALL]
    tasks = [name for name in dict.fromkeys(comparison.table.task) if name != words.OVERALL]
    unit = "points" if comparison.points else "units of score"
    seeds, items = _span(table.n_seeds), _span(table.n_items)
    family = f"{len(table)} overall {'row' if len(table) == 1 else 'rows'}"
    contrasts = ", ".join(f"{a} against {b}" for a, b in comparison.contrasts)
    return [
        f"Contrasts: {contrasts}. Tasks: {', '.join(tasks)}; {seeds} seeds and {items} items in a row. "
        f"Within a seed every objective has the same initial student, the same batches in the same order and the same "
        f"items, so differences are paired.",
        f"Method: {comparison.method}",
        f"The confirmatory family has {family}, tested at {comparison.alpha:g}. Differences within "
        f"±{words.number(comparison, comparison.margin)} {unit} count as equivalent.",
        f"{facts.get('tuning', UNTUNED).rstrip('.')}.",
        "Gap recovered is (score − floor) / (ceiling − floor): the floor is the untouched student, the ceiling "
        "its teacher.",
    ]


def _span(values: Any) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _fact(cell: Mapping[str, Any], name: str) -> Any:
    for metric, head in INTRINSIC.items():
        if name == head:
            return cell.get("metrics", {}).get(metric)
    return cell.get(name)


def _cell(name: str, value: Any) -> str:
    """Return one fact of a cell as text."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if name == "loss" or name in INTRINSIC.values():
        return f"{value:.4f}"
    if name == "seconds":
        return f"{value:,.1f}"
    return str(value)[:12] if name == "key" else str(value)


def _pictures(comparison: Comparison, history: pd.DataFrame | None) -> dict[str, str]:
    """Return the other pictures as SVG: scores against the teacher, and training curves where there is a history."""
    drawn: dict[str, Callable[[Path], None]] = {}
    if comparison.means.teacher.notna().any():
        drawn["scaling"] = lambda path: plots.scaling(comparison.means, path, points=comparison.points)
    if history is not None and len(history):
        drawn["curves"] = lambda path: plots.curves(history, path)
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, draw in drawn.items():
            path = Path(folder) / f"{name}.svg"
            draw(path)
            out[name] = path.read_text(encoding="utf-8")
    return out


def inline(svg: str, name: str, label: str) -> str:
    """Return an SVG file as an element of a page: no prolog, ids of its own, a label for those who cannot see it."""
    from markupsafe import escape

    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :])  # HTML knows them
    metadata, end = svg.find("<metadata>"), svg.find("</metadata>")
    if metadata >= 0:  # matplotlib's licence block, which names addresses
        svg = svg[:metadata] + svg[end + len("</metadata>") :]
    for mark in ('id="', 'href="#', "url(#"):  # two pictures on one page must not share ids
        svg = svg.replace(mark, f"{mark}{name}-")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def _html(
    comparison: Comparison, suite: Mapping[str, str], facts: Mapping[str, str], tables: Sequence[Table], cells: Table,
    method: Sequence[str], pictures: Mapping[str, str],
) -> str:  # fmt: skip
    """Return the page. Everything but our own SVG goes through autoescape."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    labels = {
        "forest": "Differences with intervals", "scaling": "Score against teacher",
        "curves": "Training loss against step: each settles or not; different objectives are different functions",
    }  # fmt: skip
    drawn = {name: (labels[name], Markup(inline(svg, name, labels[name]))) for name, svg in pictures.items()}  # noqa: S704
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(PAGE).render(
        suite={"question": "", "description": "", **suite}, answer=words.summary(comparison), pictures=drawn,
        tables=[*tables, cells], verdicts=words.WORDS, method=method, notes=comparison.notes, facts=facts,
    )  # fmt: skip


def _markdown(
    comparison: Comparison, suite: Mapping[str, str], facts: Mapping[str, str], tables: Sequence[Table], cells: Table,
    method: Sequence[str],
) -> str:  # fmt: skip
    """Return the report as Markdown."""
    text = words.escape_markdown
    lines = [f"# {text(suite['name'])}", ""]
    lines += [f"**{text(answer)}**\n" for answer in words.summary(comparison)]
    lines += [f"{text(suite[name])}\n" for name in ("question", "description") if suite.get(name)]
    lines += ["![Differences with intervals](forest.png)", ""]
    for title, head, rows in [*tables, cells]:
        lines += [f"## {text(title)}", "", *words.markdown_table(head, rows), ""]
    lines += ["## Method", "", *(f"{text(part)}\n" for part in method)]
    if comparison.notes:
        lines += ["## Notes", "", *(f"- {text(note)}" for note in comparison.notes), ""]
    lines += ["## Facts", "", *(f"- {text(name)}: {text(str(value))}" for name, value in facts.items()), ""]
    return "\n".join(lines)
