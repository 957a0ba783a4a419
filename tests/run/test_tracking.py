"""MLflow is a mirror: complete, idempotent, and never in the way.

python -m pytest tests/run/test_tracking.py
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from kdbench.run import tracking
from kdbench.run.store import Store
from tests.conftest import call, kdbench


def runs(results):
    tracking.quiet_environment()
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{results / 'mlflow.db'}")
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


@pytest.mark.fault("I4", "the database broken while a run goes on")
def test_a_broken_mlflow_never_stops_a_run(world, tmp_path):
    _, suite, results, _ = world
    target = tmp_path / "r"
    shutil.copytree(results, target)
    (target / "mlflow.db").write_text("this is no database")
    shutil.rmtree(
        next(path.parent for path in target.glob("cells/*/inputs.json") if '"arm": "floor"' in path.read_text())
    )
    process = kdbench("run", suite, "--results-dir", target, "--workers", 1)
    assert "the results are safe" in process.stderr and "Traceback" not in process.stderr
    assert len(list(target.glob("cells/*/DONE.json"))) == 13


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.fault("D8", "several processes open a new database")
def test_several_processes_may_open_a_new_database_at_once(tmp_path, count):
    Store(tmp_path).prepare()
    code = (
        "from pathlib import Path; from kdbench.run import tracking; from kdbench.run.store import Store\n"
        f"tracking.quiet_environment(); s = Store(Path({str(tmp_path)!r})); tracking.create_database(s)\n"
        "import mlflow; mlflow.MlflowClient(tracking.tracking_uri(s)).search_experiments()"
    )
    racing = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    assert [process.wait() for process in racing] == [0] * count
    assert json.dumps(sorted(path.name for path in tmp_path.glob("*.db"))) == '["mlflow.db"]'


@pytest.mark.fault(
    "I4", "the database locked by another process: a run is not hurt, a sync says so and can be repeated"
)
def test_a_locked_database_stops_no_run_and_is_one_error_of_a_sync(world, tmp_path):
    import sqlite3

    target = tmp_path / "r"
    shutil.copytree(world[2], target)
    before, plan = snapshot(target), json.loads((target / "suites" / "tiny" / "plan.json").read_text())
    holder, said = sqlite3.connect(target / "mlflow.db", isolation_level=None), []
    holder.execute("BEGIN EXCLUSIVE")
    try:
        exporter = tracking.Exporter(Store(target), plan, said.append)
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
