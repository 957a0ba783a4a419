"""Pictures hold what they say: the numbers behind them are right, and odd cases draw.

python -m pytest tests/analysis/test_pictures.py
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from kdbench.analysis import plots, plots_arms, plots_scaling, plots_tasks
from kdbench.analysis.agreement import LIMIT, agreement, shown_arms
from kdbench.analysis.verdict import compare

TEACHERS = ("open-64x2", "open-96x3", "sure-64x2", "sure-96x3")
SIZES = {"open-64x2": 240_000, "open-96x3": 580_000, "sure-64x2": 240_000, "sure-96x3": 580_000}


def made(arms, teachers=TEACHERS[:2], seeds=3, items=30):
    rng, parts = np.random.default_rng(1), []
    cells = [("floor", "s", None, None), *(("ceiling", None, teacher, None) for teacher in teachers)]
    cells += [("sft", "s", None, seed) for seed in range(seeds)]
    cells += [(arm, "s", teacher, seed) for arm in arms for teacher in teachers for seed in range(seeds)]
    for objective, student, teacher, seed in cells:
        names = {"objective": objective, "student": student, "teacher": teacher, "seed": seed}
        for task in ("copy", "swap"):
            hits = (rng.random(items) < 0.6).astype(float)
            parts.append(pd.DataFrame(names | {"task": task, "item": range(items), "score": hits}))
    return pd.concat(parts, ignore_index=True)


def test_agreement_is_counted_item_by_item_within_seed_and_pair():
    frame = made(["kl"], teachers=("t",), seeds=2, items=4)
    frame = frame[frame.task == "copy"]
    right = {("sft", 0): [1, 1, 0, 0], ("kl", 0): [1, 0, 1, 1], ("sft", 1): [1, 1, 1, 1], ("kl", 1): [1, 1, 1, 1]}
    for (arm, seed), hits in right.items():
        frame.loc[(frame.objective == arm) & (frame.seed == seed), "score"] = hits
    row = agreement(frame).set_index(["objective", "other"]).loc[("kl", "sft")]
    assert (row.won, row.lost, row.differ, row.n) == (0.25, 0.125, 0.375, 2)
    back = agreement(frame).set_index(["objective", "other"]).loc[("sft", "kl")]
    assert (back.won, back.lost, back.differ) == (row.lost, row.won, row.differ)


def test_a_matrix_of_many_arms_keeps_the_baseline_and_the_best():
    means = pd.Series({f"arm{index}": index / 100 for index in range(40)})
    shown = shown_arms(means, ["arm0"])
    assert len(shown) == LIMIT and shown[0] == "arm39" and shown[-1] == "arm0"


def test_teachers_stand_by_size_and_families_apart():
    overall = pd.DataFrame({"teacher": list(reversed(TEACHERS))})
    at, labels, on_scale = plots_scaling._positions(overall, SIZES)
    assert list(at) == list(TEACHERS) and not on_scale and "580k" in labels["open-96x3"]
    at, _, on_scale = plots_scaling._positions(overall[overall.teacher.str.startswith("open")], SIZES)
    assert on_scale and at["open-64x2"] == math.log10(240_000)
    _, labels, on_scale = plots_scaling._positions(overall, {})
    assert not on_scale and labels["open-96x3"] == "open-96x3"
    assert [plots_scaling.parameters(n) for n in (999, 1_121_280, 582_000, 6.7e9)] == ["999", "1.12M", "582k", "6.7B"]


@pytest.mark.parametrize("count", [2, 11])
def test_few_and_many_arms_are_drawn_and_the_same_bytes_each_time(count, tmp_path):
    arms = [f"objective_with_a_long_name(setting={index},other=True)" for index in range(count)]
    found = compare(made(arms, teachers=TEACHERS), contrasts=[(arms[1], arms[0]), *((arm, "sft") for arm in arms)])
    options = {"sizes": SIZES, "contrasts": found.contrasts}
    draws = {
        "forest": lambda path: plots.forest(found, path),
        "scaling": lambda path: plots_scaling.scaling(found.means, path, **options),
        "heat": lambda path: plots_scaling.heat(found, path),
        "best": lambda path: plots_arms.best_set(found, path),
        "tasks": lambda path: plots_tasks.tasks(found, path),
    }
    for name, draw in draws.items():
        for turn in ("a", "b")[: 1 if count > 2 else 2]:
            draw(tmp_path / f"{name}-{turn}.svg")
        assert (tmp_path / f"{name}-a.svg").read_text().count("<path") > 20, name
        if count == 2:
            assert (tmp_path / f"{name}-a.svg").read_bytes() == (tmp_path / f"{name}-b.svg").read_bytes(), name


def test_a_path_without_suffix_stands_for_both_formats(tmp_path):
    plots.forest(compare(made(["kl"]), "sft"), tmp_path / "forest")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forest.png", "forest.svg"]


def test_one_seed_and_graded_scores_draw_too(tmp_path):
    graded = made(["kl"]).assign(score=lambda frame: frame.score * -12.5)
    for index, frame in enumerate((graded, graded[graded.seed.isna() | (graded.seed == 0)])):
        found = compare(frame, "sft", margin=0.5)
        plots_arms.best_set(found, tmp_path / f"best{index}.png")
        plots_tasks.tasks(found, tmp_path / f"tasks{index}.png")
        plots_scaling.heat(found, tmp_path / f"heat{index}.png")
    assert len(list(tmp_path.iterdir())) == 6


def test_curves_show_the_terms_where_there_are_several(tmp_path):
    steps = range(1, 6)
    terms = [{"objective": "atkd", "step": s, "loss": 3 / s, "loss/tkd": 1 / s, "loss/dkd": 2 / s} for s in steps]
    history = pd.DataFrame([*terms, *({"objective": "kl", "step": s, "loss": 1 / s, "loss/kl": 1 / s} for s in steps)])
    plots_tasks.curves(history, tmp_path / "curves.svg")
    text = (tmp_path / "curves.svg").read_text()
    assert all(f"<!-- {word} -->" in text for word in ("atkd", "tkd", "dkd", "loss")) and text.count("<!-- kl -->") == 1
