"""MLflow as a mirror of the store, which can be made anew from it at any time.

Experiment = suite, parent run = invocation, child run = cell. Results on disk are the truth: if MLflow is down, locked
or deleted, training goes on, and `kdbench mlflow sync` makes the mirror whole again. Timestamps come from the
committed facts, so a second export adds nothing.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from kdbench import failpoints
from kdbench.files import read_json, read_records
from kdbench.run.clock import train_seconds
from kdbench.run.locks import held
from kdbench.run.store import Store
from kdbench.run.tracking_place import (
    ARTEFACTS,
    LOCK,
    LOCK_S,
    prepare_database,
    quiet_environment,
    reached,
    tracking_uri,
)
from kdbench.run.tuning_words import in_words
from kdbench.suite.external import ARM, CONTROL
from kdbench.suite.matrix import point_title, title

Stamps = Mapping[int, int]  # step → milliseconds
BATCH = 1000
TAGS = 90  # verdicts; MLflow takes 100 tags at once
FILES = ("inputs.json", "results.json", "samples.parquet", "judged.parquet", "tokens.parquet", "metrics.jsonl")
REPORT = "report"  # the folder of a report's pictures and numbers
KEY_TAG, DONE_TAG = "kdbench.cell_key", "kdbench.done"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # opens as model training, not as GenAI
TERMINAL = {"ok": "FINISHED", "diverged": "FAILED", "failed": "FAILED"}
NAMES = {  # how a person reads the examination's metrics
    "nats_per_token": "held_out/nats_per_token",
    "kl_to_teacher": "held_out/kl_to_teacher_nats",
    "reverse_kl_to_teacher": "held_out/reverse_kl_to_teacher_nats",
    "top1_agreement": "held_out/top1_agreement_with_teacher",
    "entropy": "held_out/entropy_nats",
    "calibration_error": "held_out/calibration_error",
}


class Mirror:
    """Writes cells into MLflow; every method may be called again without harm.

    Args:
        plan: a suite's plan.json.
    """

    def __init__(self, store: Store, plan: dict[str, Any]):
        quiet_environment()
        import mlflow

        self.store, self.plan = store, plan
        self.uri = tracking_uri(store)
        if "MLFLOW_TRACKING_URI" not in os.environ:
            prepare_database(store)
        self.client = mlflow.MlflowClient(self.uri)
        # Keeps other processes out, which may have the same cell to write; a store on a read-only disk has none.
        self.alone = FileLock(store.root / LOCK, timeout=LOCK_S) if os.access(store.root, os.W_OK) else nullcontext()
        with self.alone:
            self.experiment = self._experiment()
        self.runs: dict[str, str] = {}
        self.logged: dict[str, int] = {}

    def _experiment(self) -> str:
        name = self.plan["suite"]["name"]
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                self.client.restore_experiment(found.experiment_id)
            return found.experiment_id
        local = self.uri.startswith("sqlite")
        place = (self.store.root.resolve() / ARTEFACTS / name).as_uri() if local else None
        question = self.plan["suite"]["question"]
        return self.client.create_experiment(
            name, artifact_location=place, tags={"mlflow.note.content": question, **KIND}
        )

    def parent(self, invocation: str, started_ms: int) -> str:
        """Return the run of an invocation, made if needed."""
        return self._find("kdbench.invocation", invocation) or self._new_parent(invocation, started_ms)

    def _new_parent(self, invocation: str, started_ms: int) -> str:
        environment = self.plan["environment"]
        tags = {"kdbench.invocation": invocation, "kdbench.protocol": environment["protocol"]}
        tags |= {f"kdbench.version.{name}": value for name, value in environment["versions"].items()}
        tags |= {"kdbench.overrides": " ".join(self.plan["overrides"])}
        run = self.client.create_run(self.experiment, start_time=started_ms, tags=tags, run_name=f"run {invocation}")
        self.client.log_dict(run.info.run_id, self.plan["suite"], "suite.json")
        return run.info.run_id

    def tell_tuning(self, run_id: str, plan: dict[str, Any]) -> None:
        """Note in an invocation's run how settings were chosen: in words, and every trial with its score."""
        if words := in_words(plan):
            self.client.set_tag(run_id, "kdbench.tuning", words)
            self.client.log_dict(run_id, {"choices": plan["tuning"]["choices"]}, "tuning.json")

    def finish_parent(self, run_id: str, status: str, artifacts: Iterable[Path] = ()) -> None:
        """Close an invocation's run and attach the report: the page, its pictures, its numbers, verdicts as tags."""
        for path in artifacts:
            self.client.log_artifact(run_id, str(path), REPORT if path.parent.name == REPORT else None)
            if path.name == "comparison.json":
                self.tell_verdicts(run_id, read_json(path)["verdicts"])
        self.client.set_terminated(run_id, status)

    def tell_verdicts(self, run_id: str, verdicts: dict[str, str]) -> None:
        """Tag an invocation's run: `verdict: atkd vs kl: all pairs` = `undecided −0.1 [−0.9, 0.7]`."""
        from mlflow.entities import RunTag

        tags = [RunTag(tag_name(f"verdict: {name}"), text) for name, text in list(verdicts.items())[:TAGS]]
        self.client.log_batch(run_id, tags=tags)

    def _find(self, tag: str, value: str) -> str | None:
        found = self.client.search_runs([self.experiment], f"tags.`{tag}` = '{value}'", max_results=1)
        return found[0].info.run_id if found else None

    def cell_run(self, cell: dict[str, Any], parent: str, started_ms: int) -> str:
        """Return a cell's run, made if needed; one cell has one run, whoever made it."""
        key = cell["key"]
        if key not in self.runs:
            with self.alone:
                self.runs[key] = self._find(KEY_TAG, key) or self._new_cell_run(cell, parent, started_ms)
        return self.runs[key]

    def _new_cell_run(self, cell: dict[str, Any], parent: str, started_ms: int) -> str:
        from mlflow.entities import Param

        names = {name: str(cell[name]) for name in ("arm", "student", "teacher", "seed") if cell[name] is not None}
        tags = {"mlflow.parentRunId": parent, KEY_TAG: cell["key"]}
        tags |= {f"kdbench.{'objective' if name == 'arm' else name}": value for name, value in names.items()}
        named = title(cell["arm"], cell["student"], cell["teacher"], cell["seed"])
        if cell["inputs"]["arm"] == ARM:
            tags["kdbench.origin"] = CONTROL
        if "settings" in cell:
            tags["kdbench.trial"] = point_title(cell["settings"])
            named += f" · tuning: {tags['kdbench.trial']}"
        run = self.client.create_run(self.experiment, start_time=started_ms, tags=tags, run_name=named)
        params = [Param(key, str(value)[:500]) for key, value in sorted(_params(cell).items())]
        self.client.log_batch(run.info.run_id, params=params)
        return run.info.run_id

    def steps(self, run_id: str, records: list[dict[str, Any]], stamp: Any) -> None:
        """Log the records of steps that are not there yet; `stamp(step)` gives milliseconds."""
        from mlflow.entities import Metric

        if run_id not in self.logged:
            seen = self.client.get_metric_history(run_id, "train/loss")
            self.logged[run_id] = max((point.step for point in seen), default=0)
        fresh = [record for record in records if record["step"] > self.logged[run_id]]
        points = [
            Metric(f"train/{name}", value, stamp(record["step"]), record["step"])
            for record in fresh
            for name, value in record.items()
            if name not in ("step", "event", "total") and isinstance(value, int | float)
        ]
        for begin in range(0, len(points), BATCH):
            self.client.log_batch(run_id, metrics=points[begin : begin + BATCH])
        if fresh:
            self.logged[run_id] = fresh[-1]["step"]

    def complete(self, cell: dict[str, Any], parent: str, folder: Path, done: dict[str, Any], at_ms: Stamps) -> None:
        """Bring a cell's run to its committed state, unless it is there: curves, scores, cost, artefacts, status.

        Args:
            at_ms: when each step came, where its training was seen as it ran.
        """
        with self.alone:
            if self._find(DONE_TAG, done["key"]) is None:
                self._complete(cell, parent, folder, done, at_ms)

    def _complete(self, cell: dict[str, Any], parent: str, folder: Path, done: dict[str, Any], at_ms: Stamps) -> None:
        from mlflow.entities import Metric, RunTag

        failpoints.hit("export")
        timing = done["timing"]
        started = int(timing["started_at"] * 1000)
        run_id = self.cell_run(cell, parent, started)
        ended = started + int(timing["wall_s"] * 1000)
        path = folder / "metrics.jsonl"
        records = read_records(path) if path.is_file() else []
        share = (train_seconds(done) or 0.0) / max(1, len(records))
        self.steps(run_id, records, lambda step: at_ms.get(step, started + int(1000 * share * step)))
        scores = read_json(folder / "results.json") if (folder / "results.json").is_file() else {}
        values = {NAMES.get(name, f"eval/{name}"): value for name, value in scores.items()} | _cost(done, records)
        self.client.log_batch(run_id, metrics=[Metric(name, value, ended, 0) for name, value in sorted(values.items())])
        for name in FILES:
            if (folder / name).is_file():
                self.client.log_artifact(run_id, str(folder / name))
        tags = {"kdbench.status": done["status"], DONE_TAG: done["key"]}
        tags |= {"kdbench.model": str((folder / "model").resolve())} if (folder / "model").is_dir() else {}
        tags |= {"kdbench.reason": done["reason"]} if "reason" in done else {}
        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        self.client.set_terminated(run_id, TERMINAL[done["status"]], ended)

    def close_unfinished(self) -> None:
        """Mark runs whose cell did not end in this invocation, nor is being made in another; the next opens them."""
        for key, run_id in self.runs.items():
            if held(self.store.entry("cells", key).path):
                continue
            if self.client.get_run(run_id).info.status == "RUNNING":
                self.client.set_terminated(run_id, "KILLED")


