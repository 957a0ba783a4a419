"""The base of every section of a suite file, and what several sections hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Part(BaseModel):
    """A section of a suite file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def inside(value: str) -> str:
    """Return a glob that stays inside its folder and that `Path.glob` takes.

    Raises:
        ValueError: it is none.
    """
    parts = [part for part in value.split("/") if part not in ("", ".")]
    if ".." in parts or value.startswith("/"):
        raise ValueError(f"expected a glob inside the folder, without '..' or a leading '/', found {value!r:.60}")
    if not parts:
        raise ValueError(f"expected a glob such as '*.txt', found {value!r:.60}, which names no file")
    if any("**" in part and part != "**" for part in parts):
        raise ValueError(f"expected `**` to stand alone between slashes, such as '**/*.txt', found {value!r:.60}")
    return value


def _installed(value: str) -> str:
    if not value or value.startswith("__"):  # Python's own, such as __main__: the running program, which holds no files
        raise ValueError(f"expected the name of an installed package, found {value!r:.60}")
    return value


Glob = Annotated[str, AfterValidator(inside)]
Package = Annotated[str, AfterValidator(_installed)]
