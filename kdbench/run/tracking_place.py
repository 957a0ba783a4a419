"""How MLflow is reached, and where its mirror of a store lies: the environment, the SQLite file, one error of ours."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from filelock import FileLock

from kdbench import failpoints, telemetry
from kdbench.errors import ConfigError, KdbenchError
from kdbench.run.store import Store

LOCK_S = 60.0  # an export takes a second
LOCK, ARTEFACTS = ".mlflow.lock", "mlartifacts"  # in the results folder
MOVED = """
SELECT 1 FROM experiments WHERE artifact_location <> moved(artifact_location)
UNION ALL SELECT 1 FROM runs WHERE artifact_uri <> moved(artifact_uri) LIMIT 1"""
INSTALL = "pip install 'mlflow>=3.10'"
OTHER_SCHEMA = re.compile(r"database schema \((found version \w+, but expected \w+)\)")


def quiet_environment() -> None:
    """No telemetry, no pickles, no chatter; to be called before MLflow is imported."""
    telemetry.switch_off()
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is for our own product
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # its 7 hold up a run's end for four minutes
    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # logs what it raises


def tracking_uri(store: Store) -> str:
    """Return MLFLOW_TRACKING_URI if set, else the SQLite file beside the results."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _sqlite(store.root.resolve() / "mlflow.db")


def _sqlite(path: Path) -> str:
    """Return a file's URI. SQLAlchemy decodes percent signs; MLflow does not, and would make a folder of that name."""
    text = str(path)
    return f"sqlite+pysqlite:///{text.replace('%', '%25')}" if "%" in text else f"sqlite:///{text}"


@contextmanager
def reached(store: Store) -> Iterator[None]:
    """Turn what MLflow, SQLAlchemy, SQLite or a network raise inside into one error of ours.

    Raises:
        ConfigError: MLflow, or a package that it needs, is not installed.
        KdbenchError: with the first line of theirs, which says what it is.
    """
    try:
        yield
    except KdbenchError:
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"MLflow: expected the package {error.name}, found none; the results are safe. Install it with: {INSTALL}"
        ) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        advice = "Try again when it is free; a broken mlflow.db may be deleted, since it is a mirror of the results"
        if versions := OTHER_SCHEMA.search(reason):  # theirs takes a later one for out of date
            reason = f"the database is of another version of MLflow than the one installed ({versions[1]})"
            advice = (
                "Install the MLflow that wrote it, or `mlflow db upgrade` an older one; a mlflow.db beside the results "
                "may be deleted, since it is their mirror"
            )
        raise KdbenchError(f"MLflow at {tracking_uri(store)}: {reason}; the results are safe. {advice}") from error


def check_installed() -> None:
    """Look for MLflow without importing it, which takes seconds.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise ModuleNotFoundError("no module mlflow", name="mlflow")


def prepare_database(store: Store) -> None:
    """Make the SQLite file whole before anyone opens it; one that came with a moved store learns where it is.

    MLflow's first open runs its migrations in place: killed in between, or raced by another process, the file stays
    broken for ever. So it is built under a lock in a temporary file and renamed.
    """
    root = store.root.resolve()
    path = root / "mlflow.db"
    with FileLock(store.root / LOCK, timeout=LOCK_S):
        if path.exists():
            _move_along(path, f"{root.as_uri()}/{ARTEFACTS}/")
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        temporary = path.with_name(f".tmp-mlflow-{os.getpid()}.db")
        temporary.unlink(missing_ok=True)
        made = SqlAlchemyStore(_sqlite(temporary), str(root / ARTEFACTS))
        made.engine.dispose()
        failpoints.hit("database")
        os.replace(temporary, path)


def _move_along(path: Path, home: str) -> None:
    """Let every run of a database have its artefacts under `home`: MLflow keeps absolute places, and writes there."""

    def moved(uri: str | None) -> str | None:
        _, found, tail = (uri or "").rpartition(f"/{ARTEFACTS}/")
        return home + tail if found and not (uri or "").startswith(home) else uri

    with closing(sqlite3.connect(path)) as database, database:
        database.create_function("moved", 1, moved, deterministic=True)
        if database.execute(MOVED).fetchone():
            database.execute("UPDATE experiments SET artifact_location = moved(artifact_location)")
            database.execute("UPDATE runs SET artifact_uri = moved(artifact_uri)")