def tag_name(text: str) -> str:
    """Return a name that MLflow takes: letters, digits and ` _-.:/` only, 250 of them at most."""
    for sign, instead in ((" − ", " vs "), (" ← ", " from "), (" (", ": "), ("+", " with ")):
        text = text.replace(sign, instead)
    return re.sub(r"[^/\w.\- :]", " ", text).strip()[:250]


def _params(cell: dict[str, Any]) -> dict[str, Any]:
    """Hyper-parameters only, flat: `objective.tau`, `train.lr`."""
    inputs = cell["inputs"]
    flat = {name: cell[name] for name in ("student", "teacher", "seed") if cell[name] is not None}
    flat["objective"] = cell["arm"]
    for section in ("objective", "train"):
        for key, value in (inputs.get(section) or {}).items():
            if isinstance(value, dict):
                flat |= {f"{section}.{key}.{inner}": deep for inner, deep in value.items()}
            elif value is not None:
                flat[f"{section}.{key}"] = value
    return flat


def _cost(done: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, float]:
    timing = done["timing"]
    cost = {"cost/wall_seconds": timing["wall_s"], "cost/peak_memory_mib": timing["peak_rss_mib"]}
    cost |= {"cost/examine_seconds": timing["examine_s"]} if "examine_s" in timing else {}
    if seconds := train_seconds(done):
        cost["cost/train_seconds"] = seconds
        cost |= {"cost/tokens_per_second": done["tokens"] / seconds} if done.get("tokens") else {}
    return cost


