"""Ends at chosen moments: what is done stays done, what is missing is made, and nothing else changes.

python -m pytest tests/faults/test_moments.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch

from kdbench import failpoints
from kdbench.distill import accuracy, models, train
from kdbench.errors import OutOfMemory, StoreError
from kdbench.evaluate import harness, intrinsic
from kdbench.files import atomic_write, read_json, sha256_file
from kdbench.run.store import Store
from tests.faults.house import files_of, make, plan, steps_left


@pytest.mark.fault("A3", "an end five steps after each start, until it is done")
@pytest.mark.parametrize("arm", ["kl", "replay", "taid"])
def test_a_cell_that_dies_again_and_again_gets_further_each_time(arm, house, without, expected, record_property):
    job = house.job(arm)
    store = without(job)
    entry, steps = store.entry("cells", job.key), []
    while not entry.done():
        with failpoints.armed("step:5:crash") as point:
            try:
                make(store, job)
            except failpoints.Crash:
                steps.append(max(read_json(path)["step"] for path in entry.checkpoints.glob("*.json")))
    assert steps == [4, 8] and point.seen == 4
    assert files_of(entry) == expected[job.id]
    assert entry.done()["timing"]["attempts"] == 3
    record_property("tried", len(steps))


@pytest.mark.fault("A6", "an end as the examination begins")
def test_an_end_before_the_examination_repeats_no_step(house, without, expected):
    job = house.job("kl")
    store = without(job)
    with failpoints.armed("examine:1:crash"), pytest.raises(failpoints.Crash):
        make(store, job)
    with failpoints.armed("step:1:crash"):
        make(store, job)
    assert files_of(store.entry("cells", job.key)) == expected[job.id]


@pytest.mark.fault("A7", "an end before the second shard")
def test_a_cache_goes_on_with_the_shard_that_is_missing(house, without, expected):
    job = house.job("teacher_cache")
    store = without(job)
    folder = store.entry(job.kind, job.key).path
    with failpoints.armed("shard:2:crash"), pytest.raises(failpoints.Crash):
        make(store, job)
    listed = read_json(folder / "manifest.json")["shards"]
    assert listed == {"0": sha256_file(folder / "shard-000000.safetensors")}
    with failpoints.armed("shard:99:crash") as point:
        make(store, job)
    assert point.seen == 1 and files_of(store.entry(job.kind, job.key)) == expected[job.id]


@pytest.mark.fault("A8", "an end while MLflow's database is built")
def test_a_database_that_was_being_built_is_built_anew(tmp_path):
    from kdbench.run import tracking_place

    tracking_place.quiet_environment()
    store = Store(tmp_path)
    store.prepare()
    with failpoints.armed("database:1:crash"), pytest.raises(failpoints.Crash):
        tracking_place.prepare_database(store)
    assert not (tmp_path / "mlflow.db").exists()
    tracking_place.prepare_database(store)
    import mlflow

    assert mlflow.MlflowClient(tracking_place.tracking_uri(store)).search_experiments()


@pytest.mark.fault("C2", "a full disk when a cell is begun, and when DONE.json, scores or the history are written")
@pytest.mark.parametrize(
    ("moment", "left"), [("begin:1", 12), ("done:1", 0), ("commit:1", 0), ("examine:1", 0), ("weights:1", 0)]
)
def test_a_full_disk_is_told_and_costs_no_step(moment, left, house, without, expected):
    job = house.job("kl")
    store = without(job)
    entry = store.entry("cells", job.key)
    with failpoints.armed(f"{moment}:raise:ENOSPC"), pytest.raises(StoreError, match="No space left on device"):
        make(store, job)
    assert entry.state() in ("new", "unfinished") and entry.done() is None
    assert not list(entry.path.rglob(".tmp-*"))
    assert steps_left(store, job) == left and files_of(entry) == expected[job.id]


@pytest.mark.fault("B6", "a clock that runs backwards")
def test_a_clock_that_jumps_changes_nothing_and_no_duration_is_negative(house, without, expected, monkeypatch):
    job = house.job("kl")
    store = without(job)
    start = time.time()
    ticks = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: start - 3600.0 * next(ticks))
    make(store, job)
    entry = store.entry("cells", job.key)
    timing = entry.done()["timing"]
    assert files_of(entry) == expected[job.id]
    assert all(value >= 0 for value in timing.values())


@pytest.mark.slow
@pytest.mark.fault("B6", "a process in another time zone whose locale knows ASCII alone")
def test_a_process_of_another_locale_and_time_zone_makes_the_same_bytes(suite, house, tmp_path, expected):
    other = {"TZ": "Pacific/Kiritimati", "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "tests.faults.house", str(suite), str(tmp_path / "results")]
    ended = subprocess.run(command, env=os.environ | other, capture_output=True)
    assert ended.returncode == 0, ended.stderr.decode()
    for job in house.jobs:
        assert files_of(Store(tmp_path / "results").entry(job.kind, job.key)) == expected[job.id], job.title


@pytest.mark.fault("G1", "every job of a suite, twice")
@pytest.mark.fault("G2", "cells in the reverse order")
def test_the_same_jobs_give_the_same_bytes_in_another_order_too(house, tmp_path, expected, record_property):
    store = Store(tmp_path / "again")
    inputs, cells = ([job for job in house.jobs if (job.kind == "cells") == wanted] for wanted in (False, True))
    for job in (*inputs, *reversed(cells)):
        make(store, job)
        assert files_of(store.entry(job.kind, job.key)) == expected[job.id], job.title
    record_property("tried", len(house.jobs))


@pytest.mark.fault("G8", "another number of threads is another key")
def test_threads_are_part_of_every_key(suite, house, tmp_path):
    other = tmp_path / "two.yaml"
    other.write_text(suite.read_text() + "threads: 2\n", encoding="utf-8")
    assert not {job.key for job in plan(other).jobs if job.kind == "cells"} & {job.key for job in house.jobs}


@pytest.mark.fault("G9", "a byte of the data changed: another key, and a run that was planned before refuses")
def test_data_that_changed_is_another_key_and_is_never_mixed(suite, house, tmp_path, corpus_folder):
    folder = tmp_path / "corpus"
    for path in corpus_folder.glob("*.txt"):
        atomic_write(folder / path.name, path.read_bytes())
    mine = tmp_path / "mine.yaml"
    mine.write_text(suite.read_text().replace(str(corpus_folder), str(folder)), encoding="utf-8")
    before = plan(mine)
    assert [job.key for job in before.jobs] == [job.key for job in house.jobs], "a path is no part of a key"
    first = min(folder.glob("doc-0*.txt"))
    atomic_write(first, first.read_text(encoding="utf-8").replace("The", "Tha", 1))
    after = plan(mine)
    assert not {job.key for job in after.jobs} & {job.key for job in before.jobs}
    planned, now = (one.job("tokenizers").inputs["corpus"] for one in (before, after))
    message = rf"the text has changed since this run was planned \(planned {planned[:12]}, found {now[:12]}\)"
    with pytest.raises(Exception, match=message):
        make(Store(tmp_path / "r"), before.job("tokenizers"))


@pytest.mark.fault("G11", "another version of torch is another key")
def test_versions_are_part_of_a_cell_s_key(suite, house, monkeypatch):
    from kdbench.run import jobs

    known = jobs._version
    monkeypatch.setattr(jobs, "_version", lambda name: "99.0" if name == "torch" else known(name))
    assert not {job.key for job in plan(suite).jobs if job.kind == "cells"} & {job.key for job in house.jobs}


@pytest.mark.fault("G10", "an edited objective is another key, and the plan says so; the other objectives keep theirs")
def test_an_edited_objective_is_another_key_and_said(suite, house, tmp_path):
    code = (
        'from kdbench.api import Objective, Source\n\n\nclass Mine(Objective):\n    """Mine."""\n\n'
        '    name = "mine"\n    source = Source(title="x", year=2026)\n    needs_teacher = False\n\n'
        '    def terms(self, student, teacher, tokens):\n        return {"mine": -student.log_prob_target}\n'
    )
    from kdbench.run import orchestrate
    from kdbench.suite import loader
    from kdbench.suite.schema import Suite
    from tests.conftest import call

    found, why = [], []
    mine = tmp_path / "mine.yaml"
    mine.write_text(suite.read_text().replace("- kl\n", "- kl\n- mine\n"), encoding="utf-8")
    for text in (code, code.replace("-student", "-2 * student")):
        atomic_write(tmp_path / "plugins" / "mine.py", text)
        asked = ("plan", mine, "--json", "--objectives-dir", tmp_path / "plugins", "--results-dir", tmp_path / "r")
        result = call(*asked)
        assert result.exit_code == 0, result.output
        cells = json.loads(result.stdout)["cells"]
        found.append({cell["objective"]: cell["key"] for cell in cells})
        why.append({cell["objective"]: cell["why"] for cell in cells})
        if len(found) == 1:
            store = Store(tmp_path / "r")
            assert not store.root.exists(), "a plan writes nothing"
            chosen = loader.validate(Suite, loader.parse(mine))
            orchestrate.write_plan(orchestrate.plan(chosen, tmp_path, store), store, [])
    assert found[0]["mine"] != found[1]["mine"] and found[0]["kl"] == found[1]["kl"] == house.job("kl").key
    assert why[1]["mine"] == "changed: the objective's code" and why[1]["kl"] == "new"


def short(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.fault("F1", "a cell whose batch does not fit: cut, and DONE.json says so")
def test_a_cell_whose_batch_was_cut_says_so(house, without, expected, monkeypatch):
    job, whole = house.job("kl"), train.backward

    def backward(model, objective, batch, tokens, micro_batch, *rest):
        return whole(model, objective, batch, tokens, micro_batch, *rest) if (micro_batch or 4) < 3 else short()

    monkeypatch.setattr(train, "backward", backward)
    done = make(without(job), job)
    assert done["status"] == "ok" and done["micro_batches_cut"] == [{"rows": 2, "from_step": 1}]


@pytest.mark.fault(
    "F2", "no memory in any part of a job: stored as failed, with sizes where they are known, and advice"
)
@pytest.mark.parametrize(
    ("title", "module", "name", "said"),
    [
        ("kl", train, "clip", r"a training step does not fit \([\d,]+ parameters"),
        ("written", train, "write", r"a training step does not fit \([\d,]+ parameters"),
        ("kl", models, "load", "kl · small ← big · seed 0 does not fit"),
        ("kl", harness, "examine", r"the examination does not fit \([\d,]+ parameters"),
        ("kl", intrinsic, "examine", r"the examination does not fit \([\d,]+ parameters"),
        ("teacher_cache", accuracy, "measure", r"teacher cache.* does not fit"),
    ],
)
def test_a_job_without_memory_is_stored_as_failed_with_advice(title, module, name, said, house, without, monkeypatch):
    job = house.job(title)
    store = without(job)
    monkeypatch.setattr(module, name, short)
    with pytest.raises(OutOfMemory):
        make(store, job)
    done = store.entry(job.kind, job.key).done()
    assert done["status"] == "failed"
    assert re.match(rf"out of memory: {said}.*CUDA out of memory.*; set train\.", done["reason"]), done["reason"]


@pytest.mark.fault("H7", "names of suites, models and jobs that would leave the results folder")
@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", "a\\0b", "..", ".hidden", "n" * 300])
def test_a_name_never_leads_out_of_the_results_folder(name, suite, tmp_path):
    from kdbench.errors import ConfigError

    for old, new in (("name: faults", f'name: "{name}"'), ("  small:", f'  "{name}":')):
        mine = tmp_path / "mine.yaml"
        mine.write_text(suite.read_text().replace(old, new, 1), encoding="utf-8")
        with pytest.raises(ConfigError):
            plan(mine)
    if name.isalnum():
        assert Store(tmp_path).entry("cells", name).path.parent == tmp_path / "cells"
    else:
        with pytest.raises(AssertionError):
            Store(tmp_path).entry("cells", name)
