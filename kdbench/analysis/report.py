"""The report of one suite: a page that needs nothing but itself, the same in Markdown, its pictures and its numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.analysis import export, methods, words
from kdbench.analysis.advice import advice
from kdbench.analysis.page import PAGE
from kdbench.analysis.section import Context, Section
from kdbench.analysis.sections import build
from kdbench.files import atomic_write, write_json

if TYPE_CHECKING:
    import pandas as pd

    from kdbench.analysis.verdict import Comparison

FILES = ("report.html", "report.md", "forest.svg", "forest.png")
FOLDER = "report"  # the other pictures, and the numbers
LONG = 24  # rows; a longer table is folded


def write(
    folder: Path,
    comparison: Comparison,
    *,
    suite: Mapping[str, str],
    facts: Mapping[str, str],
    cells: Sequence[Mapping[str, Any]],
    history: pd.DataFrame | None,
    **more: Any,
) -> dict[str, Path]:
    """Write the report and return its files by their path in `folder`.

    These are report.html, report.md, forest.svg and forest.png, and in report/ every other picture as SVG and PNG, and
    comparison.csv and comparison.json.

    Args:
        folder: made if it is missing.
        suite: `name`, `question`, `description`.
        facts: machine, versions, protocol and so on, as they should be read; `tuning` replaces the sentence that says
            objectives were not tuned.
        cells: `key, objective, student, teacher, seed, status, loss, seconds, model` of every cell, failed ones too,
            and its `metrics`, of which the intrinsic ones are shown.
        history: `objective, step, loss` for the training curves, or None.
        more: the other fields of `sections.Context`.

    Raises:
        StoreError: the folder cannot be written.
    """
    known = Context(comparison, facts, cells, history, **more)
    sections = build(known)
    paths = {name: folder / name for name in FILES}
    pictures = {section.name: _drawn(folder, section, paths) for section in sections if section.draw}
    numbers = {name: folder / FOLDER / name for name in ("comparison.csv", "comparison.json")}
    atomic_write(numbers["comparison.csv"], export.csv(comparison))
    write_json(numbers["comparison.json"], export.document(comparison))
    answer = advice(comparison, tuned=bool(facts.get("tuning")), elsewhere=known.elsewhere)
    atomic_write(paths["report.html"], _html(known, suite, answer, sections, pictures))
    atomic_write(paths["report.md"], _markdown(known, suite, answer, sections))
    return paths | {f"{FOLDER}/{name}": path for name, path in numbers.items()}


def _drawn(folder: Path, section: Section, paths: dict[str, Path]) -> str:
    """Draw a section's picture as SVG and PNG, enter them into `paths`, and return the SVG."""
    assert section.draw is not None
    place = "" if f"{section.name}.svg" in FILES else f"{FOLDER}/"
    section.draw(folder / place / section.name)
    paths |= {f"{place}{section.name}.{kind}": folder / place / f"{section.name}.{kind}" for kind in ("svg", "png")}
    return (folder / place / f"{section.name}.svg").read_text(encoding="utf-8")


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
    known: Context, suite: Mapping[str, str], answer: Sequence[str], sections: Sequence[Section],
    pictures: Mapping[str, str],
) -> str:  # fmt: skip
    """Return the page. Everything but our own SVG goes through autoescape."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    drawn = {s.name: Markup(inline(pictures[s.name], s.name, s.says)) for s in sections if s.name in pictures}  # noqa: S704
    widths = {name: _width(svg) for name, svg in pictures.items()}
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(PAGE).render(
        suite={"question": "", "description": "", **suite}, answer=answer, summary=words.summary(known.comparison),
        sections=sections, pictures=drawn, widths=widths, verdicts=words.WORDS, long=LONG, facts=known.facts,
        method=methods.paragraphs(known.comparison, known.facts), notes=known.comparison.notes,
    )  # fmt: skip


def _width(svg: str) -> int:
    """Return an SVG's own width in CSS pixels, in which its letters have the size they were drawn for."""
    found = re.search(r'<svg[^>]* width="([\d.]+)pt"', svg)
    return round(float(found.group(1)) * 96 / 72) if found else 960


def _markdown(known: Context, suite: Mapping[str, str], answer: Sequence[str], sections: Sequence[Section]) -> str:
    """Return the report as Markdown."""
    text = words.escape_markdown
    lines = [f"# {text(suite['name'])}", "", f"**{text(' '.join(answer))}**\n"]
    lines += [f"{text(suite[name])}\n" for name in ("question", "description") if suite.get(name)]
    lines += [f"- {text(sentence)}" for sentence in words.summary(known.comparison)]
    for section in sections:
        lines += ["", f"## {text(section.title)}", "", *(f"{text(sentence)}\n" for sentence in section.text)]
        if section.draw:
            name = f"{section.name}.png"
            lines += [f"![{section.says}]({name if name in FILES else f'{FOLDER}/{name}'})", ""]
        for title, head, rows in section.tables:
            lines += [*([f"### {text(title)}", ""] if title else []), *words.markdown_table(head, rows), ""]
        if section.verbatim:
            lines += ["```", section.verbatim.replace("```", "'''"), "```", ""]
    lines += ["", "## Method", ""]
    lines += [f"{text(part)}\n" for part in methods.paragraphs(known.comparison, known.facts)]
    if known.comparison.notes:
        lines += ["## Notes", "", *(f"- {text(note)}" for note in known.comparison.notes), ""]
    lines += ["## Facts", "", *(f"- {text(name)}: {text(str(value))}" for name, value in known.facts.items()), ""]
    return "\n".join(lines)
