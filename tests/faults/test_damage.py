"""Files that are cut, flipped, gone, moved or in the way: found before use, said, made again with the same bytes.

python -m pytest tests/faults/test_damage.py
"""

from __future__ import annotations

import random
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench import failpoints
from kdbench.errors import StoreError
from kdbench.files import SUM, atomic_write
from kdbench.run.display import _ending
from kdbench.run.store import Store
from tests.faults.house import files_of, link_tree, make

LIMIT = 12_000  # bytes; a checkpoint is larger


@pytest.fixture
def copy(undisturbed, tmp_path):
    """A store of one's own, whole."""
    link_tree(undisturbed.root, tmp_path / "results")
    return Store(tmp_path / "results")


def rewrite(path: Path, content: bytes) -> None:
    """Change a file without changing the one it was linked from."""
    path.unlink()
    path.write_bytes(content)


def made_again(store, job, expected) -> bool:
    make(store, job)
    return files_of(store.entry(job.kind, job.key)) == expected[job.id]


@pytest.mark.fault("C5", "a bit at random offsets of every file that a store lists")
def test_a_flipped_bit_anywhere_is_found_before_use(copy, house, record_property):
    rng, times = random.Random(0), 0
    for job in house.jobs:
        entry = copy.entry(job.kind, job.key)
        for name in entry.done()["files"]:
            path, content = entry.path / name, (entry.path / name).read_bytes()
            for _ in range(3 if content else 0):
                bad = bytearray(content)
                bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
                rewrite(path, bytes(bad))
                with pytest.raises(StoreError, match=re.escape(f"{path} is damaged")):
                    entry.verified()
                times += 1
            rewrite(path, content)
        assert entry.verified()
    record_property("tried", times)
    assert times > 150


