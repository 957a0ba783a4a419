"""Tasks of lm-eval in a suite: what of them stands in a cell's key, and how a worker finds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdbench.errors import ConfigError
from kdbench.evaluate import lm_eval_tasks
from kdbench.evaluate.lm_eval_tasks import Wanted
from kdbench.files import sha256_file
from kdbench.run.work import Work
from kdbench.suite.examination import LmEvalTask

FOLDERS = "task_folders"


def wanted(entries: Sequence[LmEvalTask], base: Path) -> list[Wanted]:
    """Return the tasks with their folders found."""
    folders = [(base / entry.path).resolve() if entry.path else None for entry in entries]
    return [
        Wanted(folder=folder, **entry.model_dump(exclude={"path"}))
        for entry, folder in zip(entries, folders, strict=True)
    ]


def inputs(entries: Sequence[LmEvalTask], base: Path) -> dict[str, Any]:
    """Return what decides the scores: settings, and the content of folders, not their names. Nothing without tasks.

    Raises:
        ConfigError: a folder is missing or holds no task file.
    """
    if not entries:
        return {}
    found = [
        entry.model_dump(exclude={"path"}) | {"files": one.folder and lm_eval_tasks.folder_fingerprint(one.folder)}
        for entry, one in zip(entries, wanted(entries, base), strict=True)
    ]
    return {"elsewhere": found, "elsewhere_source": sha256_file(Path(lm_eval_tasks.__file__))}


def context(entries: Sequence[LmEvalTask], base: Path) -> dict[str, Any]:
    """Return what a worker finds the folders by; it stays out of keys."""
    if not entries:
        return {}
    return {FOLDERS: [None if one.folder is None else str(one.folder) for one in wanted(entries, base)]}


def of_work(work: Work) -> list[Wanted]:
    """Return the tasks that a cell is examined on.

    Raises:
        ConfigError: a folder is not what it was when the run was planned.
    """
    entries = work.inputs["examine"].get("elsewhere", [])
    if not entries:  # a trial is judged by none of them, whatever its suite names
        return []
    found = []
    for entry, folder in zip(entries, work.context[FOLDERS], strict=True):
        settings = {name: value for name, value in entry.items() if name != "files"}
        found.append(Wanted(folder=folder and Path(folder), **settings))
        if folder and lm_eval_tasks.folder_fingerprint(Path(folder)) != entry["files"]:
            raise ConfigError(f"{found[-1].where}: its files have changed since the run was planned; start it again")
    return found
