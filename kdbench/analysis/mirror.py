"""Where MLflow's mirror holds a suite's cells: read from its SQLite file, since importing MLflow takes seconds."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlparse

from kdbench.run.store import Store
from kdbench.run.tracking import KEY_TAG

QUERY = """
SELECT tags.value, runs.run_uuid, runs.experiment_id, runs.artifact_uri FROM tags JOIN runs USING (run_uuid)
WHERE tags.key = ? AND runs.lifecycle_stage = 'active' ORDER BY runs.start_time, runs.run_uuid"""


class MirroredRun(NamedTuple):
    """A cell's run in MLflow: its id, its experiment's, and its folder beside the report, if on this disk."""

    run_id: str
    experiment_id: str
    folder: str


def runs(store: Store, beside: Path) -> dict[str, MirroredRun]:
    """Return cell key → run; empty where the mirror is no SQLite file, or is not there or not readable.

    Args:
        beside: the folder from which `MirroredRun.folder` is reached.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    path = Path(uri.removeprefix("sqlite:///")) if uri else store.root.resolve() / "mlflow.db"
    if (uri and not uri.startswith("sqlite:///")) or not path.is_file():
        return {}
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=2)) as database:
            rows = database.execute(QUERY, (KEY_TAG,)).fetchall()
    except sqlite3.Error:
        return {}
    return {key: MirroredRun(run, str(experiment), _folder(place, beside)) for key, run, experiment, place in rows}


def _folder(uri: str, beside: Path) -> str:
    """Return an artifact folder relative to the report, or nothing where it is elsewhere."""
    parts = urlparse(uri)
    path = Path(unquote(parts.path))
    if parts.scheme not in ("", "file") or not path.is_dir():
        return ""
    return Path(os.path.relpath(path, beside.resolve())).as_posix()
