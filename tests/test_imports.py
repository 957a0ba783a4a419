"""What decides an objective's key: its file, what that imports beside it, its bases', and nothing else.

python -m pytest tests/test_imports.py
"""

from __future__ import annotations

import sys
from importlib import import_module

import pytest

from kdbench import plugins, registry
from kdbench.files import atomic_write, digest, sha256_file
from tests.test_registry import PLUGIN as ALONE

SHARED = """
from kdbench.api import Objective, Source

SLOPE = 1


class Base(Objective):
    needs_teacher = False

    def terms(self, student, teacher, tokens):
        return {"mine": -SLOPE * student.log_prob_target}
"""
PLUGIN = """
{top}


class Mine({base}):
    name = "mine"
    source = Source(title="x", year=2026)
    needs_teacher = False

    def terms(self, student, teacher, tokens):
        {inside}
        return {{"mine": -SLOPE * student.log_prob_target}}
"""
API = "from kdbench.api import Objective, Source"
BESIDE = {  # how a plugin may come to the code of another file → that file, and the plugin
    "at the top": ("shared.py", PLUGIN.format(top=f"{API}\nfrom shared import SLOPE", base="Objective", inside="")),
    "inside a function": (
        "shared.py",
        PLUGIN.format(top=API, base="Objective", inside="from shared import SLOPE"),
    ),
    "through another": (
        "deep/shared.py",
        PLUGIN.format(top=f"{API}\nfrom through import SLOPE", base="Objective", inside=""),
    ),
    "a base class": (
        "shared.py",
        PLUGIN.format(top="import shared\nfrom kdbench.api import Source\nSLOPE = 1", base="shared.Base", inside=""),
    ),
    "a base class elsewhere": (
        "../elsewhere/shared.py",
        PLUGIN.format(top="import shared\nfrom kdbench.api import Source\nSLOPE = 1", base="shared.Base", inside=""),
    ),
}


@pytest.fixture
def importable(monkeypatch, tmp_path):
    """Let two folders be imported from, and nothing that is stay for the next test."""
    for folder in ("plugins", "elsewhere"):
        monkeypatch.syspath_prepend(tmp_path / folder)
    yield
    for name in ("shared", "through", "deep", "deep.shared"):
        sys.modules.pop(name, None)


@pytest.mark.fault(
    "G10", "a module beside a plugin is edited: imported at the top, in a function, through another, as a base"
)
@pytest.mark.parametrize("how", BESIDE)
def test_an_edit_of_what_an_objective_imports_is_another_key(how, tmp_path, importable):
    name, text = BESIDE[how]
    atomic_write(tmp_path / "plugins" / "mine.py", text)
    atomic_write(tmp_path / "plugins" / "through.py", "from deep.shared import SLOPE\n")
    atomic_write(tmp_path / "plugins" / "unused.py", SHARED)
    atomic_write(tmp_path / "plugins" / name, SHARED)
    (mine,) = plugins.load_file(tmp_path / "plugins" / "mine.py")
    before = registry.source_digest(mine())
    atomic_write(tmp_path / "plugins" / "unused.py", "SLOPE = 3\n")
    assert registry.source_digest(mine()) == before
    atomic_write(tmp_path / "plugins" / name, SHARED.replace("SLOPE = 1", "SLOPE = 2"))
    assert registry.source_digest(mine()) != before


@pytest.mark.fault("G10", "a module of an installed package that its objective imports is edited")
def test_an_edit_within_an_objective_s_package_is_another_key(tmp_path, importable, monkeypatch):
    home = tmp_path / "site-packages" / "lab"
    monkeypatch.syspath_prepend(home.parent)
    text = PLUGIN.format(top=f"{API}\nfrom ..shared import SLOPE\nimport other", base="Objective", inside="")
    files = {"__init__.py": "", "shared.py": SHARED, "losses/__init__.py": "", "losses/mine.py": text}
    for name, content in (files | {"../other.py": ""}).items():
        atomic_write(home / name, content)
    mine = import_module("lab.losses.mine").Mine()
    before = registry.source_digest(mine)
    atomic_write(home.parent / "other.py", "OTHER = 1\n")
    assert registry.source_digest(mine) == before
    atomic_write(home / "shared.py", SHARED.replace("SLOPE = 1", "SLOPE = 2"))
    assert registry.source_digest(mine) != before
    for name in [one for one in sys.modules if one == "other" or one.partition(".")[0] == "lab"]:
        del sys.modules[name]


@pytest.mark.fault("G10", "objectives that import nothing beside them keep the digest of their one file")
def test_an_objective_of_one_file_keeps_its_digest(tmp_path):
    atomic_write(tmp_path / "half.py", ALONE)
    (half,) = plugins.load_file(tmp_path / "half.py")
    for one in (half(), registry.objective("kl"), registry.objective("todi")):
        assert registry.source_digest(one) == digest([sha256_file(plugins.source_file(type(one)))])
