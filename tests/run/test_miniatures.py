"""Every suite that comes with kdbench ends in a verdict: the same file, with tiny models, texts and tasks.

All arms of a suite are trained; of its students and teachers one or a few. The jobs are done in this
process, for time; `test_instruction_suite.py` and `test_run.py` start real workers.

python -m pytest tests/run/test_miniatures.py
"""

from __future__ import annotations

import json

import pytest

from kdbench.analysis.words import WORDS
from kdbench.suite import loader
from kdbench.suite.schema import Suite
from tests.conftest import call
from tests.run.here import in_this_process, without_pictures
from tests.run.miniature import SUITES, Cut, options

ONE_TASK = ("examine.tasks=[swap]", "compare.tasks=[swap]")  # these suites have dozens of arms
CUTS = {
    "quickstart": Cut(("opt-64x2",), ("opt-96x3", "opt-128x4")),
    "micro_scaling": Cut(("opt-48x2",), ("open-64x2", "open-160x5", "sure-64x2", "sure-160x5")),
    "atkd_ablation": Cut(("opt-64x2",), ("opt-128x4",), ONE_TASK),
    "objectives_tour": Cut(("opt-64x2",), ("opt-96x3",), ONE_TASK),
    "opt_scaling": Cut(("opt-350m",), ("opt-1.3b-tuned", "opt-6.7b-tuned")),  # the student with the projection
    "pythia_scaling": Cut(("pythia-160m",), ("pythia-1b-tuned", "pythia-6.9b-tuned")),  # padded in two ways
    "llama_scaling": Cut(("llama-68m",), ("tinyllama-1.1b-tuned", "llama-7b-tuned")),  # with and without shared keys
    "opt_release": Cut(("opt-125m",), ("opt-2.7b-tuned",)),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """`datasets` keeps a copy of JSON files; here in a folder of the test's own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


SLOW = {"atkd_ablation": pytest.mark.slow}  # a hundred cells


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in CUTS])
def test_a_miniature_of_every_suite_ends_in_a_verdict(name, tmp_path, corpus_folder, monkeypatch):
    in_this_process(monkeypatch)
    if name != "quickstart":
        without_pictures(monkeypatch)
    path, results = SUITES / f"{name}.yaml", tmp_path / "results"
    changes = options(name, CUTS[name], tmp_path, corpus_folder)
    found = call("run", path, *changes, "--results-dir", results, "--no-mlflow")
    assert found.exit_code == 0, found.output
    suite = loader.validate(Suite, loader.override(loader.parse(path), changes[1::2]))

    asked = call("compare", "--results-dir", results, "--json")
    assert asked.exit_code == 0, asked.output
    told = json.loads(asked.stdout)
    assert {(row["objective"], row["baseline"]) for row in told["table"]} == {*suite.named_contrasts}
    assert {row["verdict"] for row in told["table"]} <= {*WORDS}

    page = (results / "suites" / name / "report.md").read_text(encoding="utf-8")
    assert all(claim.sentence in page for claim in suite.claims)
    assert "could not be tested" not in page
