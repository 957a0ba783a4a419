"""What pydantic found wrong, in words a person can act on: expected, found, where, did you mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from kdbench.errors import did_you_mean

NodePath = tuple[str | int, ...]
Item = tuple[NodePath, str, str]  # where, pydantic's kind of error, our text
OWN_WORDS = ("value_error", "assertion_error")  # messages that our own validators wrote


def gather(model: type[BaseModel], data: Any, entries: Iterable[Any]) -> dict[NodePath, list[str]]:
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
    return f"expected {message}, found {short(entry['input'])}"


def either(texts: list[str]) -> str:
    """Join what the branches of a union expected of one value."""
    texts = list(dict.fromkeys(texts))
    found = texts[0][texts[0].rfind(", found ") :]
    if len(texts) > 1 and all(text.startswith("expected ") and text.endswith(found) for text in texts):
        wanted = " or ".join(text.removeprefix("expected ").removesuffix(found) for text in texts)
        return f"expected {wanted}{found}"
    return "; or ".join(texts)


def short(value: Any) -> str:
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
