"""Results folders with files, values and names that nobody of ours wrote: answered or refused, never followed outside.

python -m pytest tests/fuzz/test_stores.py
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from hypothesis import strategies as st

import kdbench
from kdbench.analysis import conclusion
from kdbench.errors import KdbenchError
from kdbench.files import SUM, sealed, sha256_file
from kdbench.run.store import FORMAT, KINDS, Store
from tests.fixtures import unpack
from tests.fixtures.__main__ import write_suite
from tests.fuzz import VALUES, ends_well, fuzzed, mutated, within

READERS = (
    ("compare", "--json"),
    ("report",),
    ("diff", "objective=kl,seed=0", "objective=sft,seed=0"),
    ("cite",),
    ("doctor", "--store"),
    ("cache", "ls"),
    ("gc", "--json"),
    ("cache", "verify"),
    ("gc", "--yes"),
)
PLAN, LOADED, CONCLUDED = ("plan",), ("kdbench.load_scores",), ("what ends a run",)
ASKED = st.sampled_from([*READERS, PLAN, LOADED, CONCLUDED])
SENTINEL = "not yours"


@cache
def whole() -> Path:
    """The store of today's format, with its report."""
    results = unpack(FORMAT, Path(tempfile.mkdtemp()))
    conclusion.conclude(results, "kept")
    return results


@cache
def suite() -> Path:
    """The suite that wrote it, beside its corpus."""
    return write_suite(Path(tempfile.mkdtemp()))


def copied(home: Path) -> Path:
    """Return a store of one's own, beside a folder that is nobody's business."""
    for old in ("results", "outside"):
        shutil.rmtree(home / old, ignore_errors=True)
    shutil.copytree(whole(), home / "results")
    (home / "outside").mkdir()
    (home / "outside" / "mine.json").write_text(SENTINEL)
    return home / "results"


def is_read_or_refused(results: Path, reader: tuple[str, ...]) -> None:
    """Ask what reads a store; nothing outside of it may change."""
    outside = results.parent / "outside"
    if reader in (LOADED, CONCLUDED):
        try:
            with within():
                kdbench.load_scores(results) if reader == LOADED else conclusion.conclude(results, "kept")
        except KdbenchError as error:
            assert str(error).strip()
    else:
        ends_well(*reader, *([suite()] if reader == PLAN else []), "--results-dir", results)
    assert {one.name: one.read_text() for one in outside.iterdir()} == {"mine.json": SENTINEL}
    assert {one.name for one in results.parent.iterdir()} == {"results", "outside"}


