"""plan.json: which cells make up a suite, as last planned. Every reading of results starts here, so it is checked.

It says in which format and under which protocol it was written, and holds a sha256 of itself: what was changed since is
refused like any damaged file. Plans from before that are taken as they are, if they have the shape of one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

import kdbench
from kdbench.errors import StoreError
from kdbench.files import SUM, is_broken, read_json, sealed, write_json
from kdbench.run.store import LATER
from kdbench.suite import problems
from kdbench.suite.claims import Claim
from kdbench.suite.external import Arm
from kdbench.suite.part import NAME
from kdbench.suite.schema import Compare, Examine

FILE, FORMAT = "plan.json", 1


class Later(StoreError):
    """A plan that a later kdbench wrote; it may be whole."""


class _Shape(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class _Objective(_Shape):
    label: str
    spec: dict[str, Any]


class _Suite(_Shape):
    """What readers of results take from a suite; the rest of it is for those who run it."""

    name: str = Field(pattern=NAME)
    question: str = ""
    students: list[str] = Field(min_length=1)
    teachers: list[str] = []
    seeds: list[StrictInt]
    objectives: list[_Objective] = []
    compare: Compare = Compare()
    examine: Examine = Examine()
    arms: list[Arm] = []
    claims: list[Claim] = []


class _Inputs(_Shape):
    arm: str


class _Cell(_Shape):
    key: str = Field(pattern=r"^[0-9A-Za-z]+$")
    arm: str
    student: str | None
    teacher: str | None
    seed: StrictInt | None
    inputs: _Inputs


class _Environment(_Shape):
    protocol: str
    device: str = ""
    precision: str = ""
    threads: int = 1
    versions: dict[str, str] = {}


class _Plan(_Shape):
    suite: _Suite
    environment: _Environment
    overrides: list[str] = []
    cells: list[_Cell]


def write(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write a plan, with its format and its sha256; return what was written."""
    whole = sealed({"format": FORMAT} | content)
    write_json(path, whole)
    return whole


def write_if_changed(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write a plan unless it is there already; return it. One that cannot be read is written over."""
    try:
        known = read(path) if path.exists() else None
    except StoreError:
        known = None
    plain = {name: value for name, value in (known or {}).items() if name not in ("format", SUM)}
    return known if known and plain == content else write(path, content)


def read(path: Path) -> dict[str, Any]:
    """Read a plan that this kdbench can understand.

    Raises:
        StoreError: it cannot be read, was changed since it was written, is no plan, or is of a later format or
            protocol than this kdbench knows.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise StoreError(
            f"{path}: expected a plan that kdbench wrote, found {problems.short(found)}; run its suite again"
        )
    _is_known(path, found)
    if is_broken(found):
        raise StoreError(f"{path} is damaged, or was changed by hand (its sha256 differs); run its suite again")
    try:
        shape = _Plan.model_validate(found)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise StoreError(
            f"{path}: expected a plan that kdbench wrote, but {where}: {error.errors()[0]['msg']}; run its suite again"
        ) from None
    if shape.suite.name != path.parent.name and SUM in found:
        raise StoreError(
            f"{path}: expected the plan of a suite {path.parent.name!r}, found that of {shape.suite.name!r}"
        )
    whole = {name: getattr(shape.suite, name).model_dump(mode="json") for name in ("compare", "examine")}
    named = {"overrides": shape.overrides, "environment": shape.environment.model_dump()}
    return found | named | {"suite": found["suite"] | whole}


def state(path: Path) -> str:
    """Return `ok`, `damaged`, or `later` for the plan of a later kdbench, which may be whole."""
    try:
        read(path)
    except Later:
        return LATER
    except StoreError:
        return "damaged"
    return "ok"


def _is_known(path: Path, found: dict[str, Any]) -> None:
    number = found.get("format", FORMAT)
    environment = found.get("environment")
    named = environment.get("protocol") if isinstance(environment, dict) else None
    if not isinstance(number, int) or number > FORMAT:
        raise Later(later(path, f"in format {number!r:.20}", f"format {FORMAT}"))
    protocol, own = major_minor(named), major_minor(kdbench.PROTOCOL)
    assert own
    if named is not None and (protocol is None or protocol > own):
        raise Later(later(path, f"under protocol {named!r:.20}", f"protocol {kdbench.PROTOCOL}"))


def later(path: Path, written: str, known: str) -> str:
    """Say that something was written by a later kdbench."""
    return (
        f"{path} was written {written}, and this kdbench reads up to {known}: use the kdbench that wrote it, or "
        "another results folder"
    )


def major_minor(protocol: Any) -> tuple[int, int] | None:
    """Return what must be equal for results to be comparable; None where it is no protocol's number."""
    parts = protocol.split(".") if isinstance(protocol, str) else []
    if not parts or not all(part.isdecimal() and part.isascii() and len(part) < 6 for part in parts):
        return None
    return int(parts[0]), int(parts[1]) if len(parts) > 1 else 0


def comparable(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two inputs, or environments, are of one protocol major.minor; where either says none they are."""
    named = [inputs["protocol"] for inputs in (one, other) if "protocol" in inputs]
    return len(named) < 2 or major_minor(named[0]) == major_minor(named[1])