def listed(plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the cells of a plan by key, the trials of its tuning among them."""
    found = [*plan.get("tuning", {}).get("trials", []), *plan["cells"]]
    return {cell["key"]: cell for cell in reversed(found)}  # a cell that serves two arms goes by the first one's name


def sync(store: Store, plan: dict[str, Any]) -> int:
    """Write every complete cell of a suite into MLflow; return how many were not there yet.

    Raises:
        KdbenchError: MLflow cannot be reached, is locked, broken or refuses; the results are as they were.
    """
    with reached(store):
        return _sync(store, plan)


def _sync(store: Store, plan: dict[str, Any]) -> int:
    mirror = Mirror(store, plan)
    added = 0
    parent = None
    for cell in listed(plan).values():
        entry = store.entry("cells", cell["key"])
        done = entry.done()
        if done is None or mirror._find(DONE_TAG, cell["key"]) is not None:
            continue
        if entry.is_whole(except_in="model"):  # what is damaged is shown nowhere
            parent = parent or mirror.parent("sync", int(time.time() * 1000))
            mirror.complete(cell, parent, entry.path, done, {})
            added += 1
    if parent:
        mirror.tell_tuning(parent, plan)
        mirror.finish_parent(parent, "FINISHED", _report(store, plan["suite"]["name"]))
    return added


def _report(store: Store, suite: str) -> list[Path]:
    """Return the files of a suite's report that are there."""
    folder = store.suite_folder(suite)
    pages = [folder / name for name in ("report.html", "report.md", "forest.svg", "forest.png")]
    return [path for path in [*pages, *sorted((folder / REPORT).glob("*"))] if path.is_file()]
