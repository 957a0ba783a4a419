"""Two runs of one suite at once, while others look: each cell is made once, and the bytes are the same.

python -m pytest tests/run/test_two_runs.py
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest

from kdbench.files import read_json
from tests.conftest import call
from tests.run.conftest import products


@pytest.mark.fault("D1", "two runs of one suite")
@pytest.mark.fault("D5", "compare, doctor and gc while two runs write")
@pytest.mark.fault("D6", "two runs that need one teacher cache")
def test_two_runs_at_once_make_each_cell_once_and_may_be_looked_at(world, tmp_path):
    _, suite, results, _ = world
    target = tmp_path / "r"
    command = [sys.executable, "-m", "kdbench.cli", "run", str(suite), "--results-dir", str(target)]
    command += ["--no-mlflow", "--workers", "1", "--set", "seeds=[0, 1]"]
    both = [subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) for _ in range(2)]
    asked = (("doctor", "--store"), ("gc", "--yes"), ("compare", "--json"), ("cache", "ls"))
    looked = 0
    while any(process.poll() is None for process in both):
        shown = call(*asked[looked % len(asked)], "--results-dir", target)
        assert shown.exit_code in (0, 2) and "Traceback" not in shown.output, shown.output  # 2: no results yet
        assert shown.exit_code == 0 or re.search("no results|no complete cell", shown.stderr), shown.output
        looked += 1
        time.sleep(2)
    assert [process.returncode for process in both] == [0, 0] and looked > len(asked)
    assert products(target) == products(results, within=target) and len(list(target.glob("cells/*/DONE.json"))) == 9
    assert not list(target.rglob("*.corrupt*"))
    attempts = {path.parent.name: read_json(path)["timing"]["attempts"] for path in target.glob("*/*/DONE.json")}
    assert set(attempts.values()) == {1}, attempts
