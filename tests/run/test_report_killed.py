"""A run whose cells are all made, ended while it plans or writes its report: the next one has nothing missing.

python -m pytest tests/run/test_report_killed.py
"""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from kdbench import failpoints
from kdbench.analysis import conclusion
from kdbench.files import read_json, sealed, write_json
from kdbench.run import plans, reports
from tests.conftest import call, kdbench
from tests.faults.house import link_tree
from tests.run.conftest import products

STRIDE = 50  # at every commit one moment in so many; at night one in five


@pytest.fixture
def made(world, tmp_path):
    """Return the suite, and a function that gives a store with every entry and nothing of a suite."""
    _, suite, results, _ = world

    def store():
        shutil.rmtree(tmp_path / "r", ignore_errors=True)
        link_tree(results, tmp_path / "r")
        shutil.rmtree(tmp_path / "r" / "suites")
        return tmp_path / "r"

    return suite, store


def run(suite, results):
    return call("run", suite, "--results-dir", results, "--no-mlflow")


def is_whole(suite, results, reference) -> bool:
    """Whether the next run ends well, with a report of today's cells and the verdict of an undisturbed run."""
    ended = run(suite, results)
    assert ended.exit_code == 0, ended.output
    folders = [folder / "suites" / "tiny" for folder in (results, reference)]
    here, there = ({path.relative_to(folder).as_posix() for path in folder.rglob("*")} for folder in folders)
    same = [read_json(folder / "report" / "comparison.json")["verdicts"] for folder in folders]
    there.remove("costs.json")  # of jobs; here there were none
    here = {name for name in here if "/.tmp-" not in f"/{name}"}  # what a killed process was writing goes with `gc`
    return here == there and same[0] == same[1] and stands(results)


def stands(results) -> bool:
    """Whether the next run would leave the report as it is."""
    page = results / "suites" / "tiny" / "report.html"
    before = page.stat().st_mtime_ns
    conclusion.conclude(results, "tiny")
    return page.stat().st_mtime_ns == before and not reports.damaged(page.parent)


@pytest.mark.fault("C2", "an end at moments of planning, of the exams' copies and of the report")
@pytest.mark.parametrize("stride", [STRIDE, pytest.param(5, marks=pytest.mark.slow)])
def test_a_run_that_ends_before_its_report_is_written_writes_it_the_next_time(stride, made, world, record_property):
    suite, store = made
    number, times = 2, 0
    while True:
        results = store()
        with failpoints.armed(f"any:{number}:crash") as point:
            try:
                run(suite, results)
            except failpoints.Crash:
                times += 1
        if point.seen < number:
            break
        assert is_whole(suite, results, world[2]), f"after moment {number}"
        number += stride
    record_property("tried", times)
    assert times >= 2 and products(results) == products(world[2])


@pytest.mark.fault("C2", "a full disk while the plan or the report is written: one error, exit 4")
@pytest.mark.parametrize("number", [1, 4, 9])
def test_a_disk_that_is_full_for_a_report_is_one_error(number, made, world):
    suite, store = made
    results = store()
    with failpoints.armed(f"write:{number}:raise:ENOSPC"):
        ended = run(suite, results)
    assert ended.exit_code == 4 and "No space left on device" in ended.stderr and "Traceback" not in ended.output
    assert is_whole(suite, results, world[2])


@pytest.mark.fault("B1", "SIGTERM before the first job and while the report is written: exit 143, one word")
@pytest.mark.parametrize("number", [1, pytest.param(9, marks=pytest.mark.slow)])
def test_a_sigterm_outside_the_jobs_ends_with_its_code_and_no_traceback(number, made, world):
    suite, store = made
    results = store()
    asked = ("run", suite, "--results-dir", results, "--no-mlflow")
    ended = kdbench(*asked, check=143, KDBENCH_FAILPOINT=f"write:{number}:term")
    assert ended.stderr.splitlines()[-1] == "interrupted" and "Traceback" not in ended.stderr
    assert is_whole(suite, results, world[2])


