"""What a run of the benchmarks leaves: JSON, a printed table, and `benchmarks/README.md`."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT
from benchmarks.reasons import reason
from benchmarks.rows import HEAD, Row

README = ROOT / "benchmarks" / "README.md"
PACKAGES = ("torch", "transformers", "lm-eval", "trl", "liger-kernel", "torchtune")
TITLES = {
    "head": "1. The loss head, forward and backward",
    "step": "2. One training step",
    "matrix": "3. A whole matrix",
    "cache": "4. The teacher cache",
    "growth": "5. Growth",
    "evaluation": "6. Evaluation",
}
NO_GPU = "No GPU at hand: all of this was measured on CPU, and no row says anything of a GPU."
INTRODUCTION = """\
# Benchmarks

Written by `python -m benchmarks --write`. Every row is a ratio of two things measured in this run: contestants in
turns, each measurement in a process of its own, one thread unless a note says otherwise, medians over the turns. *Peak
extra memory* is how far the work raised the peak of its process as the OS sees it, above what it was given; gradients
that it hands back are part of it. `floor` is the bare matrix products that any method needs. A target stands where one
was set before; the other rows are there for comparison.

    make bench                              # installs the peers, then `--quick`: about an hour
    make bench SCALE=                       # 3 to 5 turns, longer curves: hours
    python -m benchmarks --only head,step   # some groups
    python -m benchmarks --json rows.json   # and `--from rows.json --only step` measures one of them again
"""


def facts(scale: str, gpu: str | None, seconds: float) -> dict[str, Any]:
    """Return when, of what commit, on what machine and with which packages."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "gpu": gpu,
        "packages": {name: _version(name) for name in PACKAGES},
        "scale": scale,
        "seconds": round(seconds),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()  # noqa: S603

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "kdbench", "objectives")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def _memory_gib() -> float:
    import psutil

    return psutil.virtual_memory().total / 2**30


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def as_json(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """Return everything as one JSON document; a missed target has its reason."""
    data = [row.data() | ({"reason": reason(row.key)} if row.met is False else {}) for row in rows]
    return json.dumps({"about": about, "rows": data}, indent=1, ensure_ascii=False) + "\n"


def from_json(text: str) -> tuple[list[Row], dict[str, Any]]:
    """Read back what `as_json` wrote, so that a report can be written without measuring again."""
    found = json.loads(text)
    names = Row.__dataclass_fields__
    rows = []
    for one in found["rows"]:
        fields = {key: value for key, value in one.items() if key in names}
        fields["target"] = tuple(one["target"]) if one["target"] else None
        rows.append(Row(**fields))
    return rows, found["about"]


def joined(
    rows: Sequence[Row], about: dict[str, Any], again: Sequence[Row], about_again: dict[str, Any]
) -> tuple[list[Row], dict[str, Any]]:
    """Put groups that were measured again in the place of earlier ones; what was measured when is kept."""
    groups = {row.group for row in again}
    if groups:
        found = {"groups": sorted(groups, key=list(TITLES).index)} | {k: about_again[k] for k in ("date", "commit")}
        about = about | {"again": [*about.get("again", []), found]}
    kept = [row for row in rows if row.group not in groups]
    return sorted([*kept, *again], key=lambda row: list(TITLES).index(row.group)), about


def print_table(rows: Sequence[Row]) -> None:
    """Print a table a group."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if os.isatty(1) else 180)
    for group in dict.fromkeys(row.group for row in rows):
        table = Table(*HEAD, title=TITLES[group], title_justify="left", box=None)
        for row in (one for one in rows if one.group == group):
            style = "bold red" if row.met is False else None
            table.add_row(*row.cells(), style=style)
        console.print(table)
        for row in (one for one in rows if one.group == group and one.note and one.ratio is not None):
            console.print(f"¹ {row.what}: {row.contestant}: {row.note}", style="dim", highlight=False)


def markdown(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """Return the whole README."""
    packages = ", ".join(f"{name} {found or '(absent)'}" for name, found in about["packages"].items())
    when = f"{about['date']}, commit {about['commit']}, {about['machine']}, {about['system']}; {packages}."
    how = f"Scale: {about['scale']}; {about['seconds'] / 60:.0f} minutes; load at the end {about['load']}."
    again = [
        f"Measured again on the same machine: {', '.join(one['groups'])} ({one['date']}, commit {one['commit']})."
        for one in about.get("again", [])
    ]
    absent = [title for group, title in TITLES.items() if group not in {row.group for row in rows}]
    left_out = [f"Not measured in this run: {', '.join(absent)}.", ""] if absent else []
    lines = [
        INTRODUCTION,
        " ".join([f"{when} {how}", *again]),
        "",
        about["gpu"] or NO_GPU,
        "",
        *left_out,
        *_missed(rows),
    ]
    for group in dict.fromkeys(row.group for row in rows):
        lines += ["", f"## {TITLES[group]}", ""]
        if group == "growth":
            lines += ["![Cost against size](growth.png)", ""]
        lines += _table([row for row in rows if row.group == group])
    return "\n".join(lines) + "\n"


def _missed(rows: Sequence[Row]) -> list[str]:
    judged = [row for row in rows if row.met is not None]
    missed = [row for row in judged if not row.met]
    open_ = [row for row in rows if row.target is not None and row.ratio is None]
    lines = ["## What misses its target, and why", ""]
    lines += [f"{len(judged) - len(missed)} of {len(judged)} targets are met.", ""]
    lines += [
        f"- **{row.key}**: {row.cells()[3].rstrip(' ¹')}, target {row.cells()[4]}. {reason(row.key)}" for row in missed
    ]
    lines += [f"- **{row.key}**: could not be measured here: {row.note}" for row in open_]
    return lines


def _table(rows: Sequence[Row]) -> list[str]:
    from kdbench.analysis.words import markdown_table

    noted = [row for row in rows if row.note and row.ratio is not None]
    lines = markdown_table(HEAD, [row.cells() for row in rows])
    if len(noted) > 1 and len({row.note for row in noted}) == 1:
        return [*lines, "", f"¹ {noted[0].note}."]
    return [*lines, "", *(f"¹ {row.what}, {row.contestant}: {row.note}.  " for row in noted)]
