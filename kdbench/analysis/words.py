"""A comparison in words: sentences, tables for the terminal, Markdown, JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from kdbench.analysis.verdict import Comparison

OVERALL = "overall"
WORDS = ("better", "worse", "equivalent", "undecided")
FEW_CONTRASTS = 8
COLOURS = {"better": "green", "worse": "red", "equivalent": "cyan", "undecided": "yellow"}


def number(comparison: Comparison, value: float, *, sign: bool = False) -> str:
    """Return a difference or a score in points (scores in 0..1) or in its own units; an en rule for NaN."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{100 * value:.1f}" if comparison.points else f"{value:.3g}"
    text = text.lstrip("-") if float(text) == 0 else text.replace("-", "−")
    return f"+{text}" if sign and value > 0 and float(text) != 0 else text


def p_text(p: float) -> str:
    """Return p as readers of journals expect it: `.012`, `< .001`."""
    if p is None or not math.isfinite(p):
        return "–"
    if p < 0.001:
        return "< .001"
    return "1.0" if p > 0.999 else f"{p:.3f}".removeprefix("0")


def place_text(row: Mapping[str, Any]) -> str:
    """Return `64x2 ← 128x4`, `64x2`, or `all pairs`."""
    if row["student"] == "all" and row["teacher"] == "all":
        return "all pairs"
    return " ← ".join(str(row[name]) for name in ("student", "teacher") if not _null(row[name])) or "all"


def _null(value: Any) -> bool:
    return value is None or bool(pd.isna(value))


