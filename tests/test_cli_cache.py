"""`kdbench cache`: what it shows, what it finds damaged, and what it will not remove.

python -m pytest tests/test_cli_cache.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager

import pytest

from kdbench.files import atomic_write, write_json
from kdbench.run.store import Store
from tests.conftest import call

USED, OLD, HALF = "aaa111", "bbb222", "ccc333"


def make(store, key, layout=None, done=True):
    """A small cache that looks like a real one."""
    entry = store.entry("teacher_cache", key)
    inputs = {"teacher": "mmm111", "text": "ttt111", "tokens": 100, "dtype": "float16"}
    entry.begin(inputs | (layout or {}))
    atomic_write(entry.path / "shard-000000.safetensors", b"x" * 5000)
    write_json(entry.path / "manifest.json", {"shards": {}, "effect": {"retained_mass": 1.0}})
    if done:
        entry.commit("ok", {})
    return entry


@pytest.fixture
def store(tmp_path):
    """A used, an unused and an unfinished cache; the suite `mine` names the first as that of its teacher `big`."""
    store = Store(tmp_path / "results")
    make(store, USED)
    make(store, OLD, {"layout": "topk", "k": 64})
    make(store, HALF, done=False)
    cell = {"key": "cell1", "teacher": "big", "inputs": {"cache": USED}}
    write_json(
        store.suite_folder("mine") / "plan.json", {"cells": [cell, {"key": "c2", "teacher": None, "inputs": {}}]}
    )
    model = store.entry("models", "mmm111")
    model.begin({})
    model.commit("ok", {}, parameters=12345)
    return store


def cache(store, *arguments, told=None):
    from click.testing import CliRunner

    from kdbench.cli import main

    if told is None:
        return call("cache", *arguments, "--results-dir", store.root)
    return CliRunner().invoke(main, ["cache", *arguments, "--results-dir", str(store.root)], input=told)


def folders(store):
    return sorted(path.name for path in (store.root / "teacher_cache").iterdir() if path.is_dir())


@contextmanager
def held(store, kind, key):
    """Another process holds an entry's lock."""
    code = (
        "import sys;from pathlib import Path;from kdbench.run.store import Store\n"
        f"with Store(Path({str(store.root)!r})).entry({kind!r}, {key!r}).locked():\n"
        " print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield
    finally:
        process.communicate()


def test_ls_says_what_each_cache_is_and_who_uses_it(store):
    rows = {row["key"]: row for row in json.loads(cache(store, "ls", "--json").stdout)}
    used = rows[USED]
    assert (used["teacher"], used["suites"], used["state"], used["layout"]) == ("big", ["mine"], "ok", "hidden")
    assert used["bytes"] > 5000 and used["bytes_a_token"] == round(used["bytes"] / 100, 1)
    assert used["effect"] == {"retained_mass": 1.0} and used["tokens"] == 100 and used["dtype"] == "float16"
    assert rows[OLD]["teacher"] == "12,345 parameters" and rows[OLD]["layout"] == "topk 64" and not rows[OLD]["suites"]
    assert rows[HALF]["state"] == "unfinished" and rows[HALF]["bytes_a_token"] is None
    table = cache(store, "ls").stdout
    assert all(part in table for part in (USED, "big", "mine", "topk 64", "unfinished", "none"))


def test_ls_of_a_folder_without_results_is_empty_and_writes_nothing(tmp_path):
    result = call("cache", "ls", "--json", "--results-dir", tmp_path / "none")
    assert json.loads(result.stdout) == [] and not (tmp_path / "none").exists()


@pytest.mark.parametrize(("kind", "key"), [("teacher_cache", USED), ("cells", "cell1")])
def test_a_cache_that_a_process_writes_or_reads_is_in_use_and_is_not_removed(store, kind, key):
    with held(store, kind, key):
        rows = {row["key"]: row["state"] for row in json.loads(cache(store, "ls", "--json").stdout)}
        assert rows == {USED: "in use", OLD: "ok", HALF: "unfinished"}
        result = cache(store, "rm", OLD, USED, "--yes")
        assert result.exit_code == 4 and f"in use by a running process, so nothing was removed: {USED}" in result.stderr
    assert folders(store) == [USED, OLD, HALF]
    assert cache(store, "rm", USED, "--yes").exit_code == 0
    assert folders(store) == [OLD, HALF]


def test_an_unused_cache_that_is_being_written_stays(store):
    with held(store, "teacher_cache", HALF):
        assert cache(store, "rm", "--unused", "--yes").exit_code == 0
    assert folders(store) == [USED, HALF]


def test_verify_finds_whole_caches_whole(store):
    result = cache(store, "verify", "--json")
    assert result.exit_code == 0
    rows = {row["key"]: row["state"] for row in json.loads(result.stdout)}
    assert rows == {USED: "ok", OLD: "ok", HALF: "unfinished"} and folders(store) == [USED, OLD, HALF]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "done"])
