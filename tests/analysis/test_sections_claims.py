"""What a report says of published claims, of sizes, of how sure teachers are, and of tuning."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench.analysis import sections_claims, token_view
from kdbench.analysis.results import open_suite
from kdbench.analysis.section import Context
from kdbench.analysis.verdict import compare
from tests.analysis.small_store import SmallStore
from tests.analysis.test_pictures import made

TEACHERS, SIZES = ("mid", "big"), {"s": 1e5, "mid": 2e5, "big": 8e5}
ASKED = {"tasks": ["copy", "swap"], "alpha": 0.05, "margin": 0.01, "weights": {}}
CLAIM = {"source": "a paper", "sentence": "kl gains 3 points", "contrast": ["kl", "sft"], "points": 3.0}


def known(scores=None, **more):
    scores = made(["kl"], teachers=TEACHERS) if scores is None else scores
    plan = {"suite": {"compare": ASKED, **more.pop("suite", {})}, **more.pop("plan", {})}
    return Context(compare(scores, "sft"), {}, scores=scores, sizes=SIZES, plan=plan, **more)


def better_by(points):
    """Scores of kl that lie above sft's by so much at every item, seed and teacher."""
    scores = made(["kl"], teachers=TEACHERS)
    scores["score"] = np.where(scores.objective == "kl", 0.5 + points / 100, 0.5)
    scores["score"] += 0.001 * (scores.seed.fillna(0).astype(int) % 2) * (scores.objective == "kl")
    return scores


@pytest.mark.parametrize(("points", "verdict"), [(3.0, "replicated"), (1.5, "smaller"), (-2.0, "contradicted")])
def test_a_claim_is_judged_by_the_results_and_its_deviations_are_named(points, verdict):
    claim = CLAIM | {"deviations": ["models made here"]}
    section = sections_claims.claimed(known(better_by(points), suite={"claims": [claim]}))
    ((_, _, (row,)),) = section.tables
    assert row[:2] == [verdict, "kl gains 3 points"]
    assert any("models made here" in text for text in section.text)


def test_a_suite_without_claims_has_no_such_section():
    assert sections_claims.claimed(known()) is None


def test_trends_name_the_sizes_that_were_run_and_need_them():
    section = sections_claims.sizes(known())
    assert any("2 teachers between 200k and 800k parameters" in text for text in section.text)
    assert sections_claims.sizes(Context(compare(made(["kl"]), "sft"), {}, scores=made(["kl"]))) is None


@pytest.fixture
def store(tmp_path):
    """Two teachers, the larger one surer; kl gains on the tokens of which they are sure."""
    made_store = SmallStore(tmp_path, teachers=TEACHERS)
    level = {"mid": np.full(60, -3.0), "big": np.where(np.arange(60) < 30, -0.1, -3.0)}
    for teacher, log_prob in level.items():
        made_store.cell("ceiling", None, teacher, None, log_prob)
        for seed in (0, 1):
            made_store.cell("kl", "small", teacher, seed, log_prob + 0.01 * seed, log_prob)
    for seed in (0, 1):
        made_store.cell("sft", "small", None, seed, np.full(60, -3.0))
    return made_store


def test_how_sure_teachers_are_is_said_drawn_and_read_once(store, tmp_path, monkeypatch):
    read = []
    real = token_view.uncertainty
    monkeypatch.setattr(token_view, "uncertainty", lambda found: read.append(1) or real(found))
    context = known(results=open_suite(store.store.root), suite={"claims": [CLAIM]})
    section = sections_claims.sure(context)
    assert [row[:2] for row in section.tables[0][2]] == [["mid", "held-out"], ["big", "held-out"]]
    section.draw(tmp_path / "sure.png")
    assert (tmp_path / "sure.png").stat().st_size > 500
    monkeypatch.setattr(sections_claims, "item_scores", None)  # scores that are known are not read again
    assert sections_claims.claimed(context) is not None and len(read) == 1


def test_tokens_are_told_apart_from_easy_to_hard(store):
    section = sections_claims.tokens(known(results=open_suite(store.store.root)))
    assert "kl against sft" in section.text[0]
    ((title, head, rows),) = section.tables
    assert title.startswith("kl − sft") and head[1] == "all held-out tokens"
    assert [row[0] for row in rows] == ["small ← mid", "small ← big"]


def test_claims_at_a_number_of_seeds_that_was_no_planned_look_are_called_exploratory(monkeypatch):
    from dataclasses import replace

    context = known(suite={"claims": [CLAIM]})
    assert "no planned look" not in " ".join(sections_claims.claimed(context).text)
    unplanned = replace(context, comparison=replace(context.comparison, looks=(50,)))
    assert "no planned look" in sections_claims.claimed(unplanned).text[0]


def test_the_tuning_is_shown_where_there_was_one():
    assert sections_claims.tuning(known()) is None
