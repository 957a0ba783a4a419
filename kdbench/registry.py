"""Find objectives by name: built in, from an installed entry point, or from a folder the user names.

An objective is a class in a Python file; adding a method touches one file. Plugins are code by design, so they are
loaded only from these three places, never from a suite or a result.
"""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import InstanceOf, TypeAdapter, ValidationError

from kdbench.api import Divergence, Objective, Source, Wrapper
from kdbench.errors import ConfigError, did_you_mean
from kdbench.files import digest, sha256_file

ENTRY_POINTS = "kdbench.objectives"
ABSENT = {  # methods of the field that are asked for and are not built, each with its reason
    "sinkd": "its optimal transport couples all tokens of a batch, so it is no sum over tokens, and cut into "
    "micro-batches or chunks it would be another function",
    "uld": "it compares models with different tokenizers, which kdbench does not",
    "gold": "it compares models with different tokenizers, which kdbench does not",
    "dskd": "it trains projectors between the two models' hidden states, which are no part of an objective here",
    "miniplm": "it selects the data before training and is no objective",
}
MOST_WRAPPERS = 8  # round one objective; published methods use one
MOST_BYTES = 1_000_000  # of a plugin's file
_folders: list[Path] = []


def use_folder(folder: Path) -> None:
    """Add a folder of the user's own objectives (`--objectives-dir`).

    Raises:
        ConfigError: when it is not a folder or holds no Python file.
    """
    folder = Path(folder).resolve()
    if not any(folder.glob("*.py")):
        raise ConfigError(f"--objectives-dir: expected a folder with one .py file an objective, found none in {folder}")
    if folder not in _folders:
        _folders.append(folder)
        objectives.cache_clear()


def user_folders() -> list[Path]:
    """Return the folders given so far; worker processes are told of them."""
    return list(_folders)


@cache
def objectives() -> dict[str, type[Objective]]:
    """Return every known objective, name → class.

    Raises:
        ConfigError: when a plugin cannot be imported, or two files claim one name.
    """
    found: dict[str, type[Objective]] = {}
    for module in _modules():
        for member in _guarded(str(module.__file__), lambda _, m=module: _members(m)):
            if member.name in found:
                files = source_file(found[member.name]), source_file(member)
                raise ConfigError(f"objective {member.name!r} is defined twice: in {files[0]} and in {files[1]}")
            found[member.name] = member
    return dict(sorted(found.items()))


def _members(module: ModuleType) -> list[type[Objective]]:
    """Return the objectives that a module defines, checked."""
    own = [one for _, one in inspect.getmembers(module, inspect.isclass) if one.__module__ == module.__name__]
    found = [one for one in own if issubclass(one, Objective) and "name" in vars(one)]
    for member in found:
        _check(member)
    return found


def _modules() -> list[ModuleType]:
    import kdbench.objectives as package

    modules = [
        _guarded(f"{package.__name__}.{info.name}", lambda name: importlib.import_module(name))
        for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name)
    ]
    modules += [_guarded(point.value, lambda _, p=point: _as_module(p.load())) for point in _points()]
    for folder in _folders:
        modules += [_guarded(str(file), _load_file) for file in sorted(folder.glob("*.py")) if file.name[0] != "_"]
    return modules


def _points() -> list[Any]:
    return sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name)


def _as_module(loaded: Any) -> ModuleType:
    """An entry point may name a module or a class in it."""
    return loaded if inspect.ismodule(loaded) else sys.modules[loaded.__module__]


def _load_file(path: str) -> ModuleType:
    name = f"kdbench_plugin_{digest(path)[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    if not Path(path).is_file() or Path(path).stat().st_size > MOST_BYTES:
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


def _guarded(name: str, load: Callable[[str], Any]) -> Any:
    """Do what runs a plugin's code; whatever that raises, it is one error that names the plugin."""
    try:
        return load(name)
    except (ConfigError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit too: a plugin may not end the program
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]  # whatever its __str__ does
        raise ConfigError(
            f"objective plugin {name} cannot be loaded: {said} ({frame.filename}:{frame.lineno})"
        ) from None


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


