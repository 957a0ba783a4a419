"""From a YAML file and `--set` overrides to a validated model, with every error at once, each at its line.

YAML 1.2 (so `1e-4` is a number and `no` is a word), no tags, no duplicate keys, bounded size: reading never runs code.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from kdbench.errors import ConfigError, did_you_mean
from kdbench.suite.problems import NodePath, either, gather, short

MAX_BYTES = 1_000_000
MAX_NODES = 20_000  # keys and values, after aliases are followed
MAX_DEPTH = 40
MAX_INT = 2**63
TOO_MUCH = f"expected at most {MAX_NODES:,} values, {MAX_DEPTH} deep, aliases followed; found more"
# Tags that YAML gives by itself to a scalar; `value` is a bare `=`. Dates stay text.
PLAIN = {"str", "int", "float", "bool", "null", "timestamp", "value"}
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
            raise self.fail(node, f"tags are not allowed, found {short(tag)}")
        return tag

    def _mapping(self, node: Any, path: NodePath, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, child in node.value:
            self.count += 1
            key, line = key_node.value, key_node.start_mark.line + 1
            self._check_text(key_node)
            if self._tag(key_node) != "str":
                shown = f"{key:.60}; quotes make it a name" if isinstance(key, str) else "a mapping or a list"
                raise self.fail(key_node, f"expected a name as key, found {shown}")
            if key in found:
                raise self.fail(key_node, f"the key {short(key)} stands twice, first in line {first[key]}")
            first[key] = self.lines[(*path, key)] = line
            found[key] = self.value(child, (*path, key), depth + 1)
        return found

    def _scalar(self, node: Any, tag: str) -> Any:
        text = str(node.value)
        self._check_text(node)
        if tag in ("int", "float"):
            return self._number(node, tag, text)
        # A written tag such as `!!bool maybe` can claim what the text is not.
        if text.lower() not in {"bool": ("true", "false"), "null": ("", "~", "null")}.get(tag, (text.lower(),)):
            raise self.fail(node, f"expected {tag}, found {short(text)}")
        return {"bool": text.lower() == "true", "null": None}.get(tag, text)

    def _check_text(self, node: Any) -> None:
        """Refuse what no file name and no UTF-8 file can hold; escapes in double quotes can write it."""
        for bad in re.findall("[\0\ud800-\udfff]", node.value if isinstance(node.value, str) else "")[:1]:
            raise self.fail(node, f"expected text without NUL and halves of characters, found {bad!r} in it")

    def _number(self, node: Any, tag: str, text: str) -> int | float:
        plain = text.replace("_", "")
        base = 0 if plain.lstrip("+-")[:2].lower() in ("0x", "0o", "0b") else 10
        try:
            value = float(plain) if tag == "float" else int(plain, base)
        except ValueError:
            value = math.inf
        if not -MAX_INT <= value < MAX_INT and (tag == "int" or not math.isfinite(value)):
            expected = "a finite number" if tag == "float" else "a whole number below 2^63"
            raise self.fail(node, f"expected {expected}, found {short(text)}")
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
        for path, texts in gather(model, parsed.data, error.errors(include_url=False)).items():
            line, dotted = parsed.line(path), ".".join(map(str, path))
            text = f"{parsed.where(path)}: {dotted + ': ' if dotted else ''}{either(texts)}"
            problems.append((line if isinstance(line, int) else 0, dotted, text))
        ordered = [text for _, _, text in sorted(problems)]
        head = [f"{parsed.path}: {len(ordered)} errors"] if len(ordered) > 1 else []
        raise ConfigError("\n  ".join(head + ordered)) from None
