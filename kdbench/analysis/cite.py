"""BibTeX of the objectives that were used, and of kdbench itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kdbench.errors import ConfigError

if TYPE_CHECKING:
    from kdbench.api import Objective


def entries(specs: Iterable[str | Mapping[str, Any]]) -> list[str]:
    """Return one BibTeX entry a publication, in the order of the objectives, those that they wrap first; then kdbench.

    Raises:
        ConfigError: a specification names no known objective.
    """
    from kdbench import registry

    found: dict[str, str] = {}
    for spec in specs:
        for one in _with_bases(registry.objective(spec)):
            entry = _entry(one)
            found.setdefault(_key(entry), pretty(entry))
    return [*found.values(), kdbench()]


def of_suite(suite: Mapping[str, Any]) -> list[str]:
    """Return the entries of a suite's objectives (as plan.json holds it); a plugin that is not here is left out."""
    found: dict[str, str] = {}
    for objective in suite["objectives"]:
        try:
            found |= {_key(entry): entry for entry in entries([objective["spec"]])[:-1]}
        except ConfigError:
            found[objective["label"]] = f"% {objective['label']}: its plugin is not installed here"
    return [*found.values(), kdbench()]


def _with_bases(objective: Objective) -> list[Objective]:
    """Return what an objective wraps, innermost first, then itself."""
    base = getattr(objective, "base", None)
    return [*(_with_bases(base) if hasattr(base, "source") else []), objective]


def _entry(objective: Objective) -> str:
    source = objective.source
    if source.bibtex.strip():
        return source.bibtex
    fields = {"title": source.title, "year": str(source.year), "url": source.url}
    body = ", ".join(f"{name}={{{value}}}" for name, value in fields.items() if value)
    return f"@misc{{{objective.name}{source.year}, {body}}}"


def kdbench() -> str:
    """Return kdbench's own entry, from the installed package's metadata."""
    from importlib import metadata

    about = metadata.metadata("kdbench")
    fields = {"title": f"kdbench: {about['Summary']}", "version": about["Version"]}
    fields |= {"author": about.get("Author") or "", "url": about.get("Home-page") or ""}
    body = ", ".join(f"{name}={{{value}}}" for name, value in fields.items() if value)
    return pretty(f"@software{{kdbench, {body}}}")


def _key(entry: str) -> str:
    found = re.match(r"\s*@\w+\s*\{\s*([^,\s]+)", entry)
    return found.group(1) if found else entry


def pretty(entry: str) -> str:
    """Return a BibTeX entry with a line a field; commas inside braces or quotes part nothing."""
    parts, depth, quoted = [""], 0, False
    for sign in entry.strip():
        depth += (sign == "{") - (sign == "}")
        quoted ^= sign == '"' and depth == 1
        if sign == "," and depth == 1 and not quoted:
            parts.append("")
        else:
            parts[-1] += sign
    head, *fields = (" ".join(part.split()) for part in parts)
    if not fields:
        return head
    fields[-1] = fields[-1].removesuffix("}").strip()
    lines = [re.sub(r"\s*=\s*", " = ", field, count=1) for field in fields if field]
    return ",\n".join([head, *(f"  {line}" for line in lines)]) + "\n}"
