"""What was saved of an unfinished job stays saved, is used only if it verifies, and is on the disk before its marker.

python -m pytest tests/faults/test_progress.py
"""

from __future__ import annotations

import os
import random
import resource
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from kdbench import failpoints
from kdbench.distill import checkpoint
from kdbench.errors import StoreError
from kdbench.files import sha256_file
from kdbench.run.store import Store
from tests.faults.house import files_of, link_tree, make, steps_left

EVERY = 4  # steps between two checkpoints of the house's suite


def stopped(store, job, moment):
    """Let a job end at a moment; return its entry."""
    with failpoints.armed(f"{moment}:crash"), pytest.raises(failpoints.Crash):
        make(store, job)
    return store.entry(job.kind, job.key)


@pytest.mark.fault("C5", "a bit at random offsets of every file of an unfinished job")
@pytest.mark.parametrize("flips", [1, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("title", "moment"), [
    ("taid", "step:10"), ("replay", "step:10"), ("teacher_cache", "shard:2"), ("model big", "step:3"),
])  # fmt: skip
def test_a_flipped_bit_in_what_is_unfinished_changes_no_result(title, moment, flips, house, without, tmp_path, expected,
                                                               record_property):  # fmt: skip
    job, rng, times = house.job(title), random.Random(flips), 0
    entry = stopped(without(job), job, moment)
    for path in sorted(path for path in entry.path.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for _ in range(flips):
            link_tree(entry.path.parent.parent, tmp_path / "copy")
            copy = tmp_path / "copy" / path.relative_to(entry.path.parent.parent)
            bad = bytearray(content)
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
            copy.unlink()
            copy.write_bytes(bad)
            store = Store(tmp_path / "copy")
            make(store, job)
            assert files_of(store.entry(job.kind, job.key)) == expected[job.id], f"{path.name}: {content} → {bad}"
            shutil.rmtree(tmp_path / "copy")
            times += 1
    record_property("tried", times)


@pytest.mark.fault("A3", "an end at every moment that touches a checkpoint: none is lost, at most one step interval is")
@pytest.mark.parametrize(
    "name",
    ["checkpoint", "done", "commit",
     *(pytest.param(name, marks=pytest.mark.slow) for name in ("prune", "drop", "write", "synced", "replaced"))],
)  # fmt: skip
def test_an_end_at_any_moment_costs_no_more_than_the_steps_since_the_last_checkpoint(
    name, house, without, expected, record_property
):
    job, number = house.job("replay"), 1
    while True:
        store = without(job, name=f"at-{number}")
        with failpoints.armed(f"{name}:{number}:crash") as point, suppress(failpoints.Crash):
            make(store, job)
        if point.seen < number:
            break
        entry = store.entry("cells", job.key)
        told = [int(path.stem.split("-")[1]) for path in entry.checkpoints.glob("step-*.safetensors")]
        left = steps_left(store, job)
        assert files_of(entry) == expected[job.id] and not entry.checkpoints.exists()
        assert left <= 12 - max(told, default=0) + EVERY, (number, told, left)
        assert left == 0 or name not in ("done", "drop", "commit"), "what is trained is not trained again"
        number += 1
    record_property("tried", number - 1)
    assert number > 1


@pytest.mark.fault("A1", "what the last checkpoint holds, optimiser and history too, after three ends and after none")
@pytest.mark.parametrize("title", ["kl", pytest.param("replay", marks=pytest.mark.slow), "taid"])
def test_a_training_that_was_cut_off_ends_in_the_same_checkpoint(title, house, without):
    job, kept = house.job(title), []
    for name, moments in (("whole", ()), ("cut off", ("step:3", "step:6", "step:7"))):
        store = without(job, name=name)
        for moment in (*moments, "commit:1"):
            entry = stopped(store, job, moment)
        files = {path.name: sha256_file(path) for path in entry.checkpoints.glob("step-*.safetensors")}
        kept.append((files, checkpoint.load(entry.checkpoints).history))
    assert kept[0] == kept[1] and "step-00000012.safetensors" in files
    assert any("exp_avg_sq" in key for key in checkpoint.load(entry.checkpoints).tensors)


@pytest.mark.fault("C1", "files that may not grow, once training is over: the weights cannot be saved")
def test_weights_that_find_no_room_cost_no_step(house, without, expected):
    job = house.job("kl")
    store = without(job)
    entry = stopped(store, job, "weights:1")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, before[1]))
    try:
        with pytest.raises(StoreError, match=r"cannot write .*make room"):
            make(store, job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert entry.state() == "unfinished" and checkpoint.load(entry.checkpoints).step == 12
    assert steps_left(store, job) == 0 and files_of(entry) == expected[job.id]


@pytest.mark.fault("A9", "the order of every sync and rename of a cell: data and its folder before what vouches for it")
def test_nothing_vouches_for_bytes_that_are_not_on_the_disk_yet(house, without, monkeypatch):
    job, log = house.job("kl"), []
    store = without(job)
    sync, rename = os.fsync, os.replace

    def fsync(descriptor):
        log.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def replace(source, target):
        assert ("sync", str(source)) in log, "a file gets its name after its bytes are on the disk"
        log.append(("name", str(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    done = make(store, job)
    entry = store.entry("cells", job.key)
    place = {item: index for index, item in enumerate(log)}  # the last time of each
    vouched = place["name", str(entry.path / "DONE.json")]
    for name in done["files"]:
        path = entry.path / name
        assert place["sync", str(path)] < vouched, name
        assert any(index < vouched for index, item in enumerate(log) if item == ("sync", str(path.parent))), name
    assert place["sync", str(entry.path)] > vouched
    markers = [Path(path) for what, path in log if what == "name" and Path(path).name.startswith("step-")]
    assert [path.suffix for path in markers] == [".safetensors", ".json"] * 3
    for tensors, marker in zip(markers[::2], markers[1::2], strict=True):
        between = log[place["name", str(tensors)] : place["name", str(marker)]]
        assert ("sync", str(entry.checkpoints)) in between
