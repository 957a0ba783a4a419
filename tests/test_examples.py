"""The worked examples work.

python -m pytest tests/test_examples.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_plain_loop_learns():
    found = subprocess.run([sys.executable, EXAMPLES / "plain_loop.py"], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    for line in found.stdout.splitlines():
        first, last = line.split()[1], line.split()[-1]
        assert float(last) < float(first), line


def test_the_trl_trainer_trains():
    pytest.importorskip("trl")
    found = subprocess.run([sys.executable, EXAMPLES / "trl_trainer.py"], capture_output=True, text=True, timeout=240)
    assert found.returncode == 0 and "train_loss" in found.stdout, found.stderr
