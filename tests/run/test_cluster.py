"""A suite over a real Ray cluster on loopback: the same bytes as a local run, whatever happens to a node.

python -m pytest tests/run/test_cluster.py -m ''
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from kdbench.errors import ConfigError
from kdbench.run import cluster, node
from tests.conftest import call, kdbench
from tests.run.conftest import products

WITHOUT = "the package ray is not installed (extra: ray)"


@pytest.mark.fault("I5", "no ray: the extra is named")
def test_without_ray_one_error_names_the_extra(suite_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    found = call("run", suite_file, "--results-dir", tmp_path / "r", "--no-mlflow", "--executor", "ray")
    assert found.exit_code == 2 and "kdbench[ray]" in found.stderr and "Traceback" not in found.stderr


def test_an_address_without_ray_is_refused(suite_file):
    found = call("run", suite_file, "--address", "auto")
    assert found.exit_code == 2 and "--executor ray" in found.stderr


def test_a_hung_task_is_no_promise_over_ray(suite_file):
    found = call("run", suite_file, "--executor", "ray", "--stall", "60")
    assert found.exit_code == 2 and "--executor local" in found.stderr


def test_a_line_sends_events_in_batches_and_learns_of_the_stop_code():
    sent = []
    line = node.Line(lambda events: sent.append(events) or (143 if len(sent) > 1 else 0))
    line.tell({"event": "stage"})
    for step in range(100):
        line.tell({"event": "step", "step": step})
    assert len(sent) == 1 and line.should_stop() == 0
    assert line.flush() == 143 and line.should_stop() == 143
    assert [event["event"] for batch in sent for event in batch] == ["stage"] + ["step"] * 100


def test_a_node_with_another_installation_or_another_folder_says_so(tmp_path):
    settings = {"versions": node.installed(), "probe": str(tmp_path), "store": "/somewhere"}
    assert node._unfit(settings) == ""
    assert "torch" in node._unfit(settings | {"versions": {**node.installed(), "torch": "1.0"}})
    node_sees_nothing = node._unfit(settings | {"probe": str(tmp_path / "none")})
    assert "does not see /somewhere" in node_sees_nothing


@pytest.mark.parametrize(
    ("resources", "threads", "gpus", "jobs"),
    [
        ({"CPU": 8.0}, 2, 0.0, 4),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.5, 4),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.4, 4),  # a share never spans two GPUs
        ({"CPU": 8.0, "GPU": 4.0}, 1, 2.0, 2),
        ({"CPU": 1.0, "GPU": 4.0}, 2, 1.0, 0),
        ({"CPU": 4.0}, 1, 1.0, 0),
    ],
)
def test_jobs_that_fit_on_a_node_are_counted_by_cpus_and_whole_shares(resources, threads, gpus, jobs):
    assert cluster._fitting(resources, threads, gpus) == jobs


def test_a_client_address_is_refused_with_what_is_expected():
    pytest.importorskip("ray", reason=WITHOUT)
    with pytest.raises(ConfigError, match="HOST:PORT"):
        cluster._join(cluster._ray(), "ray://head:10001")


def test_a_local_disk_needs_no_warning(tmp_path):
    assert cluster.disk_warning(tmp_path) == ""


@pytest.fixture
def two_nodes(monkeypatch):
    """A head and a second node with one CPU each."""
    pytest.importorskip("ray", reason=WITHOUT)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "100000")  # a busy machine starts Ray's helpers slowly
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 by default: on a busy machine its tasks would stand still
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    yield nodes
    for program in Program.started:
        program.process.kill()
        program.process.communicate()
    nodes.shutdown()


class Program:
    """`kdbench run --executor ray`, read line by line."""

    started: ClassVar[list[Program]] = []

    def __init__(self, suite: Path, target: Path, address: str):
        command = [sys.executable, "-m", "kdbench.cli", "run", str(suite), "--results-dir", str(target), "--no-mlflow"]
        self.process = subprocess.Popen(
            [*command, "--executor", "ray", "--address", address],
            stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ,
        )  # fmt: skip
        self.text = ""
        self.started.append(self)

    def until(self, words: str) -> Program:
        for line in self.process.stderr:
            self.text += line
            if words in line:
                return self
        raise AssertionError(f"ended before {words!r}:\n{self.text}")

    def end(self) -> int:
        rest_out, rest = self.process.communicate(timeout=600)
        self.text += rest + rest_out
        return self.process.returncode


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # Ray's own
def test_a_suite_stopped_once_and_robbed_of_a_node_ends_with_the_bytes_of_a_local_run(world, two_nodes, tmp_path):
    _, suite, results, _ = world
    target = tmp_path / "r"
    stopped = Program(suite, target, two_nodes.address).until("[3/")
    stopped.process.send_signal(signal.SIGTERM)
    assert stopped.end() == 143, stopped.text
    assert "2 nodes" in stopped.text and "run the same command to go on" in stopped.text
    robbed = Program(suite, target, two_nodes.address).until("[2/")
    two_nodes.remove_node(next(iter(two_nodes.worker_nodes)), allow_graceful=False)
    assert robbed.end() == 0, robbed.text
    assert "died" in robbed.text and "Traceback" not in robbed.text + stopped.text
    assert products(target) == products(results)
    assert not list(target.rglob("*.corrupt*")) and not list(target.glob(".tmp-*"))


def test_an_address_where_nothing_listens_ends_in_one_error(suite_file, tmp_path):
    pytest.importorskip("ray", reason=WITHOUT)
    told = ("--executor", "ray", "--address", "127.0.0.1:1", "--no-mlflow")
    found = kdbench("run", suite_file, "--results-dir", tmp_path / "r", *told, check=2)
    assert "a Ray head that listens there" in found.stderr and "Traceback" not in found.stderr