def test_verify_names_what_is_damaged_and_sets_it_aside(store, damage):
    folder = store.root / "teacher_cache" / OLD
    shard = folder / "shard-000000.safetensors"
    if damage == "flip":
        shard.write_bytes(b"y" + shard.read_bytes()[1:])
    elif damage == "truncate":
        shard.write_bytes(b"x" * 100)
    elif damage == "delete":
        shard.unlink()
    else:
        (folder / "DONE.json").write_text("{")
    name = "DONE.json" if damage == "done" else shard.name
    result = cache(store, "verify")
    assert result.exit_code == 4 and f"damaged: {name}" in result.stdout and f"{OLD}.corrupt-1" in result.stderr
    assert folders(store) == [USED, OLD, f"{OLD}.corrupt-1", HALF]  # what is whole is kept; the next run makes the rest
    states = {row["key"]: row["state"] for row in json.loads(cache(store, "ls", "--json").stdout)}
    assert states[f"{OLD}.corrupt-1"] == "set aside"
    assert cache(store, "verify").exit_code == 0
    assert cache(store, "rm", f"{OLD}.corrupt-1", "--yes").exit_code == 0
    assert folders(store) == [USED, OLD, HALF]


def test_verify_leaves_a_cache_that_is_being_written_alone(store):
    with held(store, "teacher_cache", HALF):
        rows = {row["key"]: row["state"] for row in json.loads(cache(store, "verify", "--json").stdout)}
    assert rows[HALF] == "in use" and rows[USED] == "ok"


def test_rm_shows_what_would_go_and_asks(store):
    result = cache(store, "rm", OLD, told="n\n")
    assert OLD in result.stdout and "Remove 1 caches" in result.stderr and "nothing was removed" in result.stderr
    assert folders(store) == [USED, OLD, HALF]
    assert cache(store, "rm", OLD, told="y\n").exit_code == 0
    assert folders(store) == [USED, HALF]


def test_rm_unused_removes_what_no_plan_names_and_leaves_everything_else(store):
    others = sorted(path for path in store.root.rglob("*") if "teacher_cache" not in str(path))
    assert cache(store, "rm", "--unused", "--yes").exit_code == 0
    assert folders(store) == [USED]
    assert sorted(path for path in store.root.rglob("*") if "teacher_cache" not in str(path)) == others
    assert "nothing to remove" in cache(store, "rm", "--unused", "--yes").stderr


@pytest.mark.parametrize(
    "key", ["../cells", "..", ".", "", "mmm111", "../models/mmm111", "/etc", "linked", "aaa112", ".aaa111.lock"]
)
def test_rm_touches_nothing_but_caches_of_this_store(store, key, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (store.root / "teacher_cache" / "linked").symlink_to(outside)
    result = cache(store, "rm", "--yes", "--", key)
    assert result.exit_code == 2 and "has no cache" in result.stderr
    assert outside.is_dir() and (store.root / "models" / "mmm111" / "DONE.json").exists()
    assert {USED, OLD, HALF} <= set(folders(store))


def test_a_mistyped_key_gets_a_hint_and_no_key_a_usage_error(store):
    assert f"Did you mean '{USED}'" in cache(store, "rm", "aaa112", "--yes").stderr
    assert cache(store, "rm", "--yes").exit_code == 2
    assert cache(store, "rm", USED, "--unused", "--yes").exit_code == 2
    assert folders(store) == [USED, OLD, HALF]


def test_what_a_killed_removal_left_is_swept_by_the_next(store):
    left = store.root / "teacher_cache" / ".removed-1-ddd444"
    left.mkdir()
    assert len(json.loads(cache(store, "ls", "--json").stdout)) == 3
    cache(store, "rm", OLD, "--yes")
    assert not left.exists()


@pytest.mark.fault("H8", "a symlink in the place of a cache, in one, and of all caches")
def test_a_symlink_is_no_cache_and_what_it_points_to_is_not_counted(store, tmp_path):
    rows = json.loads(cache(store, "ls", "--json").stdout)
    outside = make(Store(tmp_path / "outside"), "ddd444").path
    (store.root / "teacher_cache" / "ddd444").symlink_to(outside)
    (store.entry("teacher_cache", OLD).path / "link").symlink_to(outside / "shard-000000.safetensors")
    (store.entry("teacher_cache", OLD).path / "folder").symlink_to(outside)
    found = json.loads(cache(store, "ls", "--json").stdout)
    assert [row["key"] for row in found] == [row["key"] for row in rows]
    assert all(one["bytes"] - other["bytes"] < 500 for one, other in zip(found, rows, strict=True)), (
        "a link's own bytes"
    )
    (store.root / "teacher_cache").rename(tmp_path / "moved")
    (store.root / "teacher_cache").symlink_to(tmp_path / "moved")
    assert json.loads(cache(store, "ls", "--json").stdout) == []
    assert json.loads(cache(store, "verify", "--json").stdout) == []
    assert (
        cache(store, "rm", "--unused", "--yes").exit_code == 0 and len(list((tmp_path / "moved").glob("[a-z]*"))) == 4
    )
