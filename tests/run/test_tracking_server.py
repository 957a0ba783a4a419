"""MLflow on a server: the mirror over HTTP, and a server that dies while it is written to.

python -m pytest -m slow tests/run/test_tracking_server.py
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kdbench.run import tracking_place
from tests.conftest import SUITE, call
from tests.run.here import Here, in_this_process, without_pictures

pytestmark = pytest.mark.slow  # a server takes half a minute to start, and is started twice
CELLS = 2 * 2 + 2 + 1  # two arms and the floor, at two seeds each; the ceiling
SETTINGS = ("objectives=[sft, kl]", "compare.contrasts=[[kl, sft]]", "seeds=[0, 1]", "train.steps=4")


class Server:
    """`mlflow server` on loopback; artefacts go through it."""

    def __init__(self, backend: str, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri, self.backend, self.folder = f"http://127.0.0.1:{self.port}", backend, folder
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        arguments = ["--host", "127.0.0.1", "--port", self.port, "--workers", 1, "--backend-store-uri", self.backend]
        arguments += ["--artifacts-destination", self.folder / "artifacts"]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *map(str, arguments)],
                stdout=log, stderr=log, start_new_session=True,
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            )  # fmt: skip
        end = time.monotonic() + 240
        while time.monotonic() < end:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.2)
        raise TimeoutError((self.folder / "server.log").read_text())

    def kill(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextmanager
def postgres(folder: Path):
    """A PostgreSQL of this machine, on loopback; yields its address for MLflow."""
    account = {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}  # it refuses to run as root
    # a socket's path must be short, and pytest's folders are closed to others
    place = Path(tempfile.gettempdir()) / f"kdbench-pg-{os.getpid()}"
    place.mkdir(mode=0o700)
    try:
        if account:
            shutil.chown(place, **account)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def do(*command: object) -> None:
            subprocess.run([*map(str, command)], check=True, cwd=place, stdout=subprocess.DEVNULL, **account)

        do("initdb", "-D", place / "data", "-U", "kdbench", "-A", "trust", "--no-sync")
        settings = f"-h 127.0.0.1 -p {port} -k {place} -F"
        do("pg_ctl", "-D", place / "data", "-o", settings, "-l", place / "log", "-w", "start")
        try:
            yield f"postgresql+psycopg2://kdbench@127.0.0.1:{port}/postgres"
        finally:
            do("pg_ctl", "-D", place / "data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _postgres_is_here() -> bool:
    try:
        import psycopg2  # noqa: F401
    except ImportError:
        return False
    return shutil.which("initdb") is not None


@pytest.fixture(
    scope="module",
    params=[
        "sqlite",
        pytest.param(
            "postgresql",
            marks=pytest.mark.skipif(not _postgres_is_here(), reason="needs initdb on the PATH, and psycopg2"),
        ),
    ],
)
def server(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with postgres(folder) if request.param == "postgresql" else sqlite(folder) as backend:
        found = Server(backend, folder)
        try:
            found.start()
            yield found
        finally:
            found.kill()


@contextmanager
def sqlite(folder: Path):
    yield f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture(scope="module")
def patched(server):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.uri)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        in_this_process(patch)
        without_pictures(patch)
        yield patch


def run(folder: Path, corpus: Path, name: str):
    path = folder / f"{name}.yaml"
    path.write_text(SUITE.format(corpus=corpus), encoding="utf-8")
    changes = [part for one in (f"name={name}", *SETTINGS) for part in ("--set", one)]
    return call("run", path, *changes, "--results-dir", folder / "results")


@pytest.fixture(scope="module")
def mirrored(server, patched, tmp_path_factory, corpus_folder):
    """The results of a run that was mirrored while it went on, and a client of the server."""
    tracking_place.quiet_environment()
    import mlflow

    folder = tmp_path_factory.mktemp("mirrored")
    found = run(folder, corpus_folder, "served")
    assert found.exit_code == 0 and "MLflow" not in found.stderr, found.output
    return folder / "results", mlflow.MlflowClient(server.uri)


def runs(client, name: str):
    experiment = client.get_experiment_by_name(name)
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    children = [one for one in found if "mlflow.parentRunId" in one.data.tags]
    return [one for one in found if one not in children], children


def points(client, children) -> dict[str, int]:
    return {
        f"{one.data.tags['kdbench.cell_key']}/{name}": len(client.get_metric_history(one.info.run_id, name))
        for one in children
        for name in one.data.metrics
    }


def test_a_run_is_on_the_server_with_tags_curves_scores_and_files(mirrored, tmp_path):
    results, client = mirrored
    parents, children = runs(client, "served")
    assert len(parents) == 1 and len(children) == CELLS
    assert {one.info.status for one in (*parents, *children)} == {"FINISHED"}
    assert any(tag.startswith("verdict: kl vs sft") for tag in parents[0].data.tags)
    cell = next(one for one in children if one.data.tags["kdbench.objective"] == "kl")
    assert cell.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
    assert cell.data.params["objective.name"] == "kl" and cell.data.params["train.steps"] == "4"
    assert {"eval/swap/acc", "held_out/nats_per_token", "cost/wall_seconds"} <= set(cell.data.metrics)
    assert [one.step for one in client.get_metric_history(cell.info.run_id, "train/loss")] == [1, 2, 3, 4]
    stored = results / "cells" / cell.data.tags["kdbench.cell_key"]
    for name in ("results.json", "samples.parquet"):
        fetched = Path(client.download_artifacts(cell.info.run_id, name, str(tmp_path)))
        assert fetched.read_bytes() == (stored / name).read_bytes()
    assert "report.html" in {one.path for one in client.list_artifacts(parents[0].info.run_id)}
    assert not (results / "mlflow.db").exists() and not (results / "mlartifacts").exists()


def test_a_second_sync_adds_nothing_to_the_server(mirrored):
    results, client = mirrored
    before = points(client, runs(client, "served")[1])
    found = call("mlflow", "sync", "--results-dir", results)
    assert found.exit_code == 0 and "served: 0 cells" in found.stderr
    parents, children = runs(client, "served")
    assert points(client, children) == before and len(parents) == 1


def test_there_is_no_second_interface_to_what_a_server_shows_already(server, mirrored):
    results, _ = mirrored
    found = call("ui", "--results-dir", results)
    assert found.exit_code == 0 and f"served at {server.uri} already" in found.stderr


def test_a_server_that_dies_in_mid_export_stops_no_run_and_a_sync_completes_it(
    server, mirrored, patched, tmp_path, corpus_folder
):
    _, client = mirrored

    class Deadly(Here):
        """Kills the server when the third cell is done, while its export is under way."""

        cells = 0

        def settle(self, job, event):
            super().settle(job, event)
            Deadly.cells += job.kind == "cells" and event["event"] == "finished"
            if Deadly.cells == 3:
                server.kill()

    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch, Deadly)
        found = run(tmp_path, corpus_folder, "cut")
    results = tmp_path / "results"
    assert found.exit_code == 0, found.output
    assert "the results are safe; `kdbench mlflow sync` writes them to MLflow later" in " ".join(found.stderr.split())
    assert len(list(results.glob("cells/*/DONE.json"))) == CELLS

    server.start()
    assert call("mlflow", "sync", "--results-dir", results).exit_code == 0
    _, children = runs(client, "cut")
    assert len(children) == CELLS, "a cell whose export was cut off keeps its run"
    assert {one.info.status for one in children} == {"FINISHED"}
    served = points(client, runs(client, "served")[1])
    assert sorted(points(client, children).values()) == sorted(served.values()), (
        "no point is missing, none stands twice"
    )
    assert "cut: 0 cells" in call("mlflow", "sync", "--results-dir", results).stderr
