"""A comparison leaves the house whole: tidy CSV, LaTeX that compiles, verdicts as short texts, a terminal table.

python -m pytest tests/analysis/test_export.py
"""

from __future__ import annotations

import io
import re

import pandas as pd
import pytest
from rich.console import Console

from kdbench.analysis import export, rows
from kdbench.analysis.labels import cut, fold, listed
from kdbench.analysis.terminal import tables
from kdbench.analysis.verdict import compare
from tests.analysis.test_report import EVIL, scores

LONG = "atkd(grouping=none,tkd_on=easy,dkd_on=none,keep_unc=True,level={})"


@pytest.fixture(scope="module")
def found():
    return compare(scores(), "sft")


@pytest.fixture(scope="module")
def family():
    """A comparison of 30 arms with long labels at one pair."""
    one = scores().query("teacher != 't2'")
    kl, rest = one[one.objective == "kl"], one[one.objective != "kl"]
    arms = [kl.assign(objective=LONG.format(level), score=(kl.score + (level == 7)).clip(0, 1)) for level in range(30)]
    return compare(pd.concat([rest, *arms]), "sft")


def printed(comparison):
    console = Console(width=100, file=io.StringIO())
    for table in tables(comparison):
        console.print(table)
    return console.file.getvalue()


def test_csv_holds_every_row_once_with_its_details(found):
    frame = pd.read_csv(io.StringIO(export.csv(found)))
    assert len(frame) == len(found.table) + len(found.pooled)
    assert {"delta", "verdict", "mde", "seeds_needed", "method"} <= set(frame.columns)
    assert frame.mde.notna().all() and not [name for name in frame.columns if name.endswith(("_x", "_y"))]
    row = frame[(frame.teacher == "t1") & (frame.task == "overall")].iloc[0]
    assert row.delta == pytest.approx(found.table.query("teacher == 't1' and task == 'overall'").delta.iloc[0])


def test_latex_is_booktabs_with_every_row_of_one_width_and_nothing_unescaped():
    text = export.latex(compare(scores(EVIL), "sft"))
    assert text.count("\\toprule") == text.count("\\bottomrule") == text.count("\\begin{tabular}") > 1
    body = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert all(len(re.findall(r"(?<!\\)&", line)) >= 5 for line in body)
    assert not re.search(r"(?<!\\)[%#_]", "".join(body)) and "−" not in text and "←" not in "".join(body)
    assert export.escape("50 % of a_b & {c}\\") == r"50 \% of a\_b \& \{c\}\textbackslash{}"


def test_verdicts_read_as_word_difference_and_interval(found):
    texts = export.verdicts(found)
    assert next(iter(texts)) == "kl − sft (all pairs)"
    assert re.fullmatch(r"better [\d.]+ \[[−\d.]+, [−\d.]+\]", texts["kl − sft (all pairs)"])


def test_the_terminal_keeps_to_100_columns_and_breaks_long_labels_at_commas(family):
    lines = printed(family).splitlines()
    assert max(map(len, lines)) <= 100
    first = next(i for i, line in enumerate(lines) if "level=7" in line)
    assert "keep_unc=True" in lines[first] + lines[first - 1] and "better" in "".join(lines[first - 2 : first + 1])


def test_of_many_rows_the_decided_come_first_and_the_others_are_counted(family):
    text = printed(family)
    shown, left = rows.telling(rows.overall(family, pooled_first=True), 12)
    assert len(shown) == 12 and len(left) == 18 and shown[0]["verdict"] in ("better", "worse")
    assert "18 more rows" in text and "--csv" in text and "against sft" in text


def test_few_rows_are_all_shown_in_the_order_of_the_contrasts(found):
    text = printed(found)
    assert "more rows" not in text and [text.index(name) for name in ("t1", "t2", "all pairs")] == sorted(
        text.index(name) for name in ("t1", "t2", "all pairs")
    )


def test_labels_are_cut_in_the_middle_and_broken_only_where_a_reader_would():
    assert cut("abcdefghij", 7) == "abc…hij" and cut("abc", 7) == "abc"
    lines = fold(LONG.format(1), 34)
    assert "".join(lines) == LONG.format(1) and all(len(line) <= 34 and line[-1] in ",)" for line in lines)
    assert all(len(line) <= 20 for line in fold("x" * 90, 20)) and len(fold("a," * 60, 10)) == 3
    assert listed(["a", "b", "c"]) == "a, b and c" and listed(list("abcdefgh"), most=4) == "a, b, c and 5 more"
