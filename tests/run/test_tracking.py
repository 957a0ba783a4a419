"""MLflow is a mirror: complete, idempotent, and never in the way.

python -m pytest tests/run/test_tracking.py
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlparse

import pytest

from kdbench.files import atomic_write
from kdbench.run import plans, tracking, tracking_place
from kdbench.run.exporter import Exporter
from kdbench.run.store import Store
from tests.conftest import call, kdbench


def runs(results):
    tracking_place.quiet_environment()
    import mlflow

    client = mlflow.MlflowClient(tracking_place.tracking_uri(Store(results)))
    experiment = client.get_experiment_by_name("tiny")
    return client, client.search_runs([experiment.experiment_id], max_results=1000)


def snapshot(results):
    client, found = runs(results)
    points = {
        (run.info.run_name, name): len(client.get_metric_history(run.info.run_id, name))
        for run in found
        for name in run.data.metrics
    }
    return {run.info.run_id: run.info.status for run in found}, points


def test_cells_are_children_of_the_invocation_with_curves_scores_and_cost(world):
    _, _, results, _ = world
    client, found = runs(results)
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    assert len(parents) == 1 and len(children) == 13
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert {run.info.status for run in found} == {"FINISHED"}
    cell = next(run for run in children if run.data.tags["kdbench.objective"] == "atkd")
    assert {"train/loss", "train/loss/tkd", "train/loss/dkd", "eval/swap/acc", "held_out/nats_per_token"} <= set(
        cell.data.metrics
    )
    assert {"cost/wall_seconds", "cost/peak_memory_mib", "cost/tokens_per_second"} <= set(cell.data.metrics)
    assert [point.step for point in client.get_metric_history(cell.info.run_id, "train/loss")] == list(range(1, 13))
    assert cell.data.params["train.lr"] == "0.01" and cell.data.params["objective.base.name"] == "kl"
    assert {item.path for item in client.list_artifacts(cell.info.run_id)} >= {"results.json", "samples.parquet"}
    assert {item.path for item in client.list_artifacts(parents[0].info.run_id)} >= {"report.html", "suite.json"}


@pytest.mark.fault("I4", "exported twice")
def test_a_second_sync_adds_nothing(world):
    _, _, results, _ = world
    before = snapshot(results)
    assert "0 cells" in call("mlflow", "sync", "--results-dir", results).stderr
    assert snapshot(results) == before


@pytest.mark.fault("I4", "the database deleted")
@pytest.mark.fault("C11", "a copy of the results, exported again")
def test_a_deleted_database_is_made_anew_from_the_store(world, tmp_path):
    _, _, results, _ = world
    target = tmp_path / "moved"
    shutil.copytree(results, target)
    for path in target.glob("mlflow.db*"):
        path.unlink()
    assert "13 cells" in call("mlflow", "sync", "--results-dir", target).stderr
    _, points = snapshot(target)
    assert {k: v for k, v in points.items()} == {k: v for k, v in snapshot(results)[1].items()}


def broken(path):
    path.write_text("this is no database")


def of_a_later_mlflow(path):
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [broken, of_a_later_mlflow])
@pytest.mark.fault("I4", "the database broken, or of a later MLflow, while a run goes on")
def test_a_broken_mlflow_never_stops_a_run(spoil, world, tmp_path):
    _, suite, results, _ = world
    target = tmp_path / "r"
    shutil.copytree(results, target)
    spoil(target / "mlflow.db")
    shutil.rmtree(
        next(path.parent for path in target.glob("cells/*/inputs.json") if '"arm": "floor"' in path.read_text())
    )
    process = kdbench("run", suite, "--results-dir", target, "--workers", 1)
    assert "the results are safe" in process.stderr and "Traceback" not in process.stderr
    assert len(list(target.glob("cells/*/DONE.json"))) == 13


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.fault("D8", "several processes open a new database")
def test_several_processes_may_open_a_new_database_at_once(tmp_path, count):
    Store(tmp_path).prepare()
    code = (
        "from pathlib import Path; from kdbench.run import tracking_place; from kdbench.run.store import Store\n"
        f"tracking_place.quiet_environment(); s = Store(Path({str(tmp_path)!r})); tracking_place.prepare_database(s)\n"
        "import mlflow; mlflow.MlflowClient(tracking_place.tracking_uri(s)).search_experiments()"
    )
    racing = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    assert [process.wait() for process in racing] == [0] * count
    assert json.dumps(sorted(path.name for path in tmp_path.glob("*.db"))) == '["mlflow.db"]'


@pytest.mark.fault(
    "I4", "the database locked by another process: a run is not hurt, a sync says so and can be repeated"
)
def test_a_locked_database_stops_no_run_and_is_one_error_of_a_sync(world, tmp_path):
    target = tmp_path / "r"
    shutil.copytree(world[2], target)
    before, plan = snapshot(target), json.loads((target / "suites" / "tiny" / "plan.json").read_text())
    holder, said = sqlite3.connect(target / "mlflow.db", isolation_level=None), []
    holder.execute("BEGIN EXCLUSIVE")
    try:
        exporter = Exporter(Store(target), plan, said.append)
        exporter.close("FINISHED", [])
        refused = call("mlflow", "sync", "--results-dir", target)
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    assert exporter.failed and "database is locked" in said[0] and "the results are safe" in said[0]
    assert refused.exit_code == 1 and "database is locked" in refused.stderr and "Traceback" not in refused.output
    assert "0 cells" in call("mlflow", "sync", "--results-dir", target).stderr and snapshot(target) == before


@pytest.mark.fault("I4", "a broken database, and a server that is down: one error of a sync")
@pytest.mark.parametrize("uri", ["", "http://127.0.0.1:9"])
def test_a_mirror_that_cannot_be_reached_is_one_error_of_a_sync(uri, world, tmp_path, monkeypatch):
    target = tmp_path / "r"
    (target / "suites" / "tiny").mkdir(parents=True)
    shutil.copy(world[2] / "suites" / "tiny" / "plan.json", target / "suites" / "tiny")
    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    else:
        (target / "mlflow.db").write_text("this is no database")
    refused = call("mlflow", "sync", "--results-dir", target)
    assert refused.exit_code == 1 and "the results are safe" in refused.stderr and "Traceback" not in refused.output


@pytest.mark.fault("I4", "a database of a later MLflow: one sentence of a run and of a sync, which leave it alone")
def test_a_database_of_a_later_mlflow_is_one_clear_sentence(world, tmp_path):
    target, said = tmp_path / "r", []
    shutil.copytree(world[2], target)
    of_a_later_mlflow(target / "mlflow.db")
    exporter = Exporter(Store(target), plans.read(target / "suites" / "tiny" / plans.FILE), said.append)
    exporter.close("FINISHED", [])
    refused = call("mlflow", "sync", "--results-dir", target)
    for text in (*said, refused.stderr):
        assert (
            "is of another version of MLflow than the one installed (found version ffffffffffff, but expected" in text
        )
        assert "the results are safe" in text and "may be deleted" in text and "out-of-date" not in text
    assert exporter.failed and len(said) == 1 and refused.exit_code == 1 and "Traceback" not in refused.output
    with closing(sqlite3.connect(target / "mlflow.db")) as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [("ffffffffffff",)]


@pytest.mark.fault("I5", "no mlflow: a run goes on without it; a sync and the browser say how to install it")
def test_a_missing_mlflow_is_named_and_stops_no_run(world, tmp_path, monkeypatch):
    plan = tmp_path / "suites" / "tiny" / plans.FILE
    plan.parent.mkdir(parents=True)
    shutil.copy(world[2] / "suites" / "tiny" / plans.FILE, plan)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    said, texts = [], []
    exporter = Exporter(Store(tmp_path), plans.read(plan), said.append)
    exporter.close("FINISHED", [])
    for command in (["mlflow", "sync"], ["ui"]):
        refused = call(*command, "--results-dir", tmp_path)
        assert refused.exit_code == 2 and "Traceback" not in refused.output
        texts.append(refused.stderr)
    for text in (*said, *texts):
        assert "expected the package mlflow, found none" in text and "pip install 'mlflow" in text, text
        assert "mlflow.db" not in text and "the results are safe" in text
    assert exporter.failed and len(said) == 1


@pytest.fixture
def fresh(world, tmp_path):
    """A copy of the store that MLflow has not seen, and its plan."""
    shutil.copytree(world[2], tmp_path / "r")
    for path in (tmp_path / "r").glob("mlflow.db*"):
        path.unlink()
    store = Store(tmp_path / "r")
    return store, plans.read(store.suite_folder("tiny") / plans.FILE)


def test_a_training_that_diverged_has_its_curve_and_its_reason_in_mlflow(fresh):
    store, plan = fresh
    cell = next(cell for cell in plan["cells"] if cell["arm"] == "kl")
    entry, timing = store.entry("cells", cell["key"]), store.entry("cells", cell["key"]).done()["timing"]
    shutil.rmtree(entry.path)
    entry.begin(cell["inputs"])
    atomic_write(entry.path / "metrics.jsonl", "".join(f'{{"step": {step}, "loss": 2.0}}\n' for step in (1, 2, 3)))
    entry.commit("diverged", timing, reason="loss nan", step=4)
    assert call("mlflow", "sync", "--results-dir", store.root).exit_code == 0
    client, found = runs(store.root)
    (mine,) = [run for run in found if run.data.tags.get(tracking.KEY_TAG) == cell["key"]]
    assert [point.step for point in client.get_metric_history(mine.info.run_id, "train/loss")] == [1, 2, 3]
    assert mine.info.status == "FAILED" and mine.data.tags["kdbench.reason"] == "loss nan"


@pytest.mark.fault("C5", "a digit of a cell's scores: not written into MLflow")
def test_damaged_scores_are_not_exported(fresh):
    store, plan = fresh
    entry = store.entry("cells", plan["cells"][0]["key"])
    path = entry.path / "results.json"
    text = path.read_text()
    path.write_text(text.replace("0.", "1.", 1))
    assert path.stat().st_size == len(text.encode()) and entry.done()
    assert "12 cells" in call("mlflow", "sync", "--results-dir", store.root).stderr
    assert entry.key not in {run.data.tags.get(tracking.KEY_TAG) for run in runs(store.root)[1]}


@pytest.mark.slow
@pytest.mark.fault("I4", "the database deleted in the midst of a run: a sync afterwards has every cell once")
def test_a_database_deleted_while_cells_end_is_whole_after_a_sync(fresh):
    store, plan = fresh
    exporter = Exporter(store, plan, print)
    for number, cell in enumerate(plan["cells"][:4]):
        if number == 2:
            while not exporter.events.empty():
                time.sleep(0.1)
            for path in store.root.glob("mlflow.db*"):
                path.unlink()
        job = SimpleNamespace(kind="cells", key=cell["key"])
        exporter.event(job, {"event": "finished", "done": store.entry("cells", cell["key"]).done()})
    exporter.close("FINISHED", [])
    kdbench("mlflow", "sync", "--results-dir", store.root)  # this process has the file open that is gone
    with closing(sqlite3.connect(store.root / "mlflow.db")) as database:
        keys = database.execute("SELECT value FROM tags WHERE key = ?", (tracking.KEY_TAG,)).fetchall()
    assert sorted(key for (key,) in keys) == sorted({cell["key"] for cell in plan["cells"]})


@pytest.mark.slow
@pytest.mark.fault("C11", "results moved with their database: what is written next lies beside them")
def test_a_store_that_was_moved_writes_nothing_where_it_was(fresh, tmp_path):
    store, plan = fresh
    held_back = store.entry("cells", plan["cells"][0]["key"])
    shutil.move(held_back.path, tmp_path / "kept")
    kdbench("mlflow", "sync", "--results-dir", store.root)  # each a process of its own, as MLflow remembers places
    target = tmp_path / tracking_place.ARTEFACTS / "moved é %41"
    target.parent.mkdir()
    shutil.move(store.root, target)
    shutil.move(tmp_path / "kept", target / "cells" / held_back.key)
    assert "1 cells" in kdbench("mlflow", "sync", "--results-dir", target).stderr
    assert not store.root.exists()
    tracking_place.prepare_database(Store(target))
    client, found = runs(target)
    for run in (run for run in found if tracking.KEY_TAG in run.data.tags):
        listed = client.list_artifacts(run.info.run_id)
        assert "results.json" in {item.path for item in listed}, run.info.artifact_uri
        assert Path(unquote(urlparse(run.info.artifact_uri).path)).is_relative_to(target)
        assert Path(client.download_artifacts(run.info.run_id, "results.json")).read_text().startswith("{")


@pytest.mark.fault("F5", "MLflow that fails at once: what it would have been told is not kept")
def test_an_exporter_that_has_failed_keeps_nothing(fresh):
    store, plan = fresh
    (store.root / "mlflow.db").write_text("this is no database")
    said = []
    exporter = Exporter(store, plan, said.append)
    exporter.thread.join(60)
    for step in range(100):
        exporter.event(SimpleNamespace(kind="cells", key="k"), {"event": "step", "step": step, "loss": 1.0})
    assert exporter.failed and said and exporter.events.empty()
    exporter.close("FINISHED", [])


@pytest.mark.fault("D1", "two exporters of one suite that end the same cells at once: each cell is written once")
def test_two_runs_write_a_cell_into_mlflow_once(world, fresh):
    (store, plan), said, expected = fresh, [], snapshot(world[2])[1]
    both = [Exporter(store, plan, said.append)]
    time.sleep(0.01)  # an invocation is known by its millisecond
    both.append(Exporter(store, plan, said.append))
    for cell in plan["cells"][:4]:
        done = store.entry("cells", cell["key"]).done()
        job = SimpleNamespace(kind="cells", key=cell["key"])
        both[0].event(job, {"event": "stage", "stage": "training"})
        for exporter in both:
            exporter.event(job, {"event": "finished", "done": done})
    for exporter in both:
        exporter.close("FINISHED", [])
    _, found = runs(store.root)
    keys = [run.data.tags[tracking.KEY_TAG] for run in found if tracking.KEY_TAG in run.data.tags]
    assert said == [] and sorted(keys) == sorted(cell["key"] for cell in plan["cells"][:4])
    assert len(found) == 4 + 2, "each run has a parent of its own"
    assert all(expected[name] == points for name, points in snapshot(store.root)[1].items())


@pytest.mark.fault("D1", "a run that is stopped while another makes one of its cells: that one's run stays alive")
def test_a_run_that_is_stopped_leaves_the_cell_of_another_alone(fresh):
    store, plan = fresh
    exporter = Exporter(store, plan, print)
    for cell in plan["cells"][:2]:
        exporter.event(SimpleNamespace(kind="cells", key=cell["key"]), {"event": "stage", "stage": "training"})
    with store.entry("cells", plan["cells"][0]["key"]).locked():
        exporter.close("KILLED", [])
    status = {run.data.tags.get(tracking.KEY_TAG): run.info.status for run in runs(store.root)[1]}
    assert [status[cell["key"]] for cell in plan["cells"][:2]] == ["RUNNING", "KILLED"]
