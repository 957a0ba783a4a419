"""Objective classes out of files of code: an objective is a class in a Python file; adding a method touches one file.

Plugins are code by design, so they are loaded only from kdbench, from installed packages and from folders the user
names, never from a suite or a result. Whatever their code does wrong is one error that names them.
"""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import InstanceOf, TypeAdapter, ValidationError

from kdbench.api import Divergence, Objective, Source
from kdbench.errors import ConfigError
from kdbench.files import digest

ENTRY_POINTS = "kdbench.objectives"
MOST_BYTES = 1_000_000  # of a plugin's file


@dataclass(frozen=True)
class Plugin:
    """Where objectives come from, by name; to load it runs its code."""

    name: str
    load: Callable[[], ModuleType]

    def objectives(self) -> list[type[Objective]]:
        """Return the objective classes that it defines, checked.

        Raises:
            ConfigError: it cannot be loaded, or a class is none that kdbench can use.
        """
        try:
            found = _members(self.load())
            for member in found:
                _check(member)
            return found
        except (ConfigError, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit too: a plugin may not end the program
            frame = traceback.extract_tb(error.__traceback__)[-1]
            said = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]  # whatever its __str__ does
            raise ConfigError(
                f"objective plugin {self.name} cannot be loaded: {said} ({frame.filename}:{frame.lineno})"
            ) from None


def built_in() -> list[Plugin]:
    """Return kdbench's own."""
    import kdbench.objectives as package

    names = sorted(f"{package.__name__}.{info.name}" for info in pkgutil.iter_modules(package.__path__))
    return [Plugin(name, partial(importlib.import_module, name)) for name in names]


def installed() -> list[Plugin]:
    """Return those that installed packages offer as entry points: of a module, or of a class in it."""
    points = sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name)
    return [Plugin(point.value, partial(_of_point, point)) for point in points]


def in_folder(folder: Path) -> list[Plugin]:
    """Return the files of a folder, but for those whose names begin with `_`."""
    return [of_file(path) for path in sorted(folder.glob("*.py")) if path.name[0] != "_"]


def of_file(path: Path) -> Plugin:
    """Return one file."""
    return Plugin(str(path), partial(_of_file, path))


def load_file(path: Path) -> list[type[Objective]]:
    """Return the objective classes that a plugin file defines; the known objectives stay as they are.

    Raises:
        ConfigError: when there is no such file, it cannot be imported, or it defines no objective.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise ConfigError(f"expected a plugin file, found none at {path}")
    found = of_file(path).objectives()
    if not found:
        raise ConfigError(f"{path}: expected a class derived from Objective with a `name`, found none")
    return found


def source_file(member: type[Objective]) -> Path:
    """Return the file that defines an objective class."""
    return Path(inspect.getfile(member))


def _of_point(point: Any) -> ModuleType:
    loaded = point.load()
    return loaded if inspect.ismodule(loaded) else sys.modules[loaded.__module__]


def _of_file(path: Path) -> ModuleType:
    name = f"kdbench_plugin_{digest(str(path))[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        raise ConfigError(f"objective plugin {path}: expected a file of at most {MOST_BYTES:,} bytes, found another")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _members(module: ModuleType) -> list[type[Objective]]:
    """Return the objective classes that a module defines itself, each once, whatever other names it has there."""
    own = (one for _, one in inspect.getmembers(module, inspect.isclass) if one.__module__ == module.__name__)
    return list(dict.fromkeys(one for one in own if issubclass(one, Objective) and "name" in vars(one)))


def _check(member: type[Objective]) -> None:
    where = f"{source_file(member)}: objective class {member.__name__}"
    if not isinstance(member.name, str) or not member.name.replace("_", "").isalnum():
        raise ConfigError(f"{where}: `name` must be letters, digits and underscores, found {member.name!r}")
    if not hasattr(member, "source"):
        raise ConfigError(f"{where}: expected a class attribute `source = Source(title=…, year=…)`, found none")
    for name, kind in _attributes().items():
        try:
            kind.validate_python(getattr(member, name, None), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            at, said = ".".join(map(str, (name, *first["loc"]))), first["msg"]
            raise ConfigError(f"{where}: `{at}`: {said[:1].lower()}{said[1:]}, found {first['input']!r:.60}") from None
    silent = member.compare is Divergence.compare if issubclass(member, Divergence) else member.terms is Objective.terms
    if silent:
        what = "compare" if issubclass(member, Divergence) else "terms"
        raise ConfigError(f"{where}: expected a method {what}(self, student, teacher, tokens), found none")


@cache
def _attributes() -> dict[str, TypeAdapter[Any]]:
    """Return what a class says of itself, beside its fields: attribute → its type."""
    computed = InstanceOf[property]  # of an instance: a wrapper asks its base
    kinds = {"source": Source, "variants": Mapping[str, Mapping[str, Any]], "exempt": Mapping[str, str] | computed}
    kinds |= {"needs_teacher": bool | computed, "needs_signal": bool | computed}
    kinds |= {"default_base": str | None, "__doc__": str | None}
    return {name: TypeAdapter(kind) for name, kind in kinds.items()}
