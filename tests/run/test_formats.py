"""Stores of every format are read for ever; what a later kdbench wrote is refused, never misread and never touched.

python -m pytest tests/run/test_formats.py
"""

from __future__ import annotations

import json
import random
import re

import pytest

import kdbench
from kdbench.errors import StoreError
from kdbench.files import read_json, sealed, write_json
from kdbench.run import plans, upkeep
from kdbench.run.store import FORMAT, LATER, Store
from tests.conftest import call
from tests.fixtures import path_of, unpack

READERS = (
    ("compare",),
    ("compare", "--json"),
    ("report",),
    ("cite",),
    ("diff", "objective=kl,seed=0", "objective=sft,seed=0"),
)


@pytest.fixture
def results(tmp_path):
    return unpack(FORMAT, tmp_path)


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def plan_of(results):
    return results / "suites" / "kept" / "plan.json"


def replan(results, change):
    """Change a plan as one is that was written so, sha256 and all."""
    found = read_json(plan_of(results))
    change(found)
    write_json(plan_of(results), sealed(found))


def a_cell(results, arm="kl"):
    (cell, *_) = [cell for cell in read_json(plan_of(results))["cells"] if cell["arm"] == arm]
    return Store(results).entry("cells", cell["key"])


def refused(results, *words, readers=READERS):
    for reader in readers:
        shown = call(*reader, "--results-dir", results)
        assert shown.exit_code == 4, (reader, shown.output, shown.exception)
        assert shown.output.count("error:") == 1 and len(shown.output.splitlines()) == 1
        assert all(word in shown.output for word in words), shown.output


@pytest.mark.fault("H10", "a whole store of every format so far, read by every command that reads")
@pytest.mark.parametrize("number", range(1, FORMAT + 1))
def test_a_store_of_every_format_so_far_is_read(number, tmp_path):
    assert path_of(number).stat().st_size < 300_000
    results = unpack(number, tmp_path)
    stored = json.loads((results / "suites" / "kept" / "report" / "comparison.json").read_text())
    found = json.loads(call("compare", "--json", "--results-dir", results).stdout)
    assert [row["objective"] for row in found["table"]] == [row["objective"] for row in stored["table"]]
    for name in ("delta", "ci_low", "ci_high"):
        assert [row[name] for row in found["table"]] == pytest.approx([row[name] for row in stored["table"]], abs=1e-9)
    whole = call("doctor", "--store", "--results-dir", results)
    assert whole.exit_code == 0 and "damaged" not in whole.output, whole.output
    for reader in (*READERS, ("cache", "ls"), ("gc",)):
        shown = call(*reader, "--results-dir", results)
        assert shown.exit_code == 0, (reader, shown.output, shown.exception)
    assert len(kdbench.load_scores(results)) > 0


@pytest.mark.fault("H10", "an entry of a later format: refused, and left as it is")
def test_an_entry_of_a_later_format_is_refused_and_left_as_it_is(results):
    entry = a_cell(results)
    write_json(entry.path / "DONE.json", read_json(entry.path / "DONE.json") | {"format": FORMAT + 1})
    before = tree(results)
    assert entry.state() == LATER
    refused(results, f"format {FORMAT + 1}", "use the kdbench that wrote it", readers=READERS[:3] + READERS[4:])
    with pytest.raises(StoreError, match="use the kdbench that wrote it"), entry.locked():
        entry.begin({})
    shown = call("doctor", "--store", "--results-dir", results)
    assert shown.exit_code == 4 and "1 of" in shown.output and entry.key in shown.output
    assert {one.state for one in upkeep.verify(Store(results)) if one.key == entry.key} == {LATER}
    assert {name: data for name, data in tree(results).items() if not name.endswith(".lock")} == before


@pytest.mark.fault("H10", "a plan of a later format or protocol: refused")
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda plan: plan.update(format=plans.FORMAT + 1), f"format {plans.FORMAT + 1}"),
        (lambda plan: plan.update(format="two"), "format 'two'"),
        (lambda plan: plan["environment"].update(protocol="1.1"), "protocol '1.1'"),
        (lambda plan: plan["environment"].update(protocol="12.0.3"), "protocol '12.0.3'"),
        (lambda plan: plan["environment"].update(protocol="next"), "protocol 'next'"),
    ],
)
def test_a_plan_of_a_later_format_or_protocol_is_refused(change, word, results):
    replan(results, change)
    refused(results, word, "use the kdbench that wrote it")


