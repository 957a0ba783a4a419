"""The benchmarks run: at sizes of no meaning each group gives finite rows, and what cannot run says so.

python -m pytest tests/test_benchmarks.py
"""

from __future__ import annotations

import importlib
import math
import os

import pytest

pytest.importorskip("benchmarks")  # not part of the wheel

from benchmarks import evaluation, growth, head, measure, report
from benchmarks.measure import Bench
from benchmarks.reasons import reason
from benchmarks.rows import Row, against


@pytest.fixture
def bench(corpus_folder) -> Bench:
    return Bench("smoke", fresh=False, corpus={"folder": str(corpus_folder), "files": "*.txt"})


def check(rows: list[Row]) -> None:
    assert rows
    for row in rows:
        assert row.ratio is None or math.isfinite(row.ratio), row
        assert row.ratio is not None or row.note, f"a row without a ratio must say why: {row}"
        assert len(row.cells()) == len(report.HEAD)


def ran(rows: list[Row], contestant: str) -> list[Row]:
    return [row for row in rows if row.contestant.startswith(contestant) and row.ratio is not None]


def test_head_gives_rows_and_every_contestant_the_same_gradient(bench):
    rows = head.run(bench)
    check(rows)
    assert len(ran(rows, "kdbench")) >= 2 * len(head.OBJECTIVES)
    assert not [row for row in rows if "its gradient differs" in row.note]


@pytest.mark.filterwarnings("ignore")
def test_step_gives_rows_and_the_same_loss_as_its_peers(bench):
    rows = importlib.import_module("benchmarks.step").run(bench)
    check(rows)
    assert ran(rows, "kdbench")
    assert all(row.met for row in rows if "difference of the loss" in row.what and row.ratio is not None)


def test_cache_gives_rows(bench):
    rows = importlib.import_module("benchmarks.cache").run(bench)
    check(rows)
    assert ran(rows, "states")


def test_growth_gives_rows_and_a_picture(bench, tmp_path):
    rows = growth.run(bench, tmp_path / "growth.png")
    check(rows)
    assert len(ran(rows, "kdbench")) == len(rows)
    assert (tmp_path / "growth.png").stat().st_size > 1000


@pytest.mark.filterwarnings("ignore")
def test_evaluation_gives_rows_and_plain_lm_eval_the_same_scores(bench, monkeypatch):
    evaluator = pytest.importorskip("lm_eval.evaluator")
    monkeypatch.setattr(evaluator, "add_env_info", lambda found: None)  # runs pip and git to describe the machine
    rows = evaluation.run(bench)
    check(rows)
    assert len(ran(rows, "kdbench")) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_matrix_gives_rows(bench):
    pytest.importorskip("trl")
    rows = importlib.import_module("benchmarks.matrix").run(bench)
    check(rows)
    assert ran(rows, "kdbench") and rows[-1].met


def test_a_measurement_has_a_process_and_a_peak_of_its_own():
    found = Bench("smoke").call("tests.test_benchmarks:allocate", mib=200)
    assert found["pid"] != os.getpid()
    assert found["extra_bytes"] is None or 190 * 2**20 < found["extra_bytes"] < 260 * 2**20


def allocate(mib: int) -> dict:
    bytearray(64 * 2**20)  # a peak before, which must not count
    with measure.watched() as seen:
        kept = bytearray(b"1") * (mib * 2**20)
    return seen.facts() | {"pid": os.getpid(), "kept": len(kept)}


def test_what_cannot_run_says_so_and_misses_no_target():
    found = Bench("smoke", fresh=False).call("tests.test_benchmarks:absent")
    row = against("head", "kl: time", ("peer", "floor"), (found, {"seconds": 1.0}), ("<=", 1.0))
    assert row.ratio is None and row.met is None and "not here" in row.cells()[3]


def absent() -> dict:
    raise measure.Absent("not here")


def test_medians_are_over_the_rounds():
    assert measure.middle([{"seconds": 3.0}, {"seconds": 1.0}, {"seconds": 2.0}])["seconds"] == 2.0
    assert measure.slope([1, 10, 100], [2, 200, 20_000]) == pytest.approx(2)


def test_the_report_has_every_row_and_the_reason_of_a_miss():
    rows = [
        Row("head", "kl: time", "kdbench", "floor", 1.5, ("<=", 1.3), 2.0, note="noted"),
        Row("head", "kl: time", "trl", "floor", None, ("<=", 1.3), note="trl: not installed"),
    ]
    about = report.facts("smoke", None, 60.0)
    again, facts = report.from_json(report.as_json(rows, about))
    assert again == rows and facts == about
    text = report.markdown(rows, about)
    newer = [Row("step", "kl: time", "kdbench", "bare", 1.2, ("<=", 1.3), 1.0)]
    both, told = report.joined(rows, about, newer, about | {"commit": "abc1234"})
    assert both == [*rows, *newer] and "Measured again on the same machine: step" in report.markdown(both, told)
    assert report.joined(both, told, newer, about)[0] == both and report.joined(rows, about, [], about)[1] == about
    for part in ("0 of 1 targets", reason(rows[0].key), "could not be measured", "noted", report.NO_GPU, about["date"]):
        assert part in text
