"""The store: complete or not there, never edited, never silently wrong.

python -m pytest tests/run/test_store.py
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdbench import failpoints
from kdbench.errors import StoreError
from kdbench.files import atomic_write, write_json
from kdbench.run.clock import Clock, train_seconds
from kdbench.run.locks import Busy, held, lock_path
from kdbench.run.store import Store


@pytest.fixture
def entry(tmp_path):
    return Store(tmp_path / "results").entry("cells", "abc123")


def commit(entry, status="ok", **files):
    entry.begin({"a": 1})
    for name, text in files.items():
        atomic_write(entry.path / name, text)
    entry.commit(status, Clock().facts())


def test_an_entry_is_incomplete_until_done_is_written(entry):
    assert entry.state() == "new"
    entry.begin({"a": 1})
    atomic_write(entry.path / "x", "1")
    assert entry.state() == "unfinished" and entry.done() is None
    entry.commit("ok", {})
    assert entry.state() == "ok" and set(entry.done()["files"]) == {"inputs.json", "x"}


@pytest.mark.parametrize("name", ["x", "inputs.json"])
@pytest.mark.fault("C5", "a bit of an entry's file")
def test_a_flipped_bit_is_found_before_use(entry, name):
    commit(entry, x="hello")
    data = bytearray((entry.path / name).read_bytes())
    data[1] ^= 4
    (entry.path / name).write_bytes(bytes(data))
    with pytest.raises(StoreError, match="damaged"):
        entry.verified()


@pytest.mark.fault("C5", "a number in DONE.json: its own sum tells")
@pytest.mark.parametrize(("old", "new"), [("started_at", "started_af"), ('"rate": 1.5', '"rate": 1.7'), ("7", "6")])
def test_a_number_that_was_changed_in_done_json_is_damage(entry, old, new):
    entry.begin({"a": 1})
    entry.commit("ok", Clock().facts() | {"started_at": 7}, rate=1.5, rows={3: 8})
    done = entry.path / "DONE.json"
    assert entry.verified()["rows"] == {"3": 8}
    text = done.read_text()
    assert old in text
    done.write_text(text.replace(old, new, 1))
    assert entry.state() == "damaged" and not entry.is_whole()


@pytest.mark.fault("H8", "an entry, its checkpoints or its model lead out of the store")
@pytest.mark.parametrize("place", ["", "ckpt", "model", "tokenizer/tokenizer.json"])
def test_nothing_is_written_through_a_symlink(entry, tmp_path, place):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / ".tmp-1-00000000").write_text("mine")
    link = entry.path / place if place else entry.path
    link.parent.mkdir(parents=True)
    link.symlink_to(outside, target_is_directory=True)
    entry.begin({"a": 1})
    assert [path.name for path in outside.iterdir()] == [".tmp-1-00000000"]
    assert entry.state() == "unfinished" and not entry.path.is_symlink()


@pytest.mark.parametrize("damage", ["truncate", "delete", "done truncated", "done foreign key", "done is a list"])
@pytest.mark.fault("C4", "a file or DONE.json cut, deleted or of another key")
def test_what_is_not_whole_counts_as_damaged_and_is_set_aside(entry, damage):
    commit(entry, x="hello")
    done = entry.path / "DONE.json"
    if damage == "truncate":
        (entry.path / "x").write_text("hell")
    elif damage == "delete":
        (entry.path / "x").unlink()
    elif damage == "done truncated":
        done.write_text(done.read_text()[:40])
    elif damage == "done is a list":
        done.write_text("[]")
    else:
        done.write_text(json.dumps(json.loads(done.read_text()) | {"key": "other"}))
    assert entry.state() == "damaged" and entry.done() is None
    entry.begin({"a": 1})
    assert entry.state() == "unfinished"
    assert entry.path.with_name("abc123.corrupt-1").is_dir()


def test_a_failed_entry_is_tried_again_and_a_diverged_one_is_final(entry, tmp_path):
    commit(entry, "failed")
    entry.begin({"a": 1})
    assert entry.state() == "unfinished"
    other = Store(tmp_path).entry("cells", "def")
    commit(other, "diverged")
    assert other.state() == "diverged"


def test_the_commit_drops_checkpoints_and_keeps_wall_clock_apart(entry):
    entry.begin({})
    atomic_write(entry.checkpoints / "step-1.json", "{}")
    entry.commit("ok", {"wall_s": 1.5})
    assert not entry.checkpoints.exists()
    assert entry.done()["timing"] == {"wall_s": 1.5, "attempts": 1}


@pytest.mark.fault("A3", "the number of attempts through ends, failures, damage and a count that is damaged itself")
def test_an_entry_knows_how_often_work_on_it_was_begun(entry):
    def attempts(status="ok"):
        entry.commit(status, {})
        return entry.done()["timing"]["attempts"]

    for _ in range(3):
        entry.begin({})
    assert attempts("failed") == 3
    entry.begin({})
    assert attempts() == 4 and list(entry.done()["files"]) == ["inputs.json"]
    (entry.path / "inputs.json").unlink()
    entry.begin({})
    (entry.checkpoints / "attempts").write_text("²")
    entry.begin({})
    assert attempts() == 1, "what was set aside is another entry, and a count that cannot be read begins anew"


@pytest.mark.fault("A3", "an end while a failed entry is begun again: the count goes on")
def test_an_end_before_a_failed_entry_is_begun_again_loses_no_attempt(entry):
    for _ in range(3):
        entry.begin({})
    entry.commit("failed", {})
    with failpoints.armed("write:1:crash"), pytest.raises(failpoints.Crash):
        entry.begin({})
    entry.begin({})
    entry.commit("ok", {})
    assert entry.done()["timing"]["attempts"] == 4


@pytest.mark.fault("C9", "files of an editor and of the system in an entry that is being made: no part of it")
def test_hidden_files_are_no_part_of_an_entry_and_stay(entry):
    entry.begin({})
    mine = [".inputs.json.swp", "model/.nfs0001", ".tmp-mine/x", ".DS_Store"]
    for name in mine:
        atomic_write(entry.path / name, "mine")
    entry.begin({})
    entry.commit("ok", {})
    assert [*entry.done()["files"]] == ["inputs.json"]
    assert all((entry.path / name).read_text() == "mine" for name in mine)


@pytest.mark.fault("D1", "who holds an entry is said: process and host")
def test_who_makes_an_entry_is_said(entry):
    entry.begin({})
    with entry.locked(), pytest.raises(Busy, match=rf"being made by process {os.getpid()} on \S+$"), entry.locked():
        pass


def test_temporary_files_of_a_killed_writer_are_removed_by_the_next(entry):
    entry.begin({})
    (entry.path / ".tmp-99-dead").write_text("half")
    entry.begin({})
    assert not list(entry.path.glob(".tmp-*"))


@pytest.mark.fault("H8", "a suite's folder, its report or its tasks lead out of the store: nothing is written through")
@pytest.mark.parametrize("name", ["", "report", "lm_eval_tasks"])
def test_nothing_of_a_suite_is_written_through_a_symlink(tmp_path, name):
    store, outside = Store(tmp_path / "results"), tmp_path / "outside"
    outside.mkdir()
    place = store.suite_folder("mine") / name
    place.parent.mkdir(parents=True)
    place.symlink_to(outside)
    with pytest.raises(StoreError, match="is a symlink, and nothing is written through one"):
        store.suite_folder("mine")


@pytest.mark.fault("D3", "SIGKILL of the holder: free at once")
@pytest.mark.fault("D4", "the holder lives: refused")
def test_a_lock_is_refused_while_held_and_free_at_once_when_its_holder_is_killed(entry):
    entry.begin({})
    code = (
        "import sys,time;from pathlib import Path;from kdbench.run.store import Store\n"
        f"e=Store(Path({str(entry.path.parent.parent)!r})).entry('cells','abc123')\n"
        "with e.locked():\n print('held',flush=True);time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Busy), entry.locked():
        pass
    holder.kill()
    holder.wait()
    begin = time.monotonic()
    with entry.locked(wait_s=5):
        assert time.monotonic() - begin < 1
    holder.stdout.close()


@pytest.mark.fault("E11", "refused when written")
def test_numbers_that_are_not_finite_are_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("C1", "a write that cannot be synced")
def test_a_full_disk_is_one_clear_error_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    atomic_write(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write .*x \(3 bytes\): No space left"):
        atomic_write(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.fault("C3", "a disk that takes neither a file nor the removal of one (EROFS)")
def test_a_disk_that_is_read_only_is_one_clear_error(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("builtins.open", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(StoreError, match=r"cannot write .*Read-only file system"):
        atomic_write(tmp_path / "x", "1")


def test_a_results_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        Store(tmp_path / "file" / "results").prepare()


@pytest.mark.fault("C3", "a part of the store that is none, or leads elsewhere: said before any work")
@pytest.mark.parametrize("what", ["file", "link"])
@pytest.mark.parametrize("part", ["cells", "models", "suites"])
def test_a_part_of_the_store_that_cannot_be_written_is_named_before_any_work(tmp_path, part, what):
    store = Store(tmp_path / "results")
    store.prepare()
    (tmp_path / "elsewhere").mkdir()
    place = store.root / part
    place.write_text("") if what == "file" else place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=rf"cannot write .*{part}/\.tmp|{part} is a symlink"):
        store.prepare()
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.fault("C11", "a store under another name")
def test_a_moved_store_reads_as_before(entry, tmp_path):
    commit(entry, x="hello")
    os.rename(tmp_path / "results", tmp_path / "élsewhere with space")
    assert Store(tmp_path / "élsewhere with space").entry("cells", "abc123").verified()["status"] == "ok"


@pytest.mark.fault("C7", "a file that cannot be read, or is gone between two looks: damage, not a traceback")
@pytest.mark.parametrize("error", [PermissionError, FileNotFoundError, OSError])
def test_a_file_that_cannot_be_read_is_damaged(entry, monkeypatch, error):
    commit(entry, x="1")

    def refuse(path):
        raise error(5, "no", str(path))

    monkeypatch.setattr("kdbench.run.store.sha256_file", refuse)
    assert not entry.is_whole()
    with pytest.raises(StoreError, match="is damaged"):
        entry.verified()


@pytest.mark.fault("C3", "something else in the place of a lock: one error for who would write, nothing for who looks")
@pytest.mark.parametrize("what", ["folder", "link"])
def test_a_lock_that_is_none_is_one_error(entry, tmp_path, what):
    commit(entry, x="1")
    lock = lock_path(entry.path)
    lock.unlink(missing_ok=True)
    lock.mkdir() if what == "folder" else lock.symlink_to(tmp_path)
    assert not held(entry.path)
    with pytest.raises(StoreError, match="cannot lock"), entry.locked():
        pass


def test_two_processes_of_one_number_may_prove_at_once_that_a_store_can_be_written(tmp_path, monkeypatch):
    """Containers often give their processes equal numbers."""
    seen = []
    monkeypatch.setattr("kdbench.run.store.atomic_write", lambda path, data: seen.append(path) or path.touch())
    Store(tmp_path).prepare()
    Store(tmp_path).prepare()
    assert len(set(seen)) == 2


def test_the_seconds_of_a_training_that_was_resumed_are_worked_out_from_what_was_timed():
    def seconds(steps, **timing):
        return train_seconds({"steps": steps, "timing": timing})

    assert seconds(12, train_s=6.0, train_steps=12) == 6.0 and seconds(12, train_s=6.0, train_steps=3) == 24.0
    assert seconds(12, train_s=0.2, train_steps=0) is None and seconds(12) is None
    assert train_seconds({"timing": {"train_s": 6.0}}) == 6.0, "of before that was noted"


@pytest.mark.fault("E11", "numbers in DONE.json that are none")
@pytest.mark.parametrize("wall", ["1e999", "NaN", '"long"', "null", "1" + "0" * 400])
def test_a_timing_that_is_no_number_is_damage(entry, wall):
    commit(entry, x="1")
    path = entry.path / "DONE.json"
    done = json.loads(path.read_text())
    del done["sha256"]
    text = json.dumps(done)
    path.write_text(text.replace(f'"wall_s": {json.dumps(done["timing"]["wall_s"])}', f'"wall_s": {wall}'))
    assert entry.state() == "damaged"