@pytest.mark.fault("A2", "a cell that the report does not know")
@pytest.mark.fault("B6", "a cell that was made after its report, by a clock that ran backwards")
def test_a_report_that_does_not_know_a_cell_is_written_anew_whatever_the_clock_said(made):
    suite, store = made
    results = store()
    run(suite, results)
    assert stands(results)
    page, done = results / "suites" / "tiny" / "report.html", next(results.glob("cells/*/DONE.json"))
    known = read_json(done)
    done.unlink()  # the file is linked
    write_json(done, sealed(known | {"timing": known["timing"] | {"wall_s": 4321.0}}))
    os.utime(done, (1, 1))
    run(suite, results)
    assert "4,321" in page.read_text("utf-8") and stands(results)


def test_a_suite_that_asks_otherwise_gets_a_report_that_says_so(made, world, tmp_path):
    suite, store = made
    results = store()
    run(suite, results)
    other = tmp_path / "other.yaml"
    other.write_text(suite.read_text("utf-8").replace("[[kl, sft], [atkd, kl]]", "[[atkd, sft]]"), encoding="utf-8")
    assert run(other, results).exit_code == 0 and products(results) == products(world[2]), "no cell is made again"
    assert read_json(results / "suites" / "tiny" / "report" / "comparison.json")["contrasts"] == [["atkd", "sft"]]


@pytest.mark.fault("D1", "two runs whose reports ask for different things of the same cells")
def test_two_runs_that_ask_otherwise_do_not_mix_their_reports(made, monkeypatch):
    suite, store = made
    results = store()
    run(suite, results)
    folder = results / "suites" / "tiny"
    reports.withdraw(folder)
    writes, begun, may_end = conclusion._write, Event(), Event()

    def slowly(*arguments):
        begun.set()
        assert may_end.wait(60)
        return writes(*arguments)

    monkeypatch.setattr(conclusion, "_write", slowly)
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(conclusion.conclude, results, "tiny")]
        assert begun.wait(60)
        both.append(pool.submit(conclusion.conclude, results, "tiny"))
        time.sleep(0.5)  # it has read the old plan by now
        plan = plans.read(folder / plans.FILE)
        plan["suite"]["compare"]["contrasts"] = [["atkd", "sft"]]
        plans.write(folder / plans.FILE, plan)
        assert not both[1].done(), "it waits for the first"
        may_end.set()
        asked = [one.result(60)[0].contrasts for one in both]
    assert [list(map(list, one)) for one in asked] == [[["kl", "sft"], ["atkd", "kl"]], [["atkd", "sft"]]]
    assert read_json(folder / "report" / "comparison.json")["contrasts"] == [["atkd", "sft"]] and stands(results)


@pytest.mark.fault("C5", "a bit of a suite's report: named by doctor, written anew by the next run")
@pytest.mark.fault("C4", "a report's picture cut, and what vouches for the report")
@pytest.mark.parametrize("names", [("report.html", "forest.png", "report/comparison.csv"), (reports.FILE,)])
def test_a_damaged_report_is_named_and_written_anew(names, made, world):
    suite, store = made
    results = store()
    run(suite, results)
    for name in names:
        path = results / "suites" / "tiny" / name
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw if name in ("report.html", reports.FILE) else raw[: len(raw) // 2])
    told = call("doctor", "--store", "--results-dir", results)
    assert told.exit_code == 4 and f"suites/tiny  damaged: {', '.join(names)}" in told.stdout, told.output
    assert is_whole(suite, results, world[2])
    assert call("doctor", "--store", "--results-dir", results).exit_code == 0


def test_what_a_killed_process_left_beside_a_picture_goes_with_gc(made):
    suite, store = made
    results = store()
    run(suite, results)
    left = results / "suites" / "tiny" / "report" / ".tmp-999999999-0123abcd"
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    assert call("gc", "--yes", "--results-dir", results).exit_code == 0 and not left.exists()
    assert stands(results)
