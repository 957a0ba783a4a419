"""From a YAML file and `--set` overrides to a validated model, with every error at once, each at its line.

YAML 1.2 (so `1e-4` is a number and `no` is a word), no tags, no duplicate keys, bounded size: reading never runs code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from kdbench.errors import ConfigError, did_you_mean

MAX_BYTES = 1_000_000
MAX_NODES = 20_000  # after aliases are followed
MAX_DEPTH = 40
MAX_INT = 2**63
PLAIN = {"map", "seq", "str", "int", "float", "bool", "null", "timestamp"}
NodePath = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Parsed:
    """A file's plain data, and the 1-based line of each key and item (or the `--set` that gave it)."""

    path: Path
    data: dict[str, Any]
    lines: dict[NodePath, int | str]

    def where(self, path: NodePath) -> str:
        """Return `file:line`, or the override, of the nearest known part of a path."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                found = self.lines[path[:length]]
                return found if isinstance(found, str) else f"{self.path}:{found}"
        return str(self.path)


def parse(path: Path) -> Parsed:
    """Read a YAML file.

    Raises:
        ConfigError: missing, not UTF-8, not YAML, duplicate keys, tags, too large, or not a mapping.
    """
    text = _read(path)
    node = _compose(text, str(path))
    if node is None:
        raise ConfigError(f"{path}: the file is empty; expected a suite")
    reader = _Reader(str(path))
    data = reader.value(node, (), 0)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(data).__name__}")
    return Parsed(path, data, reader.lines)


def _read(path: Path) -> str:
    if not path.is_file():
        near = [str(other) for other in sorted(path.parent.glob("*.y*ml"))] if path.parent.is_dir() else []
        found = "a folder" if path.is_dir() else "none"
        raise ConfigError(
            f"no such suite: expected a YAML file at {path}, found {found}.{did_you_mean(str(path), near)}"
        )
    try:
        raw = path.read_bytes()
        if len(raw) > MAX_BYTES:
            raise ConfigError(f"{path}: expected at most {MAX_BYTES:,} bytes, found {len(raw):,}")
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8 text: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def _compose(text: str, name: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    yaml = YAML(typ="safe", pure=True)
    try:
        return yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigError(f"{place}: not valid YAML: {error.problem or error.context}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from None


class _Reader:
    """Turns nodes into plain values, noting lines and refusing what a suite may not hold."""

    def __init__(self, name: str):
        self.name = name
        self.lines: dict[NodePath, int | str] = {}
        self.count = 0

    def fail(self, node: Any, message: str) -> ConfigError:
        return ConfigError(f"{self.name}:{node.start_mark.line + 1}: {message}")

    def value(self, node: Any, path: NodePath, depth: int) -> Any:
        self.count += 1
        if self.count > MAX_NODES or depth > MAX_DEPTH:
            raise self.fail(
                node, f"expected at most {MAX_NODES:,} values, {MAX_DEPTH} deep, aliases followed; found more"
            )
        self.lines.setdefault(path, node.start_mark.line + 1)
        tag = str(node.tag or "").removeprefix("tag:yaml.org,2002:")
        if tag not in PLAIN:
            raise self.fail(node, f"tags are not allowed, found {tag}")
        kind = type(node).__name__
        if kind == "MappingNode":
            return self._mapping(node, path, depth)
        if kind == "SequenceNode":
            return [self.value(child, (*path, i), depth + 1) for i, child in enumerate(node.value)]
        return self._scalar(node, tag)

    def _mapping(self, node: Any, path: NodePath, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, child in node.value:
            key = self.value(key_node, (*path, "?"), depth + 1)
            self.lines.pop((*path, "?"), None)
            if not isinstance(key, str):
                raise self.fail(key_node, f"expected a name as key, found {key!r:.60}")
            line = key_node.start_mark.line + 1
            if key in found:
                raise self.fail(key_node, f"the key {key!r} stands twice, first in line {first[key]}")
            first[key] = line
            self.lines[(*path, key)] = line
            found[key] = self.value(child, (*path, key), depth + 1)
        return found

    def _scalar(self, node: Any, kind: str) -> Any:
        text = str(node.value)
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            return self._integer(node, text)
        if kind == "float":
            return self._float(node, text)
        return text

    def _integer(self, node: Any, text: str) -> int:
        if len(text) > 40:
            raise self.fail(node, f"expected a whole number below 2^63, found {text[:20]}… ({len(text)} characters)")
        plain = text.replace("_", "")
        value = int(plain, 0) if plain.lstrip("+-")[:2].lower() in ("0x", "0o", "0b") else int(plain)
        if abs(value) >= MAX_INT:
            raise self.fail(node, f"expected a whole number below 2^63, found {text}")
        return value

    def _float(self, node: Any, text: str) -> float:
        try:
            value = float(text.replace("_", ""))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.fail(node, f"expected a finite number, found {text}")
        return value


def override(parsed: Parsed, assignments: Sequence[str]) -> Parsed:
    """Apply `a.b=value` assignments; values are YAML, as in the file.

    Raises:
        ConfigError: no `=`, a path through something that is not a mapping, an index out of range.
    """
    import copy

    data, lines = copy.deepcopy(parsed.data), dict(parsed.lines)
    for assignment in assignments:
        shown = f"--set {assignment}"
        dotted, equals, text = assignment.partition("=")
        if not equals or not dotted.strip():
            raise ConfigError(f"{shown}: expected A.B=VALUE")
        node = _compose(text, shown)
        value = None if node is None else _Reader(shown).value(node, (), 0)
        path = _assign(data, dotted.strip().split("."), value, shown)
        lines = {known: line for known, line in lines.items() if known[: len(path)] != path} | {path: shown}
    return Parsed(parsed.path, data, lines)


def _assign(data: Any, names: list[str], value: Any, shown: str) -> NodePath:
    path: list[str | int] = []
    here = data
    for depth, name in enumerate(names):
        if isinstance(here, list):
            if not name.isdigit() or int(name) >= len(here):
                raise ConfigError(
                    f"{shown}: expected an index from 0 to {len(here) - 1} after {'.'.join(names[:depth])!r}"
                )
            step: str | int = int(name)
        elif isinstance(here, dict):
            step = name
        else:
            raise ConfigError(f"{shown}: {'.'.join(names[:depth])!r} is a single value; it has no {name!r}")
        path.append(step)
        if depth == len(names) - 1:
            here[step] = value  # type: ignore[index]
        else:
            if isinstance(here, dict):
                here.setdefault(step, {})
            here = here[step]  # type: ignore[index]
    return tuple(path)


def validate(model: type[M], parsed: Parsed) -> M:
    """Check plain data against a pydantic model.

    Raises:
        ConfigError: naming every problem with its line, a did-you-mean for unknown fields, expected and found.
    """
    try:
        return model.model_validate(parsed.data)
    except ValidationError as error:
        lines = dict.fromkeys(_message(model, parsed, entry) for entry in error.errors())
        texts = [text for _, text in sorted(lines)]
        if len(texts) == 1:
            raise ConfigError(texts[0]) from None
        raise ConfigError(f"{parsed.path}: {len(texts)} errors\n" + "\n".join(f"  {text}" for text in texts)) from None


def _message(model: type[BaseModel], parsed: Parsed, entry: Any) -> tuple[tuple[int, str], str]:
    path = _real_path(parsed.data, entry["loc"])
    dotted = ".".join(map(str, path))
    kind = entry["type"]
    if kind == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        text = f"unknown field.{did_you_mean(str(path[-1]), known) if known else ''}"
    elif kind == "missing":
        text = "expected a value, found none"
    elif kind == "value_error":
        text = str(entry["msg"]).removeprefix("Value error, ")
    else:
        text = f"{entry['msg'][:1].lower()}{entry['msg'][1:]}, found {_short(entry['input'])}"
    where = parsed.where(path)
    line = where.rpartition(":")[2]
    order = (int(line) if line.isdigit() else 0, dotted)
    return order, f"{where}: {dotted + ': ' if dotted else ''}{text}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _real_path(data: Any, loc: Iterable[str | int]) -> NodePath:
    """Drop pydantic's branch names from a location: keep what leads somewhere, and the last part of a missing key."""
    path: list[str | int] = []
    here, parts = data, list(loc)
    for index, part in enumerate(parts):
        inside = (isinstance(here, dict) and part in here) or (
            isinstance(here, list) and isinstance(part, int) and part < len(here)
        )
        if inside:
            path.append(part)
            here = here[part]  # type: ignore[index]
        elif index == len(parts) - 1 and isinstance(here, dict) and isinstance(part, str) and part.isidentifier():
            path.append(part)
    return tuple(path)


def _fields_at(model: Any, path: NodePath) -> set[str]:
    """Return the field names of the model that stands at `path`; empty where that is unclear."""
    here = model
    for step in path:
        options = [found for found in (_step(option, step) for option in _models(here)) if found is not None]
        if not options:
            return set()
        here = options[0]
    return {name for option in _models(here) if _is_model(option) for name in option.model_fields}


def _step(option: Any, step: str | int) -> Any:
    if _is_model(option):
        return option.model_fields[step].annotation if step in option.model_fields else None
    arguments = get_args(option)
    origin = get_origin(option)
    if origin is dict and len(arguments) == 2:
        return arguments[1]
    return arguments[0] if origin in (list, tuple) and arguments else None


def _models(annotation: Any) -> list[Any]:
    """Unfold unions and Annotated."""
    if get_origin(annotation) is Annotated:
        return _models(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [found for argument in get_args(annotation) for found in _models(argument)]
    return [annotation]


def _is_model(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, BaseModel)
