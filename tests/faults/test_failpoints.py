"""The tool itself: names that exist, words that are understood, nothing where nothing is asked for.

python -m pytest tests/faults/test_failpoints.py
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench import failpoints
from kdbench.errors import ConfigError, StoreError
from kdbench.files import atomic_write
from tests.conftest import call

PACKAGE = Path(failpoints.__file__).parent


def test_every_named_moment_is_somewhere_in_the_code_and_every_moment_there_is_named():
    used = set()
    for path in PACKAGE.rglob("*.py"):
        used |= set(re.findall(r'failpoints\.hit\("(\w+)"\)', path.read_text()))
    assert used == set(failpoints.NAMES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepp:3", "Did you mean 'step'?"),
        ("step", "expected a count from 1 on after the name, found ''"),
        ("step:0", "found '0'"),
        ("step:-1", "found '-1'"),
        ("step:²", "found '²'"),
        ("step:1:explode", "found 'explode'"),
        ("step:1:raise", "found 'raise'"),
        ("step:1:raise:EVIL", "found 'raise:EVIL'"),
        ("step:1:sleep:soon", "found 'sleep:soon'"),
        ("step:1:kill:twice", "found 'kill:twice'"),
    ],
)
def test_what_is_not_understood_is_one_clear_error_when_the_program_starts(monkeypatch, text, message):
    monkeypatch.setenv(failpoints.VARIABLE, text)
    result = call("objectives")
    assert result.exit_code == 2 and message in result.stderr and f"KDBENCH_FAILPOINT={text}" in result.stderr


def test_it_fires_at_its_own_moment_once_and_counts_the_rest(tmp_path):
    with failpoints.armed("replaced:2:crash") as point:
        atomic_write(tmp_path / "a", "1")
        with pytest.raises(failpoints.Crash, match="replaced, time 2"):
            atomic_write(tmp_path / "b", "1")
        atomic_write(tmp_path / "c", "1")
    assert point.seen == 3
    atomic_write(tmp_path / "d", "1")
    assert point.seen == 3


def test_a_full_disk_is_played_as_the_system_would_say_it(tmp_path):
    with failpoints.armed("write:1:raise:ENOSPC"), pytest.raises(StoreError, match="No space left on device"):
        atomic_write(tmp_path / "a", "1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("action", "code"), [("kill", -signal.SIGKILL), ("term", -signal.SIGTERM), ("exit", 70)])
def test_a_process_ends_as_it_was_asked_to(action, code):
    program = "from kdbench import failpoints as f; f.arm_from_environment(); f.hit('step'); f.hit('step')"
    environment = {failpoints.VARIABLE: f"step:2:{action}"}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == code


def test_unset_it_asks_for_nothing():
    failpoints.arm_from_environment({})
    with pytest.raises(ConfigError):
        failpoints.arm_from_environment({failpoints.VARIABLE: "x"})
    failpoints.hit("step")
