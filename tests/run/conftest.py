"""The tiny suite, run once, undisturbed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from kdbench.files import sha256_file
from tests.conftest import SUITE, kdbench


def products(results: Path, within: Path | None = None) -> dict[str, str]:
    """Every file of every cell that must not depend on when or how often the run was killed: name → sha256.

    With `within` of those cells alone that are complete in that store too.
    """
    found = {}
    for done in results.glob("cells/*/DONE.json"):
        if within is not None and not (within / done.relative_to(results)).exists():
            continue
        for name in json.loads(done.read_text())["files"]:
            found[f"{done.parent.name}/{name}"] = sha256_file(done.parent / name)
    return found


@pytest.fixture(scope="session")
def world(tmp_path_factory, corpus_folder):
    """Folder, suite file, results, and the finished process of a run with two workers and MLflow on.

    It is made once, also where processes of pytest-xdist share the tests; so they read it, and change copies.
    """
    here = tmp_path_factory.getbasetemp()
    folder = (here.parent if "PYTEST_XDIST_WORKER" in os.environ else here) / "world"
    suite, said = folder / "tiny.yaml", folder / "said.json"
    with FileLock(folder.with_suffix(".lock")):
        if not said.exists():
            folder.mkdir()
            suite.write_text(SUITE.format(corpus=corpus_folder), encoding="utf-8")
            ended = kdbench("run", suite, "--results-dir", folder / "results", "--workers", 2)
            said.write_text(json.dumps([ended.returncode, ended.stdout, ended.stderr]), encoding="utf-8")
    return folder, suite, folder / "results", subprocess.CompletedProcess([], *json.loads(said.read_text("utf-8")))
