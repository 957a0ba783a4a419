"""The changelog says of each version which protocol its results are of, and of each entry what it touches.

python -m pytest tests/test_changelog.py
"""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import kdbench

TEXT = (Path(__file__).parent.parent / "CHANGELOG.md").read_text(encoding="utf-8")
TAGS = ("Code", "Protocol", "Results", "Docs")
HEADING = re.compile(
    r"## (?P<version>\d+\.\d+\.\d+)(?: \((?P<when>unreleased|\d{4}-\d\d-\d\d)\)), protocol (?P<protocol>\d+\.\d+)"
)


def sections() -> list[tuple[str, str]]:
    """Return heading and body of every version, the newest first."""
    parts = re.split(r"^(## .*)$", TEXT, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def test_the_newest_section_is_of_the_current_version_and_protocol():
    newest = HEADING.fullmatch(sections()[0][0])
    assert newest, "expected a heading such as: ## 0.1.0 (unreleased), protocol 1.0"
    assert newest["version"] == version("kdbench")
    assert newest["protocol"] == ".".join(kdbench.PROTOCOL.split(".")[:2])


def test_every_heading_names_version_date_and_protocol_and_none_stands_twice():
    found = [HEADING.fullmatch(heading) for heading, _ in sections()]
    assert all(found) and len({one["version"] for one in found}) == len(found)
    assert all(one["when"] != "unreleased" for one in found[1:])


def test_every_entry_carries_one_known_tag():
    for heading, body in sections():
        entries = re.findall(r"^- (.*)$", body, flags=re.MULTILINE)
        assert entries, heading
        for entry in entries:
            tag = re.match(r"\[(\w+)\] \S", entry)
            assert tag and tag[1] in TAGS, f"expected one of {', '.join(TAGS)} in brackets: {entry}"
