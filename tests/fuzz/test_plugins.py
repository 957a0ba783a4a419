"""Plugin files of any content: an objective, or one clear error that names the file.

A plugin is code by design, so what it does when it runs is not bounded here; that it is wrong must be.

python -m pytest tests/fuzz/test_plugins.py
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import strategies as st

from kdbench import registry
from tests.fuzz import ends_well, fuzzed
from tests.test_registry import PLUGIN

LINES = PLUGIN.splitlines(keepends=True)
ODD = (
    "raise SystemExit(3)\n", "raise SystemExit\n", "import sys; sys.exit('bye')\n", "raise BaseException('x')\n",
    "1/0\n", "x = (((\n", "\tx = 1\n", "class A(Objective): pass\n", "class A(Objective):\n    name = 3\n",
    "def f(): yield\nnext(f(), None).x\n", "Objective = int\n", "name = property(1)\n", "import kdbench.nothing\n",
    "class A(Half): name = 'half'\n", "raise type('Odd', (Exception,), {'__str__': lambda self: 1/0})()\n",
    "class A(Objective):\n    name = 'a'\n    source = 3\n    share: 5 = 3\n", "f = lambda: f()\nf()\n",
    "    trajectories = property(lambda self: 1 / 0)\n", "    source = 3\n", "    source = Source(title=3, year='x')\n",
    "    variants = [1]\n", "    variants = {'a': {'b': Source}}\n", "    __doc__ = 3\n", "    needs_teacher = 'no'\n",
    "    default_base = 3\n", "    exempt = 1\n", "    share: float = Field(0.5, description=3)\n",
    "    terms = 3\n", "    trajectories = 3\n",
)  # fmt: skip
IMPORTS = b"from kdbench.api import Objective\n"
NAMELESS = b"class Odd:\n    __repr__ = __str__ = lambda self: 1 / 0\n"
UNSAYABLE = IMPORTS + NAMELESS + b"class A(Objective):\n    name = Odd()\n"
UNKNOWABLE = b"class Odd:\n    __class__ = property(lambda self: 1 / 0)\nodd = Odd()\n"
numbers = itertools.count()


@pytest.fixture(autouse=True)
def fresh_registry(monkeypatch):
    monkeypatch.setattr(registry, "_folders", [])
    registry._scan.cache_clear()
    yield
    monkeypatch.undo()
    registry._scan.cache_clear()


def is_listed_or_refused(folder: Path, content: bytes) -> str:
    """List the objectives with a folder that holds one file more; a fresh name each time, as modules are kept by it."""
    registry._folders.clear()
    registry._scan.cache_clear()
    home = folder / f"p{next(numbers)}"
    home.mkdir()
    path = home / "fuzz.py"
    path.write_bytes(content)
    shown = ends_well("objectives", "list", "--objectives-dir", home)
    assert shown.exit_code in (0, 2) and (shown.exit_code == 0 or str(home) in shown.stderr), shown.output
    return shown.output


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The plugin of the README with lines left out, repeated, moved, or replaced by odd ones."""
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 4))):
        at, to = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
        how = draw(st.sampled_from(["drop", "repeat", "move", "odd", "cut"]))
        if how == "drop" and len(lines) > 1:
            lines.pop(at)
        elif how == "repeat":
            lines.insert(to, lines[at])
        elif how == "move":
            lines.insert(to, lines.pop(at))
        elif how == "odd":
            lines.insert(at, draw(st.sampled_from(ODD)))
        else:
            lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
    return "".join(lines).encode()


@fuzzed(60, 1500, content=mutated())
@pytest.mark.fault("H4", "the README's plugin with lines left out, moved or replaced (Hypothesis)")
def test_a_mutated_plugin_is_listed_or_refused(tmp_path, content):
    is_listed_or_refused(tmp_path, content)


@fuzzed(
    40, 1500, content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))
)
@pytest.mark.fault("H4", "files of random bytes and words in the place of plugins (Hypothesis)")
def test_a_file_of_anything_is_listed_or_refused(tmp_path, content):
    is_listed_or_refused(tmp_path, content)


@pytest.mark.fault("H4", "plugins that end the program, are huge, or nest without end")
@pytest.mark.parametrize(
    ("content", "told"),
    [
        *((odd.encode(), "fuzz.py") for odd in ODD[:3]),
        (b"x = 1\n" * 400_000, "at most 1,000,000 bytes"),
        (b"x = " + b"[" * 5000 + b"]" * 5000, "fuzz.py"),
        (b"x = " + b"-" * 100_000 + b"1", "fuzz.py"),
        ("x = 'é'".encode("latin-1"), "fuzz.py"),
        (UNSAYABLE, "fuzz.py"),
        (UNKNOWABLE, "fuzz.py"),
    ],
    ids=["exit", "exit bare", "exit with words", "huge", "nested", "signs", "latin", "raising repr", "raising class"],
)
def test_a_hostile_plugin_is_one_error_that_names_its_file(content, told, tmp_path):
    assert told in is_listed_or_refused(tmp_path, content)


@pytest.mark.fault("H4", "a folder, a pipe, a loop of links in the place of a plugin")
@pytest.mark.parametrize("what", ["folder", "pipe", "loop", "endless"])
def test_what_is_no_file_is_no_plugin(what, tmp_path):
    from tests.fuzz.test_stores import replaced

    path = tmp_path / "fuzz.py"
    path.touch()
    replaced(path, what, tmp_path)
    shown = ends_well("objectives", "list", "--objectives-dir", tmp_path)
    assert shown.exit_code == 2 and str(tmp_path) in shown.output
