"""`doctor --store` and `gc`: what is damaged is named; what is needed, held or not ours is never removed.

python -m pytest tests/run/test_upkeep.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

import kdbench
from kdbench import failpoints
from kdbench.files import atomic_write, write_json
from kdbench.run import plans, upkeep
from kdbench.run.store import INPUTS, Store
from tests.conftest import call

NEEDED, LED_TO, OLD, OTHER = "cell1", "text1", "cell2", "text2"


def make(store, kind, key, inputs, text="hello"):
    entry = store.entry(kind, key)
    entry.begin(inputs)
    atomic_write(entry.path / "model" / "x", text)
    entry.commit("ok", {})
    return entry


@pytest.fixture
def store(tmp_path):
    """Two cells and two texts; a plan names the first cell, whose inputs name the first text."""
    store = Store(tmp_path / "results")
    make(store, "texts", LED_TO, {"a": 1})
    make(store, "texts", OTHER, {"a": 2})
    make(store, "cells", NEEDED, {"text": LED_TO})
    make(store, "cells", OLD, {"text": OTHER}, text="x" * 999)
    write_plan(store, "mine", NEEDED)
    return store


def write_plan(store, name, key):
    """Write the plan of a suite of one cell."""
    plan = {"suite": {"name": name, "students": ["small"], "seeds": [0]}, "environment": {"protocol": kdbench.PROTOCOL}}
    cell = {"key": key, "arm": "kl", "student": "small", "teacher": None, "seed": 0, "inputs": {"arm": "objective"}}
    plans.write(store.suite_folder(name) / plans.FILE, plan | {"cells": [cell]})


def gc(store, *arguments):
    result = call("gc", "--json", *arguments, "--results-dir", store.root)
    assert result.exit_code == 0, result.output
    return {row["path"]: row for row in json.loads(result.stdout)}


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if ".lock" not in path.name)


def test_a_whole_store_is_found_whole(store):
    result = call("doctor", "--store", "--results-dir", store.root)
    assert result.exit_code == 0 and "5 ok" in result.stdout and "MB" in result.stdout


def test_a_store_that_is_not_there_has_no_entries_and_is_not_made(tmp_path):
    result = call("doctor", "--store", "--results-dir", tmp_path / "none")
    assert result.exit_code == 0 and "no entries" in result.stdout and not (tmp_path / "none").exists()


@pytest.mark.parametrize("damage", ["flip", "delete", "truncate", "nonsense"])
def test_what_is_damaged_is_named_and_left_where_it_is(store, damage):
    path = store.entry("texts", OTHER).path / "model" / "x"
    if damage == "flip":
        path.write_text("hellO")
    elif damage == "delete":
        path.unlink()
    elif damage == "truncate":
        path.write_text("hell")
    else:
        write_json(path.parent.parent / "DONE.json", {"files": {"\0": 1, "model/x": None, "../../cells": []}})
    before = tree(store.root)
    result = call("doctor", "--store", "--results-dir", store.root)
    assert result.exit_code == 4 and f"texts/{OTHER}  damaged: " in result.stdout and "model/x" in result.stdout
    assert "1 of 5 entries are damaged" in result.stderr and tree(store.root) == before
    rows = json.loads(call("doctor", "--store", "--json", "--results-dir", store.root).stdout)
    assert [row["key"] for row in rows if row["damaged"]] == [OTHER]


@pytest.mark.fault("C5", "a suite's plan: named by doctor, and left where it is")
@pytest.mark.parametrize(("old", "new", "state"), [
    (f'"{NEEDED}"', f'"{OLD}"', "damaged"), ("{", "", "damaged"), ('"format": 1', '"format": 9', "later"),
])  # fmt: skip
def test_a_plan_that_no_reader_would_take_is_named(store, old, new, state):
    path = store.suite_folder("mine") / plans.FILE
    path.write_text(path.read_text().replace(old, new, 1))
    result = call("doctor", "--store", "--results-dir", store.root)
    rows = json.loads(call("doctor", "--store", "--json", "--results-dir", store.root).stdout)
    assert result.exit_code == 4 and [row["state"] for row in rows if row["kind"] == "suites"] == [state]
    assert ("suites/mine  damaged: plan.json" in result.stdout) == (state == "damaged")
    assert ("use that one to verify them" in result.stderr) == (state == "later")


COMING_AND_GOING = """
import shutil, sys
from pathlib import Path
from kdbench.files import atomic_write
folders = [Path(sys.argv[1]) / "cells" / f"x{number}" for number in range(20)]
print("on", flush=True)
while True:
    for folder in folders:
        atomic_write(folder / "model" / "x", b"1")
        atomic_write(folder / "inputs.json", b"{}")
    for folder in folders:
        shutil.rmtree(folder)
