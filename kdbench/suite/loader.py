"""From a YAML file and `--set` overrides to a validated model, with every error at once, each at its line.

YAML 1.2 (so `1e-4` is a number and `no` is a word), no tags, no duplicate keys, bounded size: reading never runs code.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from kdbench.errors import ConfigError, did_you_mean

MAX_BYTES = 1_000_000
MAX_NODES = 20_000  # keys and values, after aliases are followed
MAX_DEPTH = 40
MAX_INT = 2**63
TOO_MUCH = f"expected at most {MAX_NODES:,} values, {MAX_DEPTH} deep, aliases followed; found more"
# Tags that YAML gives by itself to a scalar; `value` is a bare `=`. Dates stay text.
PLAIN = {"str", "int", "float", "bool", "null", "timestamp", "value"}
OWN_WORDS = ("value_error", "assertion_error")  # messages that our own validators wrote
NodePath = tuple[str | int, ...]
Item = tuple[NodePath, str, str]  # where, pydantic's kind of error, our text
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Parsed:
    """A file's plain data, and the 1-based line of each key and item (or the `--set` that gave it)."""

    path: Path
    data: dict[str, Any]
    lines: dict[NodePath, int | str]

    def line(self, path: NodePath) -> int | str:
        """Return the line, or the override, of the nearest known part of a path."""
        return next((self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines), 1)

    def where(self, path: NodePath) -> str:
        """Return `file:line`, or the override, of the nearest known part of a path."""
        found = self.line(path)
        return found if isinstance(found, str) else f"{self.path}:{found}"


def parse(path: Path) -> Parsed:
    """Read a YAML file.

    Raises:
        ConfigError: missing, not UTF-8, not YAML, duplicate keys, tags, too large, or not a mapping.
    """
    node = _compose(_read(path), str(path))
    if node is None:
        raise ConfigError(f"{path}: the file is empty; expected a suite")
    reader = _Reader(str(path))
    data = reader.value(node, (), 0)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(data).__name__}")
    return Parsed(path, data, reader.lines)


def _read(path: Path) -> str:
    try:
        if not path.is_file():
            names = [other.name for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
            found = "a folder" if path.is_dir() else "none"
            hint = did_you_mean(path.name, names)
            raise ConfigError(f"no such suite: expected a YAML file at {path}, found {found}.{hint}")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: expected at most {MAX_BYTES:,} bytes, found more")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: expected UTF-8 text, found byte 0x{raw[error.start]:02x}") from None


