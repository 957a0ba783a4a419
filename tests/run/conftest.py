"""The tiny suite, run once, undisturbed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdbench.files import sha256_file
from tests.conftest import SUITE, kdbench


def products(results: Path) -> dict[str, str]:
    """Every file of every cell that must not depend on when or how often the run was killed: name → sha256."""
    found = {}
    for done in results.glob("cells/*/DONE.json"):
        for name in json.loads(done.read_text())["files"]:
            found[f"{done.parent.name}/{name}"] = sha256_file(done.parent / name)
    return found


@pytest.fixture(scope="session")
def world(tmp_path_factory, corpus_folder):
    """Folder, suite file, results, and the finished process of a run with two workers and MLflow on."""
    folder = tmp_path_factory.mktemp("world")
    suite = folder / "tiny.yaml"
    suite.write_text(SUITE.format(corpus=corpus_folder), encoding="utf-8")
    process = kdbench("run", suite, "--results-dir", folder / "results", "--workers", 2)
    return folder, suite, folder / "results", process
