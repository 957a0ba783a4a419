"""The files that decide what an objective of a user's own computes: its own, what that imports beside it, its bases'.

Imports are read from the text, not run: those inside functions count, and nothing happens that the plugin's own import
has not done. What a plugin takes from kdbench and torch is told by their versions; other packages are not followed.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import warnings
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from kdbench.api import Objective
from kdbench.plugins import source_file

ELSEWHERE = {"kdbench", "torch", "pydantic", *sys.stdlib_module_names}
SITES = {"site-packages", "dist-packages"}  # others' packages lie side by side there, and may lie below a user's folder


def other_files(member: type[Objective]) -> list[Path]:
    """Return the files beside the one that defines an objective class, those of kdbench's own classes left out."""
    own = _real(source_file(member))
    found: dict[Path, None] = {}
    for one in member.__mro__:
        if _top(one.__module__) not in ELSEWHERE:
            path = own if one is member else _file(one.__module__)
            if path is not None:
                found |= dict.fromkeys(_reached(one.__module__, path))
    found.pop(own, None)
    return list(found)


def _reached(module: str, path: Path) -> set[Path]:
    """Return a module's file and those that it imports from beside it, directly or through others."""
    home, found = path.parent, {path}
    waiting = list(_imported(path.read_bytes(), _package(module, path)))
    while waiting:
        name = waiting.pop()
        file = None if _top(name) in ELSEWHERE else _file(name)
        if file is None or file in found or not (_top(name) == _top(module) or _lies_below(file, home)):
            continue
        found.add(file)
        waiting += _imported(file.read_bytes(), _package(name, file))
    return found


def _top(module: str) -> str:
    return module.partition(".")[0]


def _package(module: str, path: Path) -> str:
    """Return what a module's relative imports start from."""
    return module if path.name == "__init__.py" else module.rpartition(".")[0]


def _real(path: Path) -> Path:
    """Return a path whose folders are no links; the file may be one, and is looked for where the link stands."""
    return path.parent.resolve() / path.name


def _lies_below(path: Path, home: Path) -> bool:
    return path.is_relative_to(home) and not SITES & {home.name, *path.relative_to(home).parts}


def _file(module: str) -> Path | None:
    spec = _spec(module)
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    path = _real(Path(spec.origin))
    return path if path.is_file() else None


def _spec(module: str) -> ModuleSpec | None:
    """Find a module without running a package that it is in, as `importlib.util.find_spec` would."""
    if module in sys.modules:
        return getattr(sys.modules[module], "__spec__", None)
    parent = module.rpartition(".")[0]
    if not parent:
        return importlib.util.find_spec(module)
    package = _spec(parent)
    folders = package.submodule_search_locations if package else None
    return PathFinder.find_spec(module, folders) if folders else None


@lru_cache(maxsize=1024)  # a suite of ten thousand cells asks for each
def _imported(source: bytes, package: str) -> tuple[str, ...]:
    """Return every module that a source may import, with the packages they are in, as importing one runs these too."""
    try:
        with warnings.catch_warnings(action="ignore"):  # Python has told of them when it ran the file
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # no Python, or not yet
        return ()
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            start = package.rsplit(".", node.level - 1)[0] if node.level else ""
            stem = ".".join(part for part in (start, node.module) if part)
            names = [stem, *(f"{stem}.{name}" for name in names)]
        for name in names:
            parts = name.split(".")
            found |= dict.fromkeys(".".join(parts[:count]) for count in range(1, len(parts) + 1) if all(parts[:count]))
    return tuple(found)
