"""The report: one page that needs nothing else, and says the verdict first."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from kdbench.analysis import cell_table, mirror, plots, plots_scaling, report
from kdbench.analysis.advice import advice
from kdbench.analysis.section import Context
from kdbench.analysis.verdict import compare
from kdbench.run.store import Store

EVIL = "<script>alert('x')</script>&|`*"
FILES = {"report.html", "report.md", "forest.svg", "forest.png", "report/comparison.csv", "report/comparison.json"}
PICTURES = {"best", "scaling", "heat", "tasks", "curves", "agreement", "cost"}
FILES |= {f"report/{name}.{kind}" for name in PICTURES for kind in ("svg", "png")}


def scores(name="kl"):
    rng, rows = np.random.default_rng(0), []
    arms = [("floor", None, None, 0.1), ("ceiling", "t1", None, 0.9), ("ceiling", "t2", None, 0.95)]
    arms += [("sft", None, s, 0.4) for s in range(3)]
    arms += [(name, teacher, s, 0.7) for teacher in ("t1", "t2") for s in range(3)]
    for objective, teacher, seed, level in arms:
        student = None if objective == "ceiling" else "64x2"
        for task in ("copy", "swap"):
            hits = rng.random(150) < level
            rows += [(objective, student, teacher, seed, task, item, float(hit)) for item, hit in enumerate(hits)]
    return pd.DataFrame(rows, columns=["objective", "student", "teacher", "seed", "task", "item", "score"])


@pytest.fixture(scope="module")
def history():
    return pd.DataFrame(
        [(o, s, 3.0 / (1 + s)) for o in ("sft", "kl") for s in range(5)], columns=["objective", "step", "loss"]
    )


def written(folder, history=None, name="kl", **facts):
    cell = {"key": "ab" * 32, "objective": name, "student": "64x2", "teacher": "t1", "seed": 0, "status": "ok"}
    cell |= {"loss": 1.25, "seconds": 3.0, "train_s": 2.0, "model": "models/ab"}
    lost = {"teacher": None, "status": "diverged", "loss": None, "seconds": None, "train_s": None, "model": ""}
    cells = [cell, cell | {"teacher": "t2"}, cell | {"objective": "sft", "teacher": None, "train_s": 1.0}, cell | lost]
    suite = {"name": "micro", "question": "Which objective?", "description": name}
    facts = {"machine": "2 cores", **facts}
    found, options = compare(scores(name), "sft"), {"cells": cells, "history": history, "scores": scores(name)}
    return report.write(folder, found, suite=suite, facts=facts, **options)


@pytest.fixture(scope="module")
def paths(tmp_path_factory, history):
    return written(tmp_path_factory.mktemp("report") / "new", history)


def test_the_page_its_pictures_in_two_formats_and_its_numbers_are_written(paths):
    assert set(paths) == FILES and all(path.stat().st_size > 500 for path in paths.values())
    assert all(path.parent / name.rsplit("/", 1)[-1] == path for name, path in paths.items())


def test_the_verdict_comes_first_then_the_picture_then_the_tables(paths):
    page = paths["report.html"].read_text()
    texts = ["Use kl", "kl beats sft", "The verdict</h2>", "<svg", "<h3>Over all pairs", "<h3>Overall"]
    texts += ["may be the best</h2>", "Task by task</h2>", "Scores</h2>", "Cells</h2>", ">Method</h2>", "Notes</h2>"]
    order = [page.index(text) for text in [*texts, "Facts</h2>"]]
    assert order == sorted(order)


def test_the_page_needs_nothing_outside_itself(paths):
    page = paths["report.html"].read_text()
    assert "http://" not in page and "https://" not in page and "<script" not in page and "<link" not in page
    assert not re.search(r'(?:src|href)="(?!#)', page) and "@import" not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)


def test_the_page_suits_dark_and_narrow_screens(paths):
    page = paths["report.html"].read_text()
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page and "overflow-x: auto" in page


def test_names_are_escaped_everywhere(tmp_path):
    found = written(tmp_path, name=EVIL, owner=EVIL)
    page, text = found["report.html"].read_text(), found["report.md"].read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "<script" not in text
    head, rule, *rest = [line for line in text.splitlines() if line.startswith("|")][:4]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in (head, rule, *rest)}) == 1


def test_the_method_says_seeds_items_family_margin_and_tuning(paths, tmp_path):
    page = paths["report.html"].read_text()
    for text in ("3 seeds", "300 items", "family has 2 overall rows", "±1.0 points", "were not tuned", "adjusted by"):
        assert text in page, text
    tuned = written(tmp_path, tuning="Every objective had 8 trials")["report.html"].read_text()
    assert "8 trials" in tuned and "were not tuned" not in tuned


def test_failed_cells_are_listed_and_unknown_numbers_are_a_dash(paths):
    page = paths["report.html"].read_text()
    assert "diverged" in page and "abababababab" in page and "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.S)
    assert "gap recovered" in page


def test_a_report_is_the_same_bytes_each_time(paths, tmp_path, history):
    again = written(tmp_path, history)
    for name in FILES:
        assert again[name].read_bytes() == paths[name].read_bytes(), name


def test_markdown_shows_the_picture_and_the_verdict(paths):
    text = paths["report.md"].read_text()
    assert text.index("kl beats sft") < text.index("](forest.png)") < text.index("### Overall")
    assert "](report/best.png)" in text


def test_pictures_bear_the_odd_cases(tmp_path):
    frame = scores()
    one_seed = frame[(frame.seed.isna() | (frame.seed == 0)) & ~frame.objective.isin(["floor", "ceiling"])]
    one_item = one_seed[(one_seed.item == 0) & (one_seed.task == "copy")]
    units = frame.assign(score=frame.score * -1234.5)
    for number, part in enumerate((one_seed, one_item, units)):
        found = compare(part, "sft", margin=0.5)
        plots.forest(found, tmp_path / f"{number}.png")
        plots_scaling.scaling(found.means, tmp_path / f"{number}.svg", points=found.points)
        assert (tmp_path / f"{number}.png").stat().st_size > 3000
        json.dumps(found.to_json(), allow_nan=False)


def test_the_answer_says_what_to_use_how_sure_and_what_would_make_it_surer():
    found = compare(scores(), "sft")
    told = " ".join(advice(found, tuned=False))
    assert told.startswith("Use kl") and "kl beats sft" in told and "decided" in told and "tune:" in told
    one_seed = scores()[lambda f: f.seed.isna() | (f.seed == 0)]
    assert "one seed cannot decide" in " ".join(advice(compare(one_seed, "sft")))


def test_a_long_table_is_folded_and_a_short_one_is_open(paths):
    page = paths["report.html"].read_text()
    assert "<h3>Overall" in page and "(4 rows)" not in page and page.count("<details") == page.count("</details>")


def test_a_cell_links_to_its_files_in_mlflow_where_the_mirror_knows_it(tmp_path):
    cell = {"key": "ab", "objective": "kl", "student": "64x2", "teacher": "t1", "seed": 0, "status": "ok"}
    runs = {"ab": mirror.MirroredRun("0123456789abcdef", "7", "../../mlartifacts/x/0123/artifacts")}
    known = Context(compare(scores(), "sft"), {}, [cell, cell | {"key": "cd"}], runs=runs)
    section = cell_table.cells(known)
    assert section.links == {"0123456789ab": "../../mlartifacts/x/0123/artifacts"}
    assert [row[-1] for row in section.tables[0][2]] == ["0123456789ab", "–"] and "experiments/7" in section.text[-1]


def test_a_broken_or_missing_mirror_leaves_no_links(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert mirror.runs(Store(tmp_path), tmp_path) == {}
    (tmp_path / "mlflow.db").write_text("this is no database")
    assert mirror.runs(Store(tmp_path), tmp_path) == {}


def test_importing_the_package_stays_light():
    code = "import sys, kdbench.analysis; sys.exit(any(m in sys.modules for m in ('pandas', 'scipy', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
