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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import InstanceOf, PydanticUndefinedAnnotation, TypeAdapter, ValidationError

from kdbench.api import Divergence, Objective, Source
from kdbench.errors import ConfigError
from kdbench.files import digest

ENTRY_POINTS = "kdbench.objectives"
CALLED = ("terms", "weights", "split", "cross_entropy", "probe", "derive", "at", "observe", "compare", "decouple")
MOST_BYTES = 1_000_000  # of a plugin's file


@dataclass(frozen=True)
class Plugin:
    """Where objectives come from, by name; to load it runs its code, as the module of that name."""

    name: str
    module: str
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
            lines = "".join(traceback.format_exception_only(error)).strip().splitlines()  # whatever its __str__ does
            said = lines[-1 if isinstance(error, SyntaxError) else 0]  # of bad syntax the place and the text come first
            raise ConfigError(f"objective plugin {self.name} cannot be loaded: {said} ({self._place(error)})") from None

    def _place(self, error: BaseException) -> str:
        """Return file:line, the plugin's own line where it got so far: an error may come from deep inside a library."""
        frames = list(traceback.walk_tb(error.__traceback__))
        own = [one for one in frames if one[0].f_globals.get("__name__") == self.module]
        if not own and isinstance(error, SyntaxError) and error.lineno:
            return f"{error.filename}:{error.lineno}"
        frame, line = (own or frames)[-1]
        return f"{frame.f_code.co_filename}:{line}"


def built_in() -> list[Plugin]:
    """Return kdbench's own."""
    import kdbench.objectives as package

    names = sorted(f"{package.__name__}.{info.name}" for info in pkgutil.iter_modules(package.__path__))
    return [Plugin(name, name, partial(importlib.import_module, name)) for name in names]


def installed() -> list[Plugin]:
    """Return those that installed packages offer as entry points: of a module, or of a class in it."""
    points = sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name)
    return [Plugin(point.value, point.module, partial(_of_point, point)) for point in points]


def in_folder(folder: Path) -> list[Plugin]:
    """Return the files of a folder, but for those whose names begin with `_`."""
    return [of_file(path) for path in sorted(folder.glob("*.py")) if path.name[0] != "_"]


def of_file(path: Path) -> Plugin:
    """Return one file."""
    return Plugin(str(path), _module_name(path), partial(_of_file, path))


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


def _module_name(path: Path) -> str:
    return f"kdbench_plugin_{digest(str(path))[:12]}"


def _of_file(path: Path) -> ModuleType:
    name = _module_name(path)
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
    for what, problem in _problems(member):
        raise ConfigError(f"{_place(what)}: objective class {member.__name__}: {problem}")


def _problems(member: type[Objective]) -> Iterator[tuple[Any, str]]:
    """Yield what is wrong with a class: the class or the method that is, and the sentence."""
    if not isinstance(member.name, str) or not member.name.replace("_", "").isalnum():
        yield member, f"`name` must be letters, digits and underscores, found {member.name!r}"
    if not hasattr(member, "source"):
        yield member, "expected a class attribute `source = Source(title=…, year=…)`, found none"
    for name, kind in _attributes().items():
        try:
            kind.validate_python(getattr(member, name, None), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            at, said = ".".join(map(str, (name, *first["loc"]))), first["msg"]
            yield member, f"`{at}`: {said[:1].lower()}{said[1:]}, found {first['input']!r:.60}"
    try:
        member.model_rebuild()
    except PydanticUndefinedAnnotation as error:
        yield member, f"a field's type is not defined: {error.name!r}"
    contract = Divergence if issubclass(member, Divergence) else Objective
    what = "compare" if contract is Divergence else "terms"
    if getattr(member, what) is getattr(contract, what):
        yield member, f"expected a method {what}(self, student, teacher, tokens), found none"
    for name in CALLED:
        if hasattr(contract, name):
            yield from _method_problems(member, contract, name)


def _method_problems(member: type[Objective], contract: type[Objective], name: str) -> Iterator[tuple[Any, str]]:
    """Yield whether a method can be called with the arguments that the contract's is called with."""
    arguments = list(inspect.signature(getattr(contract, name)).parameters)
    expected = f"expected a method {name}({', '.join(arguments)})"
    found, kind = getattr(member, name), inspect.getattr_static(member, name)
    if not callable(found):
        yield member, f"{expected}, found {found!r:.60}"
        return
    try:
        signature = inspect.signature(found)
    except ValueError:  # of compiled code nothing is known
        return
    gets_self = hasattr(kind, "__get__") and not isinstance(kind, staticmethod | classmethod)
    try:
        signature.bind(*arguments[not gets_self :])
    except TypeError as error:
        yield found if inspect.isroutine(found) else member, f"{expected}, found {name}{signature}: {error}"


def _place(what: Any) -> str:
    """Return file:line of a class or a function; the file alone of one that no line there defines."""
    plain = inspect.unwrap(what)
    try:
        return f"{inspect.getfile(plain)}:{inspect.getsourcelines(plain)[1]}"
    except OSError:
        return inspect.getfile(plain)


@cache
def _attributes() -> dict[str, TypeAdapter[Any]]:
    """Return what a class says of itself, beside its fields: attribute → its type."""
    computed = InstanceOf[property]  # of an instance: a wrapper asks its base
    kinds = {"source": Source, "variants": Mapping[str, Mapping[str, Any]], "exempt": Mapping[str, str] | computed}
    kinds |= {"needs_teacher": bool | computed, "needs_signal": bool | computed}
    kinds |= {"default_base": str | None, "__doc__": str | None}
    return {name: TypeAdapter(kind) for name, kind in kinds.items()}