def rewrite(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def replaced(path: Path, what: str, outside: Path) -> None:
    """Put something else in the place of a file."""
    path.unlink()
    if what == "folder":
        path.mkdir()
        (path / "mine").write_text(SENTINEL)  # an empty one in an entry's place holds nothing of anybody
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "link":
        path.symlink_to(outside / "mine.json")
    elif what == "link to a folder":
        path.symlink_to(outside)
    elif what == "endless":
        path.symlink_to("/dev/zero")
    elif what == "loop":
        path.symlink_to(path.name)


def files_of(results: Path) -> list[str]:
    return sorted(one.relative_to(results).as_posix() for one in results.rglob("*") if one.is_file())


WHATS = ("gone", "folder", "pipe", "link", "link to a folder", "endless", "loop")


@fuzzed(
    12,
    600,
    reader=ASKED,
    which=st.integers(0, 10_000),
    what=st.sampled_from(WHATS),
    bytes_=st.none() | st.binary(max_size=40),
)
@pytest.mark.fault("C9", "any file of a store replaced by bytes, a folder, a pipe or a link (Hypothesis)")
def test_any_file_may_be_something_else(tmp_path, reader, which, what, bytes_):
    results = copied(tmp_path)
    names = files_of(results)
    path = results / names[which % len(names)]
    if bytes_ is None:
        replaced(path, what, tmp_path / "outside")
    else:
        rewrite(path, bytes_)
    is_read_or_refused(results, reader)


DOCUMENTS = (
    "*/*/DONE.json",
    "*/*/inputs.json",
    "suites/kept/*.json",
    "suites/kept/report/made_from.json",
    "teacher_cache/*/manifest.json",
    "cells/*/results.json",
)


@fuzzed(
    18,
    600,
    reader=ASKED,
    which=st.integers(0, 10_000),
    kind=st.sampled_from(DOCUMENTS),
    data=st.data(),
    sums=st.sampled_from(["left", "taken out", "made to fit"]),
)
@pytest.mark.fault("C9", "any JSON file of a store with other values in it (Hypothesis)")
def test_any_document_may_hold_anything(tmp_path, reader, which, kind, data, sums):
    results = copied(tmp_path)
    paths = sorted(results.glob(kind))
    path = paths[which % len(paths)]
    found = data.draw(mutated(json.loads(path.read_text())), label=path.relative_to(results).as_posix())
    if sums == "taken out" and isinstance(found, dict):
        found.pop(SUM, None)  # as plans were before they held a sum, so that their values are looked at
    elif sums == "made to fit" and isinstance(found, dict):
        with suppress(ValueError):  # no sum fits a NaN, or what is no UTF-8
            found = sealed(found)
    rewrite(path, json.dumps(found).encode())
    is_read_or_refused(results, reader)


@pytest.mark.fault("C9", "half a character, or NaN, in a plan, with its sum and without")
@pytest.mark.parametrize("odd", ["\ud800", float("nan")])
@pytest.mark.parametrize("with_sum", [True, False])
@pytest.mark.parametrize("reader", [("compare", "--json"), ("doctor", "--store"), ("gc", "--yes"), CONCLUDED])
def test_a_plan_may_hold_what_no_file_can_say(reader, odd, with_sum, tmp_path):
    results = copied(tmp_path)
    path = results / "suites" / "kept" / "plan.json"
    plan = json.loads(path.read_text())
    plan["suite"] |= {"question": odd if isinstance(odd, str) else "?", "odd": odd}
    if not with_sum:
        del plan[SUM]
    rewrite(path, json.dumps(plan).encode())
    is_read_or_refused(results, reader)


FORGED = (
    *(f"cells/*/{name}" for name in ("samples.parquet", "tokens.parquet", "results.json", "metrics.jsonl")),
    *("tasks/*/*.jsonl", "texts/*/test.safetensors", "tokenizers/*/tokenizer/tokenizer.json"),
    *("teacher_cache/*/manifest.json", "*/*/inputs.json"),
)


@fuzzed(
    18,
    900,
    reader=ASKED,
    which=st.integers(0, 100),
    kind=st.sampled_from(FORGED),
    value=VALUES,
    bytes_=st.none() | st.binary(),
    data=st.data(),
)
@pytest.mark.fault("H6", "scores that are no scores, with sums that fit (Hypothesis)")
def test_a_forged_result_is_an_error_and_no_traceback(tmp_path, reader, which, kind, value, bytes_, data):
    results = copied(tmp_path)
    paths = sorted(results.glob(kind))
    path = paths[which % len(paths)]
    if path.suffix == ".json" and data.draw(st.booleans(), label="mutated"):
        value = data.draw(mutated(json.loads(path.read_text())), label=path.relative_to(results).as_posix())
    rewrite(path, json.dumps(value).encode() if bytes_ is None else bytes_)
    entry = results.joinpath(*path.relative_to(results).parts[:2])
    done = json.loads((entry / "DONE.json").read_text())
    done.pop(SUM, None)  # entries of before it was kept are read too
    done["files"][path.relative_to(entry).as_posix()] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    rewrite(entry / "DONE.json", json.dumps(done).encode())
    is_read_or_refused(results, reader)


NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=20)


@fuzzed(
    12,
    600,
    reader=ASKED,
    name=NAMES.filter(lambda name: name.strip(".")),
    what=st.sampled_from(WHATS[1:]),
    which=st.integers(0, 50),
)
@pytest.mark.fault("H7", "files, folders and links of any name anywhere in a store (Hypothesis)")
def test_anything_of_any_name_may_lie_in_a_store(tmp_path, reader, name, what, which):
    results = copied(tmp_path)
    homes = [
        results,
        *(results / kind for kind in KINDS),
        *(results / one for one in ("suites", "suites/kept", "suites/kept/report")),
    ]
    homes = [one for one in homes if one.is_dir()] + [
        Store(results).entry("cells", path.name).path for path in (results / "cells").glob("*")
    ]
    path = homes[which % len(homes)] / name
    if path.exists() or len(name.encode()) > 200:
        return
    path.write_bytes(b"x")
    replaced(path, what, tmp_path / "outside")
    is_read_or_refused(results, reader)
    assert path.is_symlink() or path.exists(), "what is not ours stays"