"""


@pytest.mark.fault("D5", "entries that come and go while doctor and gc look")
def test_what_vanishes_while_it_is_looked_at_is_passed_over(store):
    """Another process makes entries, renames them and removes them all the while."""
    other = subprocess.Popen([sys.executable, "-c", COMING_AND_GOING, str(store.root)], stdout=-1, text=True)
    try:
        assert other.stdout.readline() == "on\n"
        for _ in range(60):
            upkeep.verify(store)
            upkeep.waste(store)
    finally:
        other.kill()
        other.communicate()


def test_gc_shows_what_no_plan_leads_to_and_removes_it_only_when_told(store):
    before = tree(store.root)
    found = gc(store)
    assert set(found) == {f"cells/{OLD}", f"texts/{OTHER}"} and not any(row["removed"] for row in found.values())
    assert found[f"cells/{OLD}"]["bytes"] > 999 and tree(store.root) == before
    text = call("gc", "--results-dir", store.root)
    assert f"cells/{OLD}  (no suite's last plan needs it)" in text.stdout and "nothing was removed" in text.stderr
    assert all(row["removed"] for row in gc(store, "--yes").values())
    assert gc(store) == {}
    for kind, key in (("cells", NEEDED), ("texts", LED_TO)):
        assert store.entry(kind, key).verified()


@pytest.mark.fault("C7", "a device without an end in the place of a file")
def test_a_file_that_became_a_device_is_damaged_and_not_read_for_ever(store):
    path = store.entry("texts", OTHER).path / "model" / "x"
    path.unlink()
    path.symlink_to("/dev/zero")
    result = call("doctor", "--store", "--results-dir", store.root)
    assert result.exit_code == 4 and "model/x" in result.stdout


def test_what_was_set_aside_goes(store):
    store.entry("cells", NEEDED).set_aside()
    assert gc(store, "--yes")[f"cells/{NEEDED}.corrupt-1"]["why"] == "damaged, and set aside"
    assert not store.entry("cells", f"{NEEDED}").path.with_name(f"{NEEDED}.corrupt-1").exists()


@pytest.mark.parametrize("plan", [None, "no json", "[" * 100_000])
def test_without_a_plan_that_can_be_read_no_entry_counts_as_superseded(store, plan):
    path = store.suite_folder("mine") / "plan.json"
    path.unlink() if plan is None else path.write_text(plan)
    assert gc(store, "--yes") == {} and store.entry("cells", OLD).verified()


def test_an_entry_that_a_process_makes_stays(store):
    code = (
        "import sys;from pathlib import Path;from kdbench.run.store import Store\n"
        f"with Store(Path({str(store.root)!r})).entry('cells', {OLD!r}).locked():\n print('held',flush=True);input()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
    assert process.stdout.readline() == "held\n"
    assert f"cells/{OLD}" not in gc(store, "--yes")
    one = upkeep.Waste(store.entry("cells", OLD).path, 0, "chosen before it came into use")
    assert not upkeep.remove(store, one) and store.entry("cells", OLD).verified()
    rows = json.loads(call("doctor", "--store", "--json", "--results-dir", store.root).stdout)
    assert {row["key"]: row["state"] for row in rows}[OLD] == "in use"
    process.communicate("\n")


def test_an_entry_that_is_needed_again_by_the_time_of_its_removal_stays(store):
    (found,) = (one for one in upkeep.waste(store) if one.path.name == OLD)
    write_plan(store, "other", OLD)
    assert not upkeep.remove(store, found) and store.entry("cells", OLD).verified()


@pytest.mark.fault("C9", "foreign files in the store, at every place")
def test_files_that_are_not_ours_stay(store):
    mine = [
        store.root / "notes.txt",
        store.root / ".tmp-mine",
        store.root / "cells" / "backup.old" / "x",
        store.entry("cells", OLD).path / "model" / "notes.txt",
        store.root / "suites" / "mine" / ".tmp-draft.txt",
        store.root / "cells" / ".removed-by-me" / "x",
    ]
    for path in mine:
        atomic_write(path, "mine")
        os.utime(path, (0, 0))
    assert set(gc(store, "--yes")) == {f"texts/{OTHER}"}
    assert all(path.read_text() == "mine" for path in mine)


@pytest.mark.fault("C9", "folders of a user's own, named like entries")
def test_a_folder_that_is_none_of_ours_stays_whatever_its_name(store):
    mine = store.root / "models" / "mymodel"
    mine.mkdir(parents=True)
    (mine / "weights.bin").write_text("precious")
    begun, empty = store.entry("models", "begun"), store.root / "models" / "empty"
    begun.begin({})
    empty.mkdir()
    assert {"models/begun", "models/empty"} <= {path for path in gc(store, "--yes")}
    assert (mine / "weights.bin").read_text() == "precious" and not begun.path.exists() and not empty.exists()


@pytest.mark.fault("C5", "a changed key in a plan, or in an entry's inputs: gc takes nothing")
@pytest.mark.parametrize("where", ["plan", "inputs"])
def test_where_what_is_needed_was_changed_nothing_counts_as_superseded(store, where):
    path = store.suite_folder("mine") / "plan.json"
    plans.write(path, {"cells": [{"key": NEEDED, "inputs": {}}]})
    assert f"cells/{OLD}" in gc(store)
    damaged, old, new = (
        (path, NEEDED, "cell9") if where == "plan" else (store.entry("cells", NEEDED).path / INPUTS, LED_TO, "text9")
    )
    damaged.write_text(damaged.read_text().replace(old, new))
    assert gc(store) == {}


@pytest.mark.fault("C9", "checkpoints that a crash has left beside DONE.json")
def test_checkpoints_of_what_is_complete_go(store):
    path = store.entry("cells", NEEDED).checkpoints
    atomic_write(path / "step-1.safetensors", "x" * 99)
    atomic_write(store.entry("cells", "cell3").checkpoints / "step-1.safetensors", "unfinished")
    write_plan(store, "third", "cell3")
    found = gc(store, "--yes")
    assert found[f"cells/{NEEDED}/ckpt"]["why"] == "checkpoints of what is complete" and not path.exists()
    assert store.entry("cells", NEEDED).verified() and store.entry("cells", "cell3").checkpoints.exists()


@pytest.mark.fault("C9", "a removal that was cut off by a process of the same number")
def test_what_a_process_of_the_same_number_left_is_no_hindrance(store):
    """Containers give the same numbers to the processes of each start."""
    (store.root / "cells" / f".removed-{os.getpid()}-{OLD}" / "model").mkdir(parents=True)
    assert gc(store, "--yes")[f"cells/{OLD}"]["removed"] and not list(store.root.glob("cells/.removed-*"))


@pytest.mark.fault("C9", "temporary files of processes that were killed")
def test_leavings_of_dead_processes_go_and_those_of_living_and_young_ones_stay(store):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    places = (store.root, store.root / "suites" / "mine", store.entry("cells", NEEDED).path / "model")
    old = [place / f".tmp-{dead.pid}-0a1b2c3d" for place in places]
    old += [store.root / f".tmp-mlflow-{dead.pid}.db", store.root / f".tmp-probe-{dead.pid}"]
    young, living = store.root / f".tmp-{dead.pid}-00000000", store.root / f".tmp-{os.getpid()}-00000000"
    for path in (*old, young, living):
        path.write_text("half")
    for path in (*old, living):
        os.utime(path, (time.time() - 9999,) * 2)
    found = gc(store, "--yes")
    assert not any(path.exists() for path in old) and young.exists() and living.exists()
    assert {row["why"] for path, row in found.items() if ".tmp-" in path} == {"left by a process that was killed"}


@pytest.mark.fault("H8", "symlinks in the store that point outside")
def test_a_symlink_is_never_followed(store, tmp_path):
    outside = make(Store(tmp_path / "outside"), "cells", "abc", {}).path
    before = tree(outside)
    (store.root / "cells" / "link1").symlink_to(outside)
    (store.root / "cells" / "link1.corrupt-1").symlink_to(outside)
    (store.root / "models").symlink_to(outside.parent)
    (store.root / ".tmp-1-00000000").symlink_to(outside / "DONE.json")
    (store.entry("cells", OLD).path.with_name(f"{OLD}.corrupt-1")).mkdir()
    (store.root / "cells" / f"{OLD}.corrupt-1" / "link").symlink_to(outside)
    (store.root / "cells" / ".removed-1-abc").symlink_to(outside)
    found = gc(store, "--yes")
    assert set(found) == {f"cells/{OLD}", f"cells/{OLD}.corrupt-1", f"texts/{OTHER}"}
    assert tree(outside) == before and Store(tmp_path / "outside").entry("cells", "abc").verified()
    inside = store.entry("texts", LED_TO)
    (inside.path / ".tmp-1-11111111").symlink_to(outside)
    inside.begin({"a": 1})
    assert tree(outside) == before and not (inside.path / ".tmp-1-11111111").is_symlink()


@pytest.mark.fault("C9", "a removal that is cut off")
def test_what_a_killed_removal_left_is_never_read_and_goes_with_the_next(store):
    with failpoints.armed("removed:1:crash"), pytest.raises(failpoints.Crash):
        upkeep.remove(store, next(one for one in upkeep.waste(store) if one.path.name == OLD))
    assert store.entry("cells", OLD).state() == "new"
    (left,) = (path for path in gc(store, "--yes") if ".removed-" in path)
    assert not (store.root / left).exists()
