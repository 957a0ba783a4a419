"""Tasks of lm-eval in a suite: what of them stands in a cell's key, and how a worker finds them and their judges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdbench.distill import hub
from kdbench.errors import ConfigError
from kdbench.evaluate import judge, judged_tasks, lm_eval_tasks
from kdbench.evaluate.judged_tasks import Asked
from kdbench.evaluate.lm_eval_tasks import Wanted
from kdbench.files import sha256_file
from kdbench.run.work import Work
from kdbench.suite.examination import LmEvalTask
from kdbench.suite.judging import Judge

FOLDERS, JUDGES = "task_folders", "judges"
NO_SETTING = {"path", "items", "judge"}  # of a task: what lm-eval is not asked by


def wanted(entries: Sequence[LmEvalTask], base: Path) -> list[Wanted]:
    """Return the tasks with their folders found."""
    folders = [(base / entry.path).resolve() if entry.path else None for entry in entries]
    return [
        Wanted(folder=folder, **entry.model_dump(exclude=NO_SETTING))
        for entry, folder in zip(entries, folders, strict=True)
    ]


def check(entries: Sequence[LmEvalTask], base: Path) -> None:
    """Build every task and fetch every judge, so that what is missing is one error before any work starts.

    Raises:
        ConfigError: as for `judged_tasks.check`; a judge on the Hub cannot be fetched.
    """
    places = [None if entry.judge is None else _place(entry.judge, base) for entry in entries]
    judges = [
        None if entry.judge is None or place is None else _judge(entry.judge.model_dump(), place)
        for entry, place in zip(entries, places, strict=True)
    ]
    judged_tasks.check([Asked(*both) for both in zip(wanted(entries, base), judges, strict=True)])


def inputs(entries: Sequence[LmEvalTask], base: Path) -> dict[str, Any]:
    """Return what decides the scores: settings, and the content of folders, not their names. Nothing without tasks.

    Raises:
        ConfigError: a folder is missing or holds no task file, or a judge is no model.
    """
    if not entries:
        return {}
    found = [
        entry.model_dump(exclude=NO_SETTING)
        | {"files": one.folder and lm_eval_tasks.folder_fingerprint(one.folder)}
        | ({} if entry.judge is None else {"judge": _judge_inputs(entry.judge, base)})
        for entry, one in zip(entries, wanted(entries, base), strict=True)
    ]
    return {"elsewhere": found, "elsewhere_source": sha256_file(Path(lm_eval_tasks.__file__))}


def _judge_inputs(spec: Judge, base: Path) -> dict[str, Any]:
    told = spec.model_dump(include={"template", "chat", "dtype"})
    told["source"] = [sha256_file(Path(module.__file__)) for module in (judge, judged_tasks)]
    if spec.hub is not None:
        return told | {"hub": {"id": spec.hub.id, "revision": spec.hub.revision}}
    try:
        return told | {"files": _fingerprint((base / str(spec.path)).resolve())}
    except ConfigError as error:
        raise ConfigError(f"examine.lm_eval: judge: {error}") from None


_known: dict[tuple[Path, tuple[tuple[str, int, int], ...]], str] = {}


def _fingerprint(folder: Path) -> str:
    """Hash a judge once in a process for the same files: every cell of a plan asks, and a judge may be gigabytes."""
    stats = tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.glob("*")))
    if (folder, stats) not in _known:
        _known[folder, stats] = judge.fingerprint(folder)
    return _known[folder, stats]


def context(entries: Sequence[LmEvalTask], base: Path) -> dict[str, Any]:
    """Return what a worker finds folders and judges by; it stays out of keys."""
    if not entries:
        return {}
    found: dict[str, Any] = {FOLDERS: [one.folder and str(one.folder) for one in wanted(entries, base)]}
    if any(entry.judge for entry in entries):
        found[JUDGES] = [None if entry.judge is None else _place(entry.judge, base) for entry in entries]
    return found


def _place(spec: Judge, base: Path) -> dict[str, str]:
    if spec.hub is not None:
        return {"id": spec.hub.id, "revision": spec.hub.revision}
    return {"path": str((base / str(spec.path)).resolve())}


def _judge(told: dict[str, Any], place: dict[str, str]) -> judge.Judge:
    folder = Path(place["path"]) if "path" in place else hub.model(hub.Place(**place))
    return judge.Judge(folder, told["template"], told["chat"], told["dtype"])


def of_work(work: Work) -> list[Asked]:
    """Return the tasks that a cell is examined on, and their judges.

    Raises:
        ConfigError: a folder is not what it was when the run was planned.
    """
    entries = work.inputs["examine"].get("elsewhere", [])
    if not entries:  # a trial is judged by none of them, whatever its suite names
        return []
    found = []
    places = work.context.get(JUDGES, [None] * len(entries))
    for entry, folder, place in zip(entries, work.context[FOLDERS], places, strict=True):
        settings = {name: value for name, value in entry.items() if name not in ("files", "judge")}
        task = Wanted(folder=folder and Path(folder), **settings)
        if folder and lm_eval_tasks.folder_fingerprint(Path(folder)) != entry["files"]:
            raise ConfigError(f"{task.where}: its files have changed since the run was planned; start it again")
        found.append(Asked(task, _unchanged(task, entry["judge"], place) if place else None))
    return found


def _unchanged(task: Wanted, told: dict[str, Any], place: dict[str, str]) -> judge.Judge:
    if "files" in told and _fingerprint(Path(place["path"])) != told["files"]:
        raise ConfigError(f"{task.where}: its judge has changed since the run was planned; start it again")
    return _judge(told, place)
