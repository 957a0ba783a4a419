"""A comparison for other programs and for papers: tidy CSV, LaTeX, and verdicts as short texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from kdbench.analysis import rows as choice
from kdbench.analysis.words import as_json, at_equal_time, number, place_text, sections

if TYPE_CHECKING:
    from kdbench.analysis.verdict import Comparison

KEY = ["student", "teacher", "task", "objective", "baseline"]
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "←": r"$\leftarrow$",
    "–": "--", "…": r"\ldots{}", "≥": r"$\geq$", "≤": r"$\leq$", "α": r"$\alpha$", "λ": r"$\lambda$",
}  # fmt: skip
NUMBERS = {"difference", "interval", "p", "seeds × items", "score", "sd over seeds", "seeds", "gap recovered"}


def csv(comparison: Comparison) -> str:
    """Return every row of `table` and `pooled` with its details, one tidy table; numbers in units of score.

    Contrasts at equal wall time follow, where there are such.
    """
    parts = [comparison, *([comparison.at_equal_time] if comparison.at_equal_time else [])]
    return pd.concat([_rows(part) for part in parts], ignore_index=True).to_csv(index=False, lineterminator="\n")


def _rows(comparison: Comparison) -> pd.DataFrame:
    frame = pd.concat([part for part in (comparison.table, comparison.pooled) if len(part)], ignore_index=True)
    more = comparison.details[[name for name in comparison.details.columns if name in KEY or name not in frame]]
    return frame.merge(more.drop_duplicates(KEY), on=KEY, how="left")


def latex(comparison: Comparison) -> str:
    """Return the tables as LaTeX that needs only the package booktabs."""
    parts = ["% \\usepackage{booktabs}"]
    for index, (title, head, rows) in enumerate([*sections(comparison), *at_equal_time(comparison)], start=1):
        parts.append(_tabular(title, head, rows, f"tab:kdbench-{index}"))
    return "\n\n".join([*parts, f"% {comparison.method}"]) + "\n"


def _tabular(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> str:
    columns = "".join("r" if name in NUMBERS else "l" for name in head)
    lines = ["\\begin{table}", "\\centering", f"\\caption{{{escape(title)}}}", f"\\label{{{label}}}"]
    lines += [f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
    lines += [_line(head), "\\midrule", *map(_line, rows), "\\bottomrule", "\\end{tabular}", "\\end{table}"]
    return "\n".join(lines)


def _line(texts: Sequence[str]) -> str:
    return " & ".join(escape(str(text)) for text in texts) + r" \\"


def escape(text: str) -> str:
    """Return text in which no character is a command of LaTeX."""
    return "".join(LATEX.get(sign, " " if sign.isspace() else sign) for sign in text)


def verdicts(comparison: Comparison) -> dict[str, str]:
    """Return `atkd − kl (all pairs)` → `undecided −0.1 [−0.9, 0.7]`, the overall and the pooled rows."""
    found = {}
    for row in choice.overall(comparison, pooled_first=True):
        name = f"{row['objective']} − {row['baseline']} ({place_text(row)})"
        numbers = [number(comparison, row[part]) for part in ("delta", "ci_low", "ci_high")]
        found[name] = f"{row['verdict']} {numbers[0]} [{numbers[1]}, {numbers[2]}]"
    return found


def document(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as JSON values, with its verdicts as short texts."""
    return as_json(comparison) | {"verdicts": verdicts(comparison)}