def detail(comparison: Comparison, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the details of a row of `table` or `pooled`."""
    for found in comparison.details.to_dict("records"):
        names = ("student", "teacher", "task", "objective", "baseline")
        if all(found[name] == row[name] or (_null(found[name]) and _null(row[name])) for name in names):
            return found
    raise KeyError(f"no such row: {dict(row)}")


def unit(comparison: Comparison) -> str:
    """Return what differences and scores are counted in."""
    return "points" if comparison.points else "units of score"


def sentence(comparison: Comparison, row: Mapping[str, Any]) -> str:
    """Return one row in plain words."""
    a, b, verdict = row["objective"], row["baseline"], row["verdict"]
    where = f"{_where(row)}{'' if row['task'] == OVERALL else ' on ' + str(row['task'])}"
    level = f"{100 * (1 - comparison.alpha):g} %"
    interval = f"{number(comparison, row['ci_low'])} to {number(comparison, row['ci_high'])}"
    sample = f"{row['n_seeds']} {'seed' if row['n_seeds'] == 1 else 'seeds'} × {row['n_items']:,} items"
    p = p_text(row["p_adjusted"])
    p = f"p {p}" if p.startswith("<") else f"p = {p}"
    p = p if row["p_adjusted"] == row["p_value"] else f"adjusted {p}"
    size, kind = number(comparison, abs(row["delta"])), unit(comparison)
    if verdict == "better":
        return f"{a} beats {b} {where} by {size} {kind} ({level} interval {interval}, {p}, {sample})."
    if verdict == "worse":
        about = f"{level} interval of the difference {interval}, {p}, {sample}"
        return f"{a} does worse than {b} {where} by {size} {kind} ({about})."
    delta = number(comparison, row["delta"], sign=True)
    more = detail(comparison, row)
    if verdict == "equivalent":
        inside = f"{number(comparison, more['tost_low'])} to {number(comparison, more['tost_high'])}"
        inside = (
            f"{100 * (1 - 2 * comparison.alpha):g} % interval {inside}, within ±{number(comparison, comparison.margin)}"
        )
        return f"{a} and {b} are equivalent {where}: the difference is {delta} {kind} ({inside}, {sample})."
    told = f"{a} and {b} cannot be told apart {where}: the difference is {delta} {kind}"
    if row["n_seeds"] == 1:
        return f"{told} ({level} interval {interval}, items only, {sample}); one seed cannot decide about an objective."
    return f"{told} ({level} interval {interval}, {p}, {sample}); {_seeds(comparison, more)}."


def _where(row: Mapping[str, Any]) -> str:
    if row["student"] == "all" and row["teacher"] == "all":
        return "over all student-teacher pairs"
    teacher = "" if _null(row["teacher"]) else f" with teacher {row['teacher']}"
    return f"at student {row['student']}{teacher}"


def _seeds(comparison: Comparison, more: Mapping[str, Any]) -> str:
    """Say what would decide an undecided row."""
    from kdbench.analysis.stats import SEEDS_CAP

    needed, mde = more["seeds_needed"], number(comparison, more["mde"])
    if _null(needed):
        return f"more seeds alone would not decide it, more items might (detectable now: {mde} {unit(comparison)})"
    if needed >= SEEDS_CAP:
        return f"more than {SEEDS_CAP:,} seeds would be needed to decide it"
    return f"about {int(needed):,} seeds would decide it (detectable now: {mde} {unit(comparison)})"


def summary(comparison: Comparison) -> list[str]:
    """Return the answer in few sentences: every row up to four, else the pooled rows and counts per contrast.

    Of many contrasts only what was decided gets a sentence of its own.
    """
    rows = comparison.table[comparison.table.task == OVERALL].to_dict("records")
    if len(rows) <= 4:
        return comparison.sentences()
    if len(comparison.contrasts) > FEW_CONTRASTS:
        return _decided(comparison, [*comparison.pooled.to_dict("records"), *rows])
    out = [comparison.sentence(row) for row in comparison.pooled.to_dict("records") if row["task"] == OVERALL]
    for a, b in comparison.contrasts:
        mine = [row for row in rows if (row["objective"], row["baseline"]) == (a, b)]
        counts = [(word, sum(row["verdict"] == word for row in mine)) for word in WORDS]
        found = ", ".join(f"{word} at {n}" for word, n in counts if n)
        if len(mine) > 1:
            out.append(f"{a} against {b}, pair by pair: {found} of {len(mine)}.")
        elif mine:
            out.append(comparison.sentence(mine[0]))
    return out


def _decided(comparison: Comparison, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [row for row in rows if row["task"] == OVERALL]
    decided = [comparison.sentence(row) for row in rows if row["verdict"] != "undecided"]
    left = [row for row in rows if row["verdict"] == "undecided"]
    if not left:
        return decided
    seen = sorted(detail(comparison, row)["mde"] for row in left)
    low, high = number(comparison, seen[0]), number(comparison, seen[-1])
    return [
        *decided,
        f"{len(left)} of {len(rows)} rows are undecided; the differences that they could have shown lie between {low} "
        f"and {high} {unit(comparison)}, and p is adjusted for all {len(comparison.contrasts)} contrasts.",
    ]


HEAD = ("pair", "objective − baseline", "task", "difference", "interval", "p", "verdict", "seeds × items")


def cells_of(comparison: Comparison, rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the texts of HEAD for rows of `table` or `pooled`."""
    return [
        [
            place_text(row), f"{row['objective']} − {row['baseline']}", str(row["task"]),
            number(comparison, row["delta"], sign=True),
            f"{number(comparison, row['ci_low'])} to {number(comparison, row['ci_high'])}",
            p_text(row["p_adjusted"]), row["verdict"], f"{row['n_seeds']} × {row['n_items']:,}",
        ]
        for row in rows
    ]  # fmt: skip


def gap_text(gap: float) -> str:
    """Return the share of the gap between floor and ceiling, in per cent."""
    return "–" if _null(gap) else f"{100 * gap:.0f} %".replace("-", "−")


MEANS_HEAD = ("objective", "student", "teacher", "task", "score", "sd over seeds", "seeds", "gap recovered")


def means_cells(comparison: Comparison, *, overall_only: bool = False) -> list[list[str]]:
    """Return the texts of MEANS_HEAD."""
    frame = comparison.means[comparison.means.task == OVERALL] if overall_only else comparison.means
    out = []
    for row in frame.to_dict("records"):
        gap = gap_text(row["gap_recovered"])
        names = ["–" if _null(row[name]) else str(row[name]) for name in ("student", "teacher")]
        score, sd = number(comparison, row["mean"]), number(comparison, row["sd_seeds"])
        out.append([row["objective"], *names, str(row["task"]), score, sd, str(row["n_seeds"]), gap])
    return out


def sections(comparison: Comparison) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Return (title, head, rows) of every table that is not empty."""
    kind = unit(comparison)
    level = f"{100 * (1 - comparison.alpha):g} % intervals"
    table, pooled = comparison.table, comparison.pooled
    about = f"in {kind}, {level}, p by"
    found = [
        (f"Over all pairs, {about} {comparison.pooled_adjustment}", pooled[pooled.task == OVERALL], False),
        (f"Overall, {about} {comparison.adjustment}", table[table.task == OVERALL], False),
    ]
    if table.task.nunique() > 2:  # with one task, it is the overall row
        title = f"Per task, exploratory, in {kind}, {level}, p by Benjamini-Hochberg"
        found.append((title, table[table.task != OVERALL], True))
    out: list[tuple[str, Sequence[str], list[list[str]]]] = []
    for title, frame, with_task in found:
        rows = cells_of(comparison, frame.to_dict("records"))
        keep = [i for i, name in enumerate(HEAD) if with_task or name != "task"]
        if rows:
            out.append((title, [HEAD[i] for i in keep], [[row[i] for i in keep] for row in rows]))
    title = "Scores, in points" if comparison.points else "Scores"
    out.append((title, MEANS_HEAD, means_cells(comparison, overall_only=table.task.nunique() <= 2)))
    return out


def at_equal_time(comparison: Comparison) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Return the tables of the contrasts at equal wall time, without those per task and of scores."""
    timed = comparison.at_equal_time
    return [
        (f"At equal wall time. {title}", head, rows)
        for title, head, rows in (sections(timed) if timed else ())
        if not title.startswith(("Per task", "Scores"))
    ]


def markdown(comparison: Comparison) -> str:
    """Return the answer, the tables, the method and the notes as Markdown."""
    lines = [*(f"{escape_markdown(text)}\n" for text in summary(comparison))]
    for title, head, rows in sections(comparison):
        lines += [f"## {title}", "", *markdown_table(head, rows), ""]
    for title, head, rows in at_equal_time(comparison):
        lines += [f"## {title}", "", *markdown_table(head, rows), ""]
    lines += ["## Method", "", escape_markdown(comparison.method), ""]
    if comparison.notes:
        lines += ["## Notes", "", *(f"- {escape_markdown(note)}" for note in comparison.notes), ""]
    return "\n".join(lines)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    body = ["| " + " | ".join(escape_markdown(str(text)) for text in row) + " |" for row in [list(head), *rows]]
    return [body[0], "|" + "---|" * len(head), *body[1:]]


def escape_markdown(text: str) -> str:
    """Return text in which no character starts markup, a table cell or HTML."""
    for sign in "\\`*_[]|":
        text = text.replace(sign, "\\" + sign)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return plain JSON values; None for NaN and null."""
    frames = {name: getattr(comparison, name) for name in ("table", "pooled", "means", "details")}
    return {
        "sentences": comparison.sentences(),
        **{name: [{k: plain(v) for k, v in row.items()} for row in f.to_dict("records")] for name, f in frames.items()},
        "notes": list(comparison.notes),
        "method": comparison.method,
        "smallest_p": comparison.smallest_p,
        "alpha": comparison.alpha,
        "margin": comparison.margin,
        "contrasts": [list(contrast) for contrast in comparison.contrasts],
        "unit": unit(comparison),
        **({"at_equal_time": as_json(comparison.at_equal_time)} if comparison.at_equal_time else {}),
    }


def plain(value: Any) -> Any:
    """Return a Python value that JSON knows."""
    value = value.item() if hasattr(value, "item") else value
    return None if _null(value) or (isinstance(value, float) and not math.isfinite(value)) else value
