"""Find objectives by name: built in, from an installed entry point, or from a folder the user names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdbench import plugins
from kdbench.api import Objective, Wrapper
from kdbench.errors import ConfigError, did_you_mean
from kdbench.files import digest, sha256_file
from kdbench.imports import other_files
from kdbench.plugins import source_file

ABSENT = {  # methods of the field that are asked for and are not built, each with its reason
    "sinkd": "its optimal transport couples all tokens of a batch, so it is no sum over tokens, and cut into "
    "micro-batches or chunks it would be another function",
    "uld": "it compares models with different tokenizers, which kdbench does not",
    "gold": "it compares models with different tokenizers, which kdbench does not",
    "dskd": "it trains projectors between the two models' hidden states, which are no part of an objective here",
    "miniplm": "it selects the data before training and is no objective",
}
MOST_WRAPPERS = 8  # round one objective; published methods use one
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
        _scan.cache_clear()


def user_folders() -> list[Path]:
    """Return the folders given so far; worker processes are told of them."""
    return list(_folders)


def objectives() -> dict[str, type[Objective]]:
    """Return every known objective, name → class.

    Raises:
        ConfigError: two files claim one name, or of a folder the user names nothing can be loaded.
    """
    return _scan()[0]


def broken() -> tuple[str, ...]:
    """Return why plugins could not be loaded, one sentence each; what the others define is known all the same."""
    return _scan()[1]


@cache
def _scan() -> tuple[dict[str, type[Objective]], tuple[str, ...]]:
    found: dict[str, type[Objective]] = {}
    for plugin in plugins.built_in():
        _add(plugin.objectives(), found)
    errors = _add_others(plugins.installed(), found)
    for folder in _folders:
        files = plugins.in_folder(folder)
        wrong = _add_others(files, found)
        if wrong and len(wrong) == len(files):
            raise ConfigError("\n".join(wrong))
        errors += wrong
    return dict(sorted(found.items())), tuple(errors)


def _add_others(others: Iterable[plugins.Plugin], found: dict[str, type[Objective]]) -> list[str]:
    """Add what plugins define to `found`; return why some could not be loaded."""
    errors = []
    for plugin in others:
        try:
            members = plugin.objectives()
        except ConfigError as error:
            errors.append(str(error))
        else:
            _add(members, found)
    return errors


def _add(members: Iterable[type[Objective]], found: dict[str, type[Objective]]) -> None:
    for member in members:
        if member.name in found:
            files = source_file(found[member.name]), source_file(member)
            raise ConfigError(f"objective {member.name!r} is defined twice: in {files[0]} and in {files[1]}")
        found[member.name] = member


def source_digest(objective: Objective) -> str:
    """Return one sha256 over the code of an objective and of the base it wraps; kdbench's own has a version."""
    hashes = [sha256_file(source_file(type(objective)))]
    hashes += sorted(digest([path.name, sha256_file(path)]) for path in other_files(type(objective)))
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