class _Composer(Composer):
    """Stops at the first node too many or too deep: composing a whole hostile file takes half a minute."""

    def __init__(self, loader: Any = None):
        super().__init__(loader=loader)
        self.warn_double_anchors = False  # lawful YAML; a Python warning would only confuse
        self.nodes = self.level = 0

    def compose_document(self) -> Any:
        start = self.parser.peek_event()
        if start.version not in (None, (1, 2)):  # in YAML 1.1 `no` is false and `1:30` is 90
            raise MarkedYAMLError(problem="expected %YAML 1.2, found another version", problem_mark=start.start_mark)
        return super().compose_document()

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.nodes, self.level = self.nodes + 1, self.level + 1
        if self.nodes > MAX_NODES or self.level > MAX_DEPTH + 1:
            raise MarkedYAMLError(problem=TOO_MUCH, problem_mark=self.parser.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.level -= 1
        return node


def _compose(text: str, name: str) -> Any:
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _Composer
    try:
        return yaml.compose(text)
    except MarkedYAMLError as error:
        mark, problem = error.problem_mark or error.context_mark, error.problem or error.context
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark and not name.startswith("--set ") else name
        raise ConfigError(f"{place}: {'' if problem == TOO_MUCH else 'not valid YAML: '}{problem}") from None
    except (YAMLError, ValueError, RecursionError, AssertionError) as error:
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{name}:{line}: not valid YAML: {problem}") from None


class _Reader:
    """Turns nodes into plain values, noting lines and refusing what a suite may not hold."""

    def __init__(self, name: str):
        self.name = name
        self.lines: dict[NodePath, int | str] = {}
        self.count = 0

    def fail(self, node: Any, message: str) -> ConfigError:
        line = "" if self.name.startswith("--set ") else f":{node.start_mark.line + 1}"
        return ConfigError(f"{self.name}{line}: {message}")

    def value(self, node: Any, path: NodePath, depth: int) -> Any:
        self.count += 1
        if self.count > MAX_NODES or depth > MAX_DEPTH:
            raise self.fail(node, TOO_MUCH)
        self.lines.setdefault(path, node.start_mark.line + 1)
        tag = self._tag(node)
        if tag == "map":
            return self._mapping(node, path, depth)
        if tag == "seq":
            return [self.value(child, (*path, i), depth + 1) for i, child in enumerate(node.value)]
        return self._scalar(node, tag)

    def _tag(self, node: Any) -> str:
        tag = str(node.tag or "").removeprefix("tag:yaml.org,2002:")
        if tag == "merge":
            raise self.fail(node, "`<<` is not part of YAML 1.2; write the values out")
        allowed = {"MappingNode": {"map"}, "SequenceNode": {"seq"}}.get(type(node).__name__, PLAIN)
        if tag not in allowed:
            raise self.fail(node, f"tags are not allowed, found {_short(tag)}")
        return tag

    def _mapping(self, node: Any, path: NodePath, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, child in node.value:
            self.count += 1
            key, line = key_node.value, key_node.start_mark.line + 1
            if self._tag(key_node) != "str":
                shown = f"{key:.60}; quotes make it a name" if isinstance(key, str) else "a mapping or a list"
                raise self.fail(key_node, f"expected a name as key, found {shown}")
            if key in found:
                raise self.fail(key_node, f"the key {_short(key)} stands twice, first in line {first[key]}")
            first[key] = self.lines[(*path, key)] = line
            found[key] = self.value(child, (*path, key), depth + 1)
        return found

    def _scalar(self, node: Any, tag: str) -> Any:
        text = str(node.value)
        if tag in ("int", "float"):
            return self._number(node, tag, text)
        # A written tag such as `!!bool maybe` can claim what the text is not.
        if text.lower() not in {"bool": ("true", "false"), "null": ("", "~", "null")}.get(tag, (text.lower(),)):
            raise self.fail(node, f"expected {tag}, found {_short(text)}")
        return {"bool": text.lower() == "true", "null": None}.get(tag, text)

    def _number(self, node: Any, tag: str, text: str) -> int | float:
        plain = text.replace("_", "")
        base = 0 if plain.lstrip("+-")[:2].lower() in ("0x", "0o", "0b") else 10
        try:
            value = float(plain) if tag == "float" else int(plain, base)
        except ValueError:
            value = math.inf
        if not -MAX_INT <= value < MAX_INT and (tag == "int" or not math.isfinite(value)):
            expected = "a finite number" if tag == "float" else "a whole number below 2^63"
            raise self.fail(node, f"expected {expected}, found {_short(text)}")
        return value


def override(parsed: Parsed, assignments: Sequence[str]) -> Parsed:
    """Apply `a.b=value` assignments; values are YAML, as in the file. An existing key may itself hold dots.

    Raises:
        ConfigError: no `=`, a path through something that is not a mapping, an index out of range.
    """
    data, lines = copy.deepcopy(parsed.data), dict(parsed.lines)
    for assignment in assignments:
        shown = f"--set {assignment}"
        dotted, equals, text = assignment.partition("=")
        names = dotted.strip().split(".")
        if not equals or not all(names):
            raise ConfigError(f"{shown}: expected A.B=VALUE")
        node = _compose(text, shown)
        value = None if node is None else _Reader(shown).value(node, (), 0)
        path = _assign(data, names, value, shown)
        lines = {known: line for known, line in lines.items() if known[: len(path)] != path} | {path: shown}
        # Sections that this assignment made have no line of their own.
        lines |= {path[:n]: shown for n in range(1, len(path)) if path[:n] not in lines}
    return Parsed(parsed.path, data, lines)


def _assign(data: Any, names: list[str], value: Any, shown: str) -> NodePath:
    path: list[str | int] = []
    here, at = data, 0
    while True:
        before, name, end = ".".join(names[:at]), names[at], at + 1
        step: str | int = name
        if isinstance(here, list):
            if not re.fullmatch("[0-9]{1,9}", name) or int(name) >= len(here):
                span = f"an index from 0 to {len(here) - 1}" if here else "no index, for the list is empty,"
                raise ConfigError(f"{shown}: expected {span} after {before!r}, found {name!r}")
            step = int(name)
        elif isinstance(here, dict):
            end = next((n for n in range(len(names), at, -1) if ".".join(names[at:n]) in here), end)
            step = ".".join(names[at:end])
        else:
            raise ConfigError(f"{shown}: {before!r} is a single value; it has no {name!r}")
        path.append(step)
        if end == len(names):
            here[step] = value
            return tuple(path)
        here, at = here.setdefault(step, {}) if isinstance(here, dict) else here[step], end


def validate(model: type[M], parsed: Parsed, context: dict[str, Any] | None = None) -> M:
    """Check plain data against a pydantic model; `context` goes to its validators.

    Raises:
        ConfigError: naming every problem with its line, a did-you-mean for unknown fields, expected and found.
    """
    try:
        return model.model_validate(parsed.data, context=context)
    except ValidationError as error:
        problems = []
        for path, texts in _gather(model, parsed.data, error.errors(include_url=False)).items():
            line, dotted = parsed.line(path), ".".join(map(str, path))
            text = f"{parsed.where(path)}: {dotted + ': ' if dotted else ''}{_either(texts)}"
            problems.append((line if isinstance(line, int) else 0, dotted, text))
        ordered = [text for _, _, text in sorted(problems)]
        head = [f"{parsed.path}: {len(ordered)} errors"] if len(ordered) > 1 else []
        raise ConfigError("\n  ".join(head + ordered)) from None


def _gather(model: type[BaseModel], data: Any, entries: Iterable[Any]) -> dict[NodePath, list[str]]:
    """Return what is wrong at each path; of a union, only what its likely branches say."""
    places: dict[NodePath, dict[str, list[Item]]] = {}
    for entry in entries:
        path, place, branch = _real_path(data, entry)
        item = (path, entry["type"], _text(model, data, path, entry))
        places.setdefault(place, {}).setdefault(branch, []).append(item)
    found: dict[NodePath, list[str]] = {}
    for place, branches in places.items():
        for path, _, text in _likely(place, branches):
            found.setdefault(path, []).append(text)
    return found


def _likely(place: NodePath, branches: dict[str, list[Item]]) -> list[Item]:
    """Return what the branch that was meant says: right in kind, else wrong deepest inside; all when none is."""

    def wrong(item: Item) -> bool:
        return item[1] == "literal_error" or (item[0] == place and item[1] not in OWN_WORDS)

    fitting = [items for items in branches.values() if not any(map(wrong, items))]
    deeper = [items for items in branches.values() if any(path != place for path, _, _ in items)]
    return min(fitting or deeper, key=len, default=[item for items in branches.values() for item in items])


def _text(model: type[BaseModel], data: Any, path: NodePath, entry: Any) -> str:
    kind, message, context = entry["type"], str(entry["msg"]), entry.get("ctx", {})
    if kind == "extra_forbidden":
        known = _fields_at(model, data, path[:-1])
        return f"unknown field.{did_you_mean(str(path[-1]), known) if known else ''}"
    if kind == "missing":
        return "expected a value, found none"
    if kind in OWN_WORDS:
        return message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind == "union_tag_not_found":
        return f"expected a field {context['discriminator']}, found none"
    if kind == "union_tag_invalid":
        return (
            f"expected {context['discriminator']} to be one of {context['expected_tags']}, found {context['tag']!r:.60}"
        )
    message = re.sub(r", unable to .*$", "", message.removeprefix("Input should be "))
    message = re.sub(r"^a valid dictionary.*", "a mapping", message)
    message = re.sub(r"^(\w+) should ", lambda noun: f"a {noun[1].lower()} to ", message)
    return f"expected {message}, found {_short(entry['input'])}"


def _either(texts: list[str]) -> str:
    """Join what the branches of a union expected of one value."""
    texts = list(dict.fromkeys(texts))
    found = texts[0][texts[0].rfind(", found ") :]
    if len(texts) > 1 and all(text.startswith("expected ") and text.endswith(found) for text in texts):
        wanted = " or ".join(text.removeprefix("expected ").removesuffix(found) for text in texts)
        return f"expected {wanted}{found}"
    return "; or ".join(texts)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _real_path(data: Any, entry: Any) -> tuple[NodePath, NodePath, str]:
    """Split pydantic's location: the path in the data, the place of the first union on it, and the branch taken."""
    path: list[str | int] = []
    place, branch = None, ""
    here, loc = data, entry["loc"]
    for index, part in enumerate(loc):
        if (isinstance(here, dict) and part in here) or (isinstance(here, list) and part in range(len(here))):
            here = here[part]
        elif entry["type"] != "missing" or index < len(loc) - 1:  # not in the data: pydantic's name of a branch
            if place is None and part != "[key]":
                place, branch = tuple(path), str(part)
            continue
        path.append(part)
    return tuple(path), tuple(path) if place is None else place, branch


def _fields_at(model: Any, data: Any, path: NodePath) -> set[str]:
    """Return the field names of the model that stands at `path`; empty where that is unclear."""
    options, here = [model], data
    for step in path:
        options = [found for option in options if _fits(option, here) for found in _step(option, step)]
        here = here[step]
    models = [option for option in options if hasattr(option, "model_fields")]
    models = [option for option in models if _fits(option, here)] or models
    return {field.alias or name for option in models for name, field in option.model_fields.items()}


def _fits(option: Any, data: Any) -> bool:
    """Say whether every `Literal` of a model, such as the tag of a discriminated union, allows the data."""
    fields = option.model_fields.items() if hasattr(option, "model_fields") and isinstance(data, dict) else ()
    tags = ((name, get_args(field.annotation)) for name, field in fields if get_origin(field.annotation) is Literal)
    return all(data[name] in allowed for name, allowed in tags if name in data)


def _step(option: Any, step: str | int) -> list[Any]:
    if hasattr(option, "model_fields"):
        fields = option.model_fields.items()
        return [found for name, field in fields if step in (name, field.alias) for found in _models(field.annotation)]
    arguments, origin = get_args(option), get_origin(option)
    if not (arguments and isinstance(origin, type) and issubclass(origin, Iterable)):
        return []
    return _models(arguments[-1] if issubclass(origin, Mapping) else arguments[0])


def _models(annotation: Any) -> list[Any]:
    """Unfold unions and Annotated."""
    if get_origin(annotation) is Annotated:
        return _models(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [found for argument in get_args(annotation) for found in _models(argument)]
    return [annotation]