@pytest.mark.fault("C5", "every seventh bit of a cell's DONE.json: refused, or it says the same")
def test_a_flipped_bit_of_done_json_never_says_anything_else(copy, house, record_property):
    entry = copy.entry("cells", house.job("kl").key)
    path, told = entry.path / "DONE.json", entry.done()
    content, whole = path.read_bytes(), {name: value for name, value in told.items() if name != SUM}
    for bit in range(0, 8 * len(content), 7):
        bad = bytearray(content)
        bad[bit // 8] ^= 1 << bit % 8
        rewrite(path, bytes(bad))
        found = entry.done()
        assert found is None or all(found[name] == value for name, value in whole.items()), bit
    record_property("tried", len(range(0, 8 * len(content), 7)))


@pytest.mark.fault("C4", "a shard, a weight file, scores and DONE.json, cut by a byte, by half, to nothing")
@pytest.mark.parametrize("keep", [-1, 0.5, 0])
@pytest.mark.parametrize(("title", "name"), [
    ("teacher_cache", "shard-000001.safetensors"), ("teacher_cache", "manifest.json"), ("kl", "DONE.json"),
    ("kl", "samples.parquet"), ("kl", "model/model.safetensors"),
])  # fmt: skip
def test_a_file_that_is_cut_is_found_and_made_again(keep, title, name, copy, house, expected):
    job = house.job(title)
    path = copy.entry(job.kind, job.key).path / name
    content = path.read_bytes()
    rewrite(path, content[: -1 if keep == -1 else int(len(content) * keep)])
    if name != "DONE.json" or keep != -1:  # the last byte of DONE.json is its newline, which says nothing
        assert copy.entry(job.kind, job.key).state() == "damaged"
    assert made_again(copy, job, expected)


@pytest.mark.fault("C6", "metrics.jsonl cut in its last line")
def test_a_torn_last_line_of_a_history_is_never_read_as_a_shorter_history(copy, house, expected):
    job = house.job("kl")
    entry = copy.entry("cells", job.key)
    rewrite(entry.path / "metrics.jsonl", (entry.path / "metrics.jsonl").read_bytes()[:-20])
    assert entry.state() == "damaged" and made_again(copy, job, expected)
    assert len((entry.path / "metrics.jsonl").read_text().splitlines()) == 12


@pytest.mark.fault("C5", "a bit of a finished cell's scores: the next run makes it again")
def test_a_cell_with_damaged_scores_is_planned_and_made_again(copy, house, suite, expected):
    from kdbench.run import orchestrate
    from kdbench.suite import loader
    from kdbench.suite.schema import Suite

    job = house.job("kl")
    path = copy.entry("cells", job.key).path / "samples.parquet"
    rewrite(path, path.read_bytes()[:-1] + b"?")
    plan = orchestrate.plan(loader.validate(Suite, loader.parse(suite)), suite.parent, copy)
    why = {one.cell.arm: one.why for one in plan.cells}
    assert why["kl"] == "damaged on disk: set aside and made again" and why["replay"] == ""
    assert [one.id for one in plan.to_run({})] == [job.id]
    assert made_again(copy, job, expected)
    assert copy.entry("cells", f"{job.key}").path.with_name(f"{job.key}.corrupt-1").is_dir()


@pytest.mark.fault("C7", "a shard, a checkpoint or a model that vanishes")
@pytest.mark.parametrize("what", ["shard", "checkpoint", "model"])
def test_what_vanishes_is_made_again_and_nothing_else(what, copy, house, expected):
    job = house.job("teacher_cache" if what == "shard" else "kl")
    entry, untouched = copy.entry(job.kind, job.key), stamps(copy)
    if what == "shard":
        (entry.path / "shard-000001.safetensors").unlink()
    elif what == "model":
        (entry.path / "model" / "model.safetensors").unlink()
    else:
        shutil.rmtree(entry.path)
        with failpoints.armed("step:10:crash"), pytest.raises(failpoints.Crash):
            make(copy, job)
        max(entry.checkpoints.glob("*.safetensors")).unlink()
    with failpoints.armed("shard:99:crash" if what == "shard" else "step:99:crash") as point:
        assert made_again(copy, job, expected)
    assert point.seen == {"shard": 1, "checkpoint": 8, "model": 12}[what]
    assert {path: stamp for path, stamp in stamps(copy).items() if entry.key not in str(path)} == {
        path: stamp for path, stamp in untouched.items() if entry.key not in str(path)
    }


def stamps(store):
    """When each file of a store was last written, but for locks."""
    found = (path for path in store.root.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path: path.stat().st_mtime_ns for path in found}


@pytest.mark.fault("C7", "a file of each thing that a cell needs, gone or flipped: named, set aside, made again")
@pytest.mark.parametrize("how", ["gone", "flipped"])
@pytest.mark.parametrize("kind", ["tokenizers", "texts", "tasks", "teacher_cache", "models"])
def test_a_need_that_is_damaged_is_named_set_aside_and_made_again(kind, how, copy, house, expected):
    job = house.job("kl")
    shutil.rmtree(copy.entry("cells", job.key).path)
    for need in [one for one in house.jobs if one.kind == kind]:
        entry = copy.entry(need.kind, need.key)
        path = entry.path / max(entry.done()["files"], key=lambda name: entry.done()["files"][name]["bytes"])
        content = path.read_bytes()
        path.unlink() if how == "gone" else rewrite(path, content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(StoreError, match=re.escape(str(entry.path))):
            make(copy, job)
        assert entry.path.with_name(f"{entry.key}.corrupt-1").is_dir() and entry.state() in ("new", "unfinished")
        assert made_again(copy, need, expected)
    assert made_again(copy, job, expected)


@pytest.mark.fault("A9", "the newest files of a training, empty though their marker stands")
@pytest.mark.parametrize("length", [0, 100])
def test_a_checkpoint_whose_bytes_were_lost_gives_way_to_the_one_before(length, without, house, expected):
    job = house.job("replay")
    store = without(job)
    entry = store.entry("cells", job.key)
    with failpoints.armed("step:10:crash"), pytest.raises(failpoints.Crash):
        make(store, job)
    newest = max(entry.checkpoints.glob("*.safetensors"))
    newest.write_bytes(b"\0" * length)
    with failpoints.armed("step:99:crash") as point:
        done = make(store, job)
    assert point.seen == 8, "went on from the checkpoint at step 4"
    assert files_of(entry) == expected[job.id]
    assert "1 damaged checkpoints were set aside" in _ending({"event": "finished", "done": done})


@pytest.mark.fault("A9", "files of libraries that were cut off while they were written, and their temporary ones")
@pytest.mark.parametrize("title", ["tokenizers", "texts", "tasks", "model big", "teacher_cache", "kl"])
def test_what_a_library_had_half_written_is_written_anew(title, without, house, expected):
    job = house.job(title)
    store = without(job)
    entry = store.entry(job.kind, job.key)
    with failpoints.armed("commit:1:crash"), pytest.raises(failpoints.Crash):
        make(store, job)
    files = [path for path in entry.path.rglob("*") if path.is_file() and entry.checkpoints not in path.parents]
    for path in files:
        rewrite(path, path.read_bytes()[: path.stat().st_size // 2])
        (path.parent / ".tmpQe9Nim").write_bytes(b"\0" * 100)  # as safetensors calls its own
    assert made_again(store, job, expected)


@pytest.mark.fault("C8", "a shard replaced, and its name removed, while it is mapped")
def test_a_reader_keeps_the_bytes_it_has_mapped(tmp_path):
    import torch
    from safetensors.torch import load_file, save

    path = tmp_path / "shard.safetensors"
    atomic_write(path, save({"x": torch.ones(1 << 16)}))
    mapped = load_file(path)["x"]
    atomic_write(path, save({"x": torch.zeros(8)}))
    assert float(mapped.sum()) == 1 << 16
    path.unlink()
    assert float(mapped.sum()) == 1 << 16


@pytest.mark.fault("C10", "spaces, unicode, a long name, a symlinked folder")
@pytest.mark.parametrize("name", ["with space and é 漢字", "n" * 200, "link"])
def test_a_results_folder_may_have_any_name(name, undisturbed, house, tmp_path, expected):
    root = tmp_path / name
    if name == "link":
        (tmp_path / "real").mkdir()
        root.symlink_to(tmp_path / "real")
    link_tree(undisturbed.root, root)
    job = house.job("kl")
    shutil.rmtree(Store(root).entry("cells", job.key).path)
    assert made_again(Store(root), job, expected)


WRITER = """
import sys
from pathlib import Path
from kdbench.files import atomic_write
from kdbench.run.locks import Busy
from kdbench.run.store import Store
store = Store(Path(sys.argv[1]))
for number in range(50):
    entry = store.entry("cells", f"{sys.argv[2] if number % 2 else 'all'}x{number}")
    try:
        with entry.locked():
            if entry.done() is None:
                entry.begin({"number": number})
                atomic_write(entry.path / "x", str(number) * 100)
                entry.commit("ok", {}, by=sys.argv[2])
    except Busy:
        pass
"""


@pytest.mark.fault("D2", "eight processes commit 50 entries each, every second one the same")
@pytest.mark.fault("D5", "a reader that scans the store all the while")
def test_eight_processes_commit_and_a_reader_never_sees_half_an_entry(tmp_path, record_property):
    store = Store(tmp_path)
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, str(number)]) for number in range(8)]
    try:
        while any(writer.poll() is None for writer in writers):
            for path in (tmp_path / "cells").glob("[!.]*"):
                entry = store.entry("cells", path.name)
                assert entry.state() in ("ok", "unfinished", "new")
                assert entry.done() is None or entry.verified()
    finally:
        for writer in writers:
            writer.wait()
    assert [writer.returncode for writer in writers] == [0] * 8
    found = [store.entry("cells", path.name) for path in (tmp_path / "cells").glob("[!.]*")]
    assert len(found) == 8 * 25 + 25
    for entry in found:
        number = entry.key.split("x")[1]
        assert entry.verified()["status"] == "ok" and (entry.path / "x").read_text() == number * 100
    record_property("tried", 400)


@pytest.mark.fault("D9", "no fork of ours")
def test_nothing_forks():
    """A start method other than spawn, or an API that takes the platform's default, which is fork on Linux."""
    default = r"os\.fork|ProcessPoolExecutor|multiprocessing\.(Process|Pool|Queue|Pipe|Manager|Value|Array)\b"
    other = r"(get_context\(|start_method=)(?!\"spawn\")"
    for path in (Path(failpoints.__file__).parent).rglob("*.py"):
        text = path.read_text()
        assert not re.search(f"{default}|{other}", text), path
        assert text.count("start_processes(") == text.count("start_method="), path  # its default may change


@pytest.mark.fault("C1", "files that may not grow (RLIMIT_FSIZE): weights cannot be saved")
def test_a_disk_that_takes_no_more_is_told_and_the_next_run_goes_on(house, without, expected):
    job = house.job("kl")
    store = without(job)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        with pytest.raises(StoreError, match=r"cannot write .*File too large"):
            make(store, job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.entry("cells", job.key).state() == "unfinished"
    assert made_again(store, job, expected)
