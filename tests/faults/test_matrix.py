"""The matrix is whole: each row is tried by a test, or says why not.

python -m pytest tests/faults/test_matrix.py
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.faults.matrix import NOT_RUN, ROWS
from tests.faults.table import Tally

TESTS = Path(__file__).parent.parent


def marks():
    """Return every `fault` mark of the tests: row → where."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                row, what = (ast.literal_eval(argument) for argument in node.args)
                assert what and "|" not in what
                found.setdefault(row, []).append(f"{path.name}: {what}")
    return found


def test_every_row_is_tried_by_a_test_or_says_why_not():
    tried = set(marks())
    assert tried <= set(ROWS) and set(NOT_RUN) <= set(ROWS)
    assert tried | set(NOT_RUN) == set(ROWS), f"neither: {set(ROWS) - tried - set(NOT_RUN)}"
    assert not tried & set(NOT_RUN), "tried, and said not to be"


def test_the_table_of_the_last_whole_run_has_every_row_and_nothing_was_lost():
    text = (TESTS / "faults" / "README.md").read_text(encoding="utf-8")
    words = r"^\d{4}-\d\d-\d\d, commit [0-9a-f]{12}: (\d+) of \1 rows tried; ([\d,]+) faults, \2 survived\.$"
    assert re.search(words, text, re.MULTILINE), "run `make faults WRITE=--write` on a committed tree"
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| [A-I]\d+ \|", line)]
    assert {line[0] for line in lines} == set(ROWS)
    assert all(int(tried) > 0 and tried == survived for *_, tried, survived in lines)


def test_every_marked_test_carries_its_rows_whatever_process_runs_it(request):
    """Processes of pytest-xdist know no plugin object of the command that started them."""
    for item in request.session.items:
        rows = [("fault", list(mark.args)) for mark in item.iter_markers("fault")]
        assert [one for one in item.user_properties if one[0] == "fault"] == rows


def test_what_a_fixture_finds_afterwards_is_not_survived_and_a_skip_says_why():
    tally, hostile = Tally(), [("fault", ["H6", "a pickle"])]
    tally.add(hostile, passed=True)
    tally.take_back(hostile)
    tally.skip([("fault", ["G12", "golden"])], ("file", 3, "Skipped: other versions"))
    lines = tally.lines()
    assert f"| H6 | {ROWS['H6']} | a pickle | 1 | 0 |" in lines
    assert f"| G12 | {ROWS['G12']} | not run: other versions | 0 | |" in lines


def test_the_table_counts_single_faults_and_tells_failures(monkeypatch):
    monkeypatch.setitem(NOT_RUN, "B5", "no watchdog")
    tally = Tally()
    tally.add([("fault", ["A2", "every moment"]), ("tried", 60)], passed=True)
    tally.add([("fault", ["A2", "every moment"]), ("tried", 5)], passed=False)
    tally.add([("fault", ["C5", "a bit"])], passed=True)
    lines = tally.lines()
    assert f"| A2 | {ROWS['A2']} | every moment | 65 | 60 |" in lines
    assert f"| C5 | {ROWS['C5']} | a bit | 1 | 1 |" in lines
    assert f"| B5 | {ROWS['B5']} | not run: no watchdog | 0 | |" in lines
    assert tally.summary() == f"2 of {len(ROWS)} rows tried; 66 faults, 61 survived"
