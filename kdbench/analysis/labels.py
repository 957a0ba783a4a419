"""Long labels in little room: cut in the middle, or broken where a reader would break them."""

from __future__ import annotations

import re


def cut(text: str, width: int) -> str:
    """Return `text` in at most `width` characters: its middle gives way, since labels differ at both ends."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def fold(text: str, width: int, most: int = 3) -> list[str]:
    """Return `text` as lines of at most `width` characters, broken behind commas, spaces, `+` and `/` only.

    What has no such place in it, or needs more than `most` lines, is cut in the middle.
    """
    if len(text) <= width:
        return [text]
    lines = [""]
    for piece in re.findall(r"[^,+/\s]*[,+/\s]|[^,+/\s]+", text):
        if lines[-1] and len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    if len(lines) > most:
        lines = [*lines[: most - 1], "".join(lines[most - 1 :])]
    return [cut(line.rstrip(), width) for line in lines]


def model(name: str, width: int = 16) -> str:
    """Return a model's name without its owner on the Hub, cut to `width`."""
    return cut(name.rsplit("/", 1)[-1], width)


def count(number: int, what: str) -> str:
    """Return `1 seed`, `3 seeds`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def listed(names: list[str], last: str = "and", most: int = 6) -> str:
    """Return `a, b and c`; of many the first and how many more."""
    if len(names) > most:
        return f"{', '.join(names[: most - 1])} {last} {len(names) - most + 1} more"
    return f" {last} ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
