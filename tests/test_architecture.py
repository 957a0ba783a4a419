"""The house stands as drawn: imports run one way, start-up is light, files are written in one place.

python -m pytest tests/test_architecture.py
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kdbench"
FILES = sorted(PACKAGE.rglob("*.py"))
# A module may import from its own level and from the levels below it.
LEVELS = [
    {"cli"},
    {"cli_cache", "cli_convert", "cli_diff", "cli_examine", "cli_objectives", "cli_profile", "cli_report", "cli_store"},
    {"options"},
    {"commands"},
    {"analysis"},
    {"run"},
    {"testing", "checks"},
    {"evaluate", "distill"},
    {"suite"},
    {"conventions", "registry"},
    {"imports"},
    {"plugins"},
    {"api"},
    {"tokens"},
    {"divergences"},
    {"gradients"},
    {"compiling", "console", "errors", "failpoints", "files", "seeding", "signals", "telemetry", "trajectories"},
]


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def level(name: str) -> int:
    return next(index for index, names in enumerate(LEVELS) if name in names)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kdbench"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return {name for name in found if any(name in names for names in LEVELS)}


@pytest.mark.parametrize("path", [p for p in FILES if p.name != "__init__.py"], ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    for name in imports(path):
        assert level(name) >= level(room(path)), f"{path} may not import kdbench.{name}"


@pytest.mark.parametrize("path", sorted((ROOT / "objectives").glob("[!_]*.py")), ids=lambda p: p.name)
def test_an_objective_imports_only_the_contract_and_the_divergences(path):
    assert imports(path) <= {"api", "divergences"}


def test_distill_knows_nothing_of_mlflow_click_or_the_store():
    for path in (PACKAGE / "distill").glob("*.py"):
        text = path.read_text()
        assert not re.search(r"import (mlflow|click)|kdbench\.run", text), path


@pytest.mark.parametrize(
    "what", ["import kdbench.cli", "import kdbench", "import sys; sys.argv=['kdbench','--help']; import kdbench.cli"]
)
def test_the_command_line_starts_without_torch_or_mlflow(what):
    heavy = "{'torch','mlflow','transformers','pandas','scipy','datasets','lm_eval'}"
    code = f"import sys\n{what}\nassert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_loads_neither_torch_nor_mlflow():
    code = (
        "import sys; from kdbench.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch','mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_files_py_opens_files_for_writing(path):
    if path.name == "files.py":
        return
    text = path.read_text().replace('open(log, "ab")', "")  # a worker's log is appended to, and is no result
    assert not re.search(r"""open\([^)]*["'](w|a|x)b?\+?["']|\.write_(text|bytes)\(""", text), path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_library_code_draws_from_a_global_rng(path):
    if path.name == "seeding.py":
        return
    assert not re.search(
        r"(torch|numpy|np)\.(manual_seed|random\.seed)|random\.seed\(|import pickle|torch\.load\(", path.read_text()
    )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_keeps_to_its_size(path):
    assert len(path.read_text().splitlines()) <= 400, path


def test_the_committed_schema_is_the_code_s():
    import json

    from kdbench.suite.schema import json_schema

    assert json.loads((ROOT / "suites" / "schema.json").read_text()) == json_schema()


LOCKS = ("test.txt", "reference.txt", "run.txt", "smollm2.txt")


def locked(text: str) -> dict[str, str]:
    """Return package → version of a lock."""
    return {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)}


def refused(wanted: list[Requirement], versions: dict[str, str]) -> list[str]:
    """Return what a lock pins at a version that pyproject.toml does not allow."""
    pinned = [(one, versions.get(canonicalize_name(one.name))) for one in wanted]
    return [f"{one}: locked {found}" for one, found in pinned if found and not one.specifier.contains(found)]


@pytest.mark.fault("I1", "every dependency of pyproject.toml is in the locks, at a version it allows, and no index")
def test_the_lock_names_every_dependency_with_hashes_and_no_index():
    import tomllib

    texts = {name: (ROOT / "locks" / name).read_text() for name in LOCKS}
    assert not any("://" in text or "--index" in text for text in texts.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: packages for name, packages in project["optional-dependencies"].items() if name != "vllm"}
    wanted = [Requirement(one) for packages in (project["dependencies"], *extras.values()) for one in packages]
    assert {canonicalize_name(one.name) for one in wanted} <= set(locked(texts["test.txt"] + texts["reference.txt"]))
    assert [one for text in texts.values() for one in refused(wanted, locked(text))] == []
    raised = [Requirement("torch>=99"), Requirement("lm_eval[hf]>=0.4,<0.4.1")]
    assert len(refused(raised, locked(texts["test.txt"]))) == 2, "a floor that is raised without a new lock is found"
