"""The comparison stands in MLflow too: numbers and pictures as artefacts, verdicts as tags of the invocation's run.

python -m pytest tests/run/test_tracking_report.py
"""

from __future__ import annotations

import json

from kdbench.run import tracking
from kdbench.run.store import Store

PLAN = {
    "suite": {"name": "tiny", "question": "Does it work?"},
    "environment": {"protocol": "1.0", "versions": {"torch": "2"}},
    "overrides": [],
    "cells": [],
}


def test_the_invocation_s_run_carries_tables_pictures_and_verdicts(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = Store(tmp_path)
    store.prepare()
    folder = store.suite_folder("tiny")
    (folder / "report").mkdir(parents=True)
    verdicts = {
        "reverse_kl+atkd − kl (s ← t)": "undecided −0.1 [−0.9, 0.7]",
        "atkd − kl (all pairs)": "better 1.0 [0.1, 2]",
    }
    (folder / "report" / "comparison.json").write_text(json.dumps({"verdicts": verdicts}))
    for name in ("report.html", "report/comparison.csv", "report/heat.png"):
        (folder / name).write_text("x")
    made = tracking.Mirror(store, PLAN)
    run_id = made.parent("now", 1_000)
    made.finish_parent(run_id, "FINISHED", tracking._report(store, "tiny"))
    tags = made.client.get_run(run_id).data.tags
    assert tags["verdict: atkd vs kl: all pairs"] == "better 1.0 [0.1, 2]"
    assert tags["verdict: reverse_kl with atkd vs kl: s from t"] == "undecided −0.1 [−0.9, 0.7]"
    assert {item.path for item in made.client.list_artifacts(run_id)} >= {"report", "report.html"}
    inside = {item.path for item in made.client.list_artifacts(run_id, "report")}
    assert inside == {"report/comparison.json", "report/comparison.csv", "report/heat.png"}


def test_any_label_makes_a_name_that_mlflow_takes():
    from mlflow.utils.validation import _validate_tag_name

    for label in ("atkd(lam=0.5,ties=exact) − kl (a/b ← c)", "<script>|&`*", "x" * 400):
        _validate_tag_name(tracking.tag_name(f"verdict: {label}"))
