"""What objectives cost, and which of them nothing beats at both score and seconds.

python -m pytest tests/analysis/test_costs.py
"""

from __future__ import annotations

import math

import pandas as pd
import pytest

from kdbench.analysis.costs import costs, sentences
from kdbench.errors import ConfigError


def cell(objective, seconds, *, teacher="t", student="s", seed=0, **more):
    timing = {"wall_s": seconds + 9, "train_s": seconds, "peak_rss_mib": 500}
    facts = {"timing": timing, "done": {"tokens": 81920, "timing": timing}, "seconds": seconds + 9, "status": "ok"}
    return {"objective": objective, "student": student, "teacher": teacher, "seed": seed} | facts | more


def means(**scores):
    rows = [(name, "s", None if name == "sft" else "t", "overall", value) for name, value in scores.items()]
    return pd.DataFrame(rows, columns=["objective", "student", "teacher", "task", "mean"])


CELLS = [cell("sft", 2.0, teacher=None), cell("kl", 3.0), cell("jsd", 4.0), cell("slow", 9.0)]
SCORES = means(sft=0.70, kl=0.80, jsd=0.75, slow=0.85)


def test_the_front_holds_what_nothing_beats_at_both_score_and_seconds():
    found = costs(CELLS, SCORES).set_index("objective")
    assert found.on_front.to_dict() == {"sft": True, "kl": True, "jsd": False, "slow": True}
    assert found.ratio.to_dict() == {"sft": 1.0, "kl": 1.5, "jsd": 2.0, "slow": 4.5}


def test_two_arms_alike_in_both_stand_both_on_the_front():
    found = costs([cell("a", 3.0), cell("b", 3.0)], means(a=0.8, b=0.8))
    assert found.on_front.tolist() == [True, True] and found.ratio.isna().all()


def test_seeds_give_medians_and_facts_are_found_wherever_they_stand():
    cells = [cell("kl", seconds, seed=seed) for seed, seconds in enumerate((3.0, 5.0, 30.0))]
    cells.append(cell("on_policy", 8.0, done={"generated_tokens": 1000, "tokens": 5}))
    found = costs(cells, means(kl=0.8, on_policy=0.9)).set_index("objective")
    assert found.seconds["kl"] == 5.0 and found.n_cells["kl"] == 3 and found.peak_mib["kl"] == 500
    assert found.generated_tokens["on_policy"] == 1000 and math.isnan(found.generated_tokens["kl"])
    assert found.tokens["kl"] == 81920 and found.ratio["on_policy"] == 8 / 5


def test_an_arm_without_teacher_stands_beside_every_teacher_and_floor_and_ceiling_cost_nothing():
    cells = [cell("sft", 2.0, teacher=None), cell("kl", 3.0), cell("kl", 6.0, teacher="u"), cell("ceiling", 1.0)]
    scores = pd.concat([means(sft=0.7, kl=0.8), means(kl=0.9).assign(teacher="u")])
    found = costs(cells, scores)
    assert found[["objective", "teacher", "score", "ratio"]].to_numpy().tolist() == [
        ["sft", "t", 0.7, 1.0], ["kl", "t", 0.8, 1.5], ["sft", "u", 0.7, 1.0], ["kl", "u", 0.9, 3.0],
    ]  # fmt: skip
    alone = costs([cell("sft", 2.0, teacher=None)], means(sft=0.7))
    assert alone.teacher.tolist() == [None] and alone.on_front.tolist() == [True]


def test_failed_cells_and_students_trained_elsewhere_have_no_seconds():
    foreign = cell("mine", 1.0, timing={"wall_s": 5.0}, done={}, elsewhere=True)
    found = costs([cell("kl", 3.0), cell("kl", 99.0, seed=1, status="diverged"), foreign], means(kl=0.8, mine=0.9))
    found = found.set_index("objective")
    assert found.seconds["kl"] == 3.0 and math.isnan(found.seconds["mine"]) and not found.on_front["mine"]
    assert found.on_front["kl"] and "mine: not trained here" in "\n".join(sentences(found.reset_index()))


def test_a_row_that_tells_only_the_cells_wall_time_is_taken_at_that():
    rough = {"objective": "kl", "student": "s", "teacher": "t", "seed": 0, "seconds": 7.0}
    assert costs([rough], means(kl=0.8)).seconds.tolist() == [7.0]


def test_the_baseline_may_be_chosen_and_must_exist():
    assert costs(CELLS, SCORES, "kl").set_index("objective").ratio["slow"] == 3.0
    with pytest.raises(ConfigError, match="Did you mean 'jsd'"):
        costs(CELLS, SCORES, "jsb")


def test_sentences_say_seconds_ratio_front_and_how_rough_that_is():
    told = sentences(costs(CELLS, SCORES))
    assert told[1].startswith("kl: 3.0 s of training (s ← t), 1.50 × sft, at most 500 MiB of memory")
    assert told[1].endswith("on the front of score against seconds.") and "not on the front" in told[2]
    assert "on shared cores they are rough" in told[-2] and sentences(costs([], SCORES)) == [
        "No trained cell is finished, so there are no costs to show."
    ]
