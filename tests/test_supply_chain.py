"""What kdbench stands on: no version with a known hole, nobody told what is run, nothing open to the network.

python -m pytest tests/test_supply_chain.py
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import psutil
import pytest

from kdbench import telemetry
from kdbench.files import sha256_file
from kdbench.run.store import Store
from kdbench.run.workers import Worker
from tests.fixtures import unpack

ROOT = Path(__file__).parent.parent
LEAST_MLFLOW = (3, 10)  # CVE-2026-2614, a file read without a login, was mended there


def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / "locks" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer(*packages):
    """What pip-audit gives: name → ids of holes, or None for a package that the database does not know."""
    known = {"version": "1.0"}
    return {
        "dependencies": [
            {"name": name, "skip_reason": "not found"}
            if holes is None
            else known | {"name": name, "vulns": [{"id": hole, "fix_versions": ["1.1"]} for hole in holes]}
            for name, holes in packages
        ]
    }


@pytest.mark.fault("I2", "MLflow without its known holes, as demanded and as locked")
def test_mlflow_is_of_a_version_without_known_holes():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (least,) = [re.fullmatch(r"mlflow>=(\d+)\.(\d+)", one) for one in dependencies if one.startswith("mlflow")]
    assert (int(least[1]), int(least[2])) >= LEAST_MLFLOW
    for lock in ("run", "test", "reference"):
        found = re.findall(r"^mlflow[a-z-]*==(\d+)\.(\d+)", (ROOT / "locks" / f"{lock}.txt").read_text(), re.MULTILINE)
        assert found and all((int(major), int(minor)) >= LEAST_MLFLOW for major, minor in found), lock


def unhashed(lock):
    """Return the pins of a lock that are not followed by a hash."""
    lines = [line.rstrip(" \\") for line in lock.splitlines() if line.strip() and not line.startswith("#")]
    return [
        line
        for line, following in zip(lines, [*lines[1:], ""], strict=True)
        if not line.startswith(" ") and not re.fullmatch(r" +--hash=sha256:[0-9a-f]{64}", following)
    ]


@pytest.mark.fault("I1", "every pin of every lock has its hash, the auditor's too")
@pytest.mark.parametrize("path", sorted((ROOT / "locks").glob("*.txt")), ids=lambda path: path.stem)
def test_every_pin_of_a_lock_has_a_hash_of_its_own_and_names_no_index(path):
    text = path.read_text()
    assert unhashed(text) == [] and "://" not in text and "==" in text
    planted = "a==1 \\\n    --hash=sha256:" + "0" * 64 + "\nb==2\n"
    assert unhashed(planted + text) == ["b==2"]


@pytest.mark.fault("I1", "every command that installs demands hashes")
def test_nothing_is_installed_without_its_hash():
    shown = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    installs = [line.strip() for line in shown.splitlines() if re.match(r"\t.*(pip install|\$\(UV\)) ", line)]
    assert len(installs) >= 4
    for line in installs:
        assert "--require-hashes -r" in line or line.endswith("--no-deps --no-build-isolation -e ."), line
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "make test"


@pytest.mark.fault("I1", "a wheel that was changed since it was locked: refused")
@pytest.mark.parametrize("changed", [False, True])
def test_a_package_that_was_changed_upstream_is_not_installed(changed, tmp_path):
    wheel, lock = tmp_path / "mine-1-py3-none-any.whl", tmp_path / "lock.txt"
    write_wheel(wheel, "x = 1")
    lock.write_text(f"mine==1 --hash=sha256:{sha256_file(wheel)}\n")
    write_wheel(wheel, "x = 2" if changed else "x = 1")
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", tmp_path, "--require-hashes"]
    ended = subprocess.run([*command, "--target", tmp_path / "to", "-r", lock], capture_output=True, text=True)
    assert (tmp_path / "to" / "mine.py").exists() != changed
    assert (ended.returncode != 0 and "THESE PACKAGES DO NOT MATCH THE HASHES" in ended.stderr) == changed, ended.stderr


def write_wheel(path, code):
    """Write the wheel of a package of one module."""
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in (
            ("mine.py", code),
            ("mine-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: mine\nVersion: 1\n"),
            ("mine-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
            ("mine-1.dist-info/RECORD", ""),
        ):
            wheel.writestr(zipfile.ZipInfo(name), text)


@pytest.mark.fault("I2", "a database that knows no package at all is no answer")
@pytest.mark.parametrize(
    ("document", "code", "told"),
    [
        (answer(("a", []), ("b", [])), "NONE", "no known holes in 2 packages"),
        (answer(("a", []), ("b", None)), "NONE", "no known holes in 1 packages; 1 packages are not known there"),
        (answer(("a", ["CVE-1"]), ("b", None)), "HOLES", "a 1.0: CVE-1, mended in 1.1"),
        (answer(("a", None), ("b", None)), "NOBODY", "knows none of the 2 packages, so it answers nothing"),
    ],
)
def test_an_audit_tells_an_answer_from_none(document, code, told):
    module = audit()
    assert module.judge(document) == (getattr(module, code), [told])


def test_an_audit_without_its_tool_says_what_to_do():
    ended = subprocess.run([sys.executable, ROOT / "locks" / "audit.py", "x"], capture_output=True, text=True)
    if importlib.util.find_spec("pip_audit"):
        pytest.skip("pip-audit is installed beside the tests")
    assert ended.returncode == 2 and "`make audit` installs it" in ended.stdout and not ended.stderr


@pytest.mark.fault("I2", "telemetry off in a worker, whatever was set before")
def test_a_worker_starts_with_all_telemetry_off(tmp_path, monkeypatch):
    for name in telemetry.OFF:
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    worker = Worker(0, Store(tmp_path), 1, ())
    try:
        found = psutil.Process(worker.process.pid).environ()
    finally:
        worker.end(kill=True)
    assert {name: found[name] for name in telemetry.OFF} == telemetry.OFF


LIBRARIES = """
from mlflow.telemetry.utils import is_telemetry_disabled
from kdbench import telemetry
before = is_telemetry_disabled()
telemetry.switch_off()
from huggingface_hub import constants
print(bool(before), bool(is_telemetry_disabled()), constants.HF_HUB_DISABLE_TELEMETRY)
"""


def environment() -> dict[str, str]:
    """What a program sees in which no switch is set; MLflow is silent anyway where it sees a test or a CI service."""
    mute = (*telemetry.OFF, "DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS")
    return {name: value for name, value in os.environ.items() if name not in mute and not name.startswith("PYTEST_")}


@pytest.mark.fault("I2", "MLflow and the Hub's client themselves say that theirs is off")
def test_the_libraries_take_the_switch():
    ended = subprocess.run([sys.executable, "-c", LIBRARIES], capture_output=True, text=True, env=environment())
    assert ended.stdout.split() == ["False", "True", "True"], ended.stderr


@pytest.mark.fault("I2", "telemetry off in every command and in the exporter to MLflow")
@pytest.mark.parametrize(
    "start",
    ["from kdbench.cli import main; main(['gc', '--results-dir', 'none'], standalone_mode=False)",
     "from kdbench.run.tracking_place import quiet_environment; quiet_environment()"],
    ids=["command", "exporter"],
)  # fmt: skip
def test_the_switch_is_set_wherever_a_library_may_follow(start, tmp_path):
    code = f"import os\n{start}\nprint({{name: os.environ.get(name) for name in {list(telemetry.OFF)}}})"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment()
    )
    assert ended.stdout.splitlines()[-1] == str(telemetry.OFF), ended.stderr


@pytest.mark.fault("I2", "telemetry off before Ray is imported")
def test_ray_is_imported_after_the_switch(monkeypatch):
    from kdbench.run import cluster

    for name in telemetry.OFF:
        monkeypatch.setenv(name, "")

    pytest.importorskip("ray", reason="the extra ray is not installed")
    cluster._ray()
    assert {name: os.environ[name] for name in telemetry.OFF} == telemetry.OFF


def listening(process: psutil.Process) -> set[str]:
    """Return the addresses at which a process and its children can be reached."""
    found = set()
    for one in (process, *process.children(recursive=True)):
        try:
            found |= {link.laddr.ip for link in one.net_connections("inet") if link.status == psutil.CONN_LISTEN}
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.fault("I2", "`kdbench ui` can be reached from this machine alone, and tells nobody")
def test_the_ui_listens_on_127_0_0_1_alone_and_sends_no_telemetry(tmp_path):
    import socket

    results = unpack(1, tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "kdbench.cli", "ui", "--port", str(port), "--results-dir", str(results)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process, until, found = psutil.Process(server.pid), time.monotonic() + 200, set()
        while not found and time.monotonic() < until and server.poll() is None:
            time.sleep(0.5)
            found = listening(process)
        assert found == {"127.0.0.1"}
        environment = process.environ()
        assert {name: environment[name] for name in telemetry.OFF} == telemetry.OFF
    finally:
        for one in (*psutil.Process(server.pid).children(recursive=True), server):
            one.send_signal(signal.SIGKILL)
        server.wait()