def load_file(path: Path) -> list[type[Objective]]:
    """Return the objective classes that a plugin file defines; the known objectives stay as they are.

    Raises:
        ConfigError: when there is no such file, it cannot be imported, or it defines no objective.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise ConfigError(f"expected a plugin file, found none at {path}")
    module = _guarded(str(path), _load_file)
    classes = [member for _, member in inspect.getmembers(module, inspect.isclass) if issubclass(member, Objective)]
    found = [member for member in classes if member.__module__ == module.__name__ and "name" in vars(member)]
    if not found:
        raise ConfigError(f"{path}: expected a class derived from Objective with a `name`, found none")
    for member in found:
        _check(member)
    return found


def source_file(member: type[Objective]) -> Path:
    """Return the file that defines an objective class."""
    return Path(inspect.getfile(member))


def source_digest(objective: Objective) -> str:
    """Return one sha256 over the source files of an objective and of the base it wraps."""
    hashes = [sha256_file(source_file(type(objective)))]
    if isinstance(objective, Wrapper):
        hashes.append(source_digest(objective.base))
    return digest(hashes)


def get(name: str) -> type[Objective]:
    """Return the class called `name`.

    Raises:
        ConfigError: with a did-you-mean, when there is none.
    """
    known = objectives()
    if name in ABSENT:
        raise ConfigError(f"objective {name!r} is not built: {ABSENT[name]}")
    if name not in known:
        raise ConfigError(f"unknown objective {name!r}.{did_you_mean(name, known)}")
    return known[name]


def objective(spec: str | Mapping[str, Any] | Objective) -> Objective:
    """Make an objective from its specification.

    Args:
        spec: `"kl"`, `"reverse_kl+atkd"` (ATKD wrapped round reverse KL), `"atkd@release"` (a variant: settings under
            a name), or a mapping such as `{"name": "atkd", "base": {"name": "reverse_kl"}, "hard_fraction": 0.5}`.

    Raises:
        ConfigError: unknown name, unknown hyper-parameter (with a did-you-mean), value out of bounds: all at once.
    """
    if isinstance(spec, Objective):
        return spec
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise ConfigError(f"an objective is a name or a mapping with a `name`, found {spec!r:.80}")
    if _wrappers(spec) > MOST_WRAPPERS:
        raise ConfigError(f"objective {spec['name']!r:.60}: expected at most {MOST_WRAPPERS} wrappers, found more")
    settings = dict(spec)
    *bases, last = [part.strip() for part in settings.pop("name").split("+")]
    last, at, variant = last.partition("@")
    member = get(last)
    if at:
        if variant not in member.variants:
            known = ", ".join(member.variants) or "none"
            raise ConfigError(f"objective {last!r} has no variant {variant!r}; it has: {known}")
        settings = dict(member.variants[variant]) | settings
    if issubclass(member, Wrapper):
        if bases and "base" in settings:
            raise ConfigError(f"objective {spec['name']!r} names its base twice: by `+` and by `base:`")
        settings["base"] = objective("+".join(bases) if bases else settings.get("base", member.default_base))
    elif bases:
        raise ConfigError(f"objective {spec['name']!r}: {last!r} wraps nothing, so it cannot stand behind a `+`")
    return _build(member, settings)


def _wrappers(spec: Any) -> int:
    """Count the wrappers that a specification names, as far as it matters."""
    count = 0
    while count <= MOST_WRAPPERS:
        name, base = (spec.get("name"), spec.get("base")) if isinstance(spec, Mapping) else (spec, None)
        count += name.count("+") if isinstance(name, str) else 0
        if base is None:
            break
        count, spec = count + 1, base
    return count


def _build(member: type[Objective], settings: dict[str, Any]) -> Objective:
    try:
        return member(**settings)
    except ValidationError as error:
        problems = [_problem(member, entry) for entry in error.errors()]
        raise ConfigError(f"objective {member.name!r}: " + "; ".join(problems)) from None


def _problem(member: type[Objective], entry: Any) -> str:
    key = ".".join(map(str, entry["loc"]))
    if entry["type"] == "extra_forbidden":
        return f"unknown hyper-parameter {key!r}.{did_you_mean(key, member.model_fields)}"
    found = f" (found {entry['input']!r:.60})" if entry["type"] != "missing" else ""
    message = entry["msg"].removeprefix("Value error, ")
    return f"{key}: {message[:1].lower()}{message[1:]}{found}" if key else message