@pytest.mark.fault("C9", "a plan with cells that have no key or no arm")
@pytest.mark.parametrize("change", [
    lambda cell: cell.update(key=""), lambda cell: cell.update(inputs={}), lambda cell: cell.update(inputs=[]),
])  # fmt: skip
def test_a_plan_of_cells_that_say_too_little_is_refused(change, results):
    replan(results, lambda plan: change(plan["cells"][0]))
    refused(results, "expected a plan that kdbench wrote")
    assert call("cache", "ls", "--results-dir", results).exit_code == 0


@pytest.mark.fault("C5", "scores that no sum vouches for")
def test_scores_that_done_does_not_list_are_not_shown(results):
    entry = a_cell(results)
    done = read_json(entry.path / "DONE.json")
    del done["files"]["results.json"]
    write_json(entry.path / "DONE.json", sealed(done))
    assert "1 of" in (shown := call("compare", "--results-dir", results)).stdout and "damaged, left out" in shown.stdout


@pytest.mark.fault("C9", "what is noted beside a teacher's cache, with something else in it and no sum")
@pytest.mark.parametrize("odd", [[1], {"mean": {}}, {"mean": 0.5, "q50": 0.5}])
def test_what_is_noted_of_a_teacher_is_numbers_or_refused(odd, results):
    (path,) = results.glob("teacher_cache/*/DONE.json")
    write_json(path, read_json(path) | {"uncertainty": odd})
    shown = call("report", "--results-dir", results)
    assert shown.exit_code == 4 and "DONE.json: expected mean, q10" in shown.stderr, shown.output


@pytest.mark.fault("H10", "results of an earlier protocol: shown as such, within themselves")
def test_results_of_an_earlier_protocol_are_shown_with_a_note(results, monkeypatch):
    monkeypatch.setattr(kdbench, "PROTOCOL", "1.1")
    found = json.loads(call("compare", "--json", "--results-dir", results).stdout)
    assert found["table"] and any("these results are of protocol 1.0" in note for note in found["notes"])
    monkeypatch.setattr(kdbench, "PROTOCOL", "1.0.7")
    found = json.loads(call("compare", "--json", "--results-dir", results).stdout)
    assert not any("protocol" in note for note in found["notes"]), "a third number changes no result"


@pytest.mark.fault("H10", "cells of two protocols in one store: never compared")
def test_cells_of_another_protocol_are_set_apart_and_said(results):
    def change(plan):
        for cell in plan["cells"]:
            if cell["arm"] == "kl" and cell["seed"] == 1:
                cell["inputs"]["protocol"] = "0.9"

    replan(results, change)
    found = json.loads(call("compare", "--json", "--results-dir", results).stdout)
    assert {row["n_seeds"] for row in found["table"]} == {1}
    assert any(note.startswith("1 of 7 cells of another protocol, left out: kl") for note in found["notes"])
    shown = call("diff", "objective=kl,seed=0", "objective=kl,seed=1", "--results-dir", results)
    assert shown.exit_code == 2 and "expected two cells of one protocol" in shown.output and "0.9" in shown.output


@pytest.mark.fault("C5", "a bit of a suite's plan: never answered from")
def test_a_flipped_bit_of_a_plan_is_found_before_it_is_read(results, record_property):
    path, rng = plan_of(results), random.Random(0)
    whole = path.read_bytes()
    known = plans.read(path)
    for _ in range(200):
        bad = bytearray(whole)
        bad[rng.randrange(len(bad) - 1)] ^= 1 << rng.randrange(8)  # the last byte is a newline, which says nothing
        path.write_bytes(bytes(bad))
        try:
            assert plans.read(path) == known, "only spaces between values may change unseen"
        except StoreError as error:
            assert str(path) in str(error)
    record_property("tried", 200)


@pytest.mark.fault("H7", "a plan that names its suite as a path")
@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "..", "a/b"])
def test_a_plan_cannot_send_a_report_elsewhere(name, results, tmp_path):
    replan(results, lambda plan: plan["suite"].update(name=name))
    before = tree(tmp_path)
    refused(results, "plan.json")
    assert tree(tmp_path) == before


def test_a_damaged_plan_is_written_over_by_the_next_run(results):
    path = plan_of(results)
    content = {name: value for name, value in plans.read(path).items() if name not in ("format", plans.SUM)}
    for damage in ("{", "[]", path.read_text().replace('"kl"', '"k1"', 1)):
        path.write_text(damage)
        with pytest.raises(StoreError, match=re.escape(str(path))):
            plans.read(path)
        assert plans.write_if_changed(path, content) == read_json(path)
        assert plans.read(path)["cells"] == content["cells"]


def test_a_plan_that_has_not_changed_is_not_written_again(results):
    path = plan_of(results)
    content = {name: value for name, value in plans.read(path).items() if name not in ("format", plans.SUM)}
    before = path.stat().st_mtime_ns
    plans.write_if_changed(path, content)
    assert path.stat().st_mtime_ns == before
