"""What a suite may say of instruction data and of tasks from elsewhere.

python -m pytest tests/suite/test_instruction_suites.py
"""

from __future__ import annotations

import copy

import pytest

from kdbench.suite.examination import names
from kdbench.suite.schema import Suite

TINY = {
    "name": "follow",
    "data": {"instructions": {"file": "records.jsonl"}, "tokenizer": {"path": "tokenizer"}, "length": 64},
    "models": {"small": {"path": "small"}, "big": {"path": "big"}},
    "students": ["small"],
    "teachers": ["big"],
    "objectives": ["sft", "gkd"],
    "seeds": [0, 1, 2],
    "train": {"steps": 6, "batch_tokens": 512, "lr": 1e-2},
    "examine": {"tasks": ["swap"], "lm_eval": [{"task": "piqa", "shots": 0}, {"task": "own", "path": "tasks"}]},
    "compare": {"tasks": ["swap", "piqa", "own"]},
}
PLAIN = {"folder": "text"}
TUNE = {"lr": [1e-3, 1e-2], "seeds": [7]}


def suite(**changes) -> Suite:
    """Return the suite with values set at dotted paths; None takes a key out."""
    made = copy.deepcopy(TINY)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = made
        for name in parents:
            place = place[name]
        place.pop(last, None) if value is None else place.update({last: value})
    return Suite.model_validate(made)


def test_a_suite_names_instructions_and_tasks_from_elsewhere_and_compares_by_them():
    found = suite()
    assert found.data.instructions.template == "alpaca"
    assert found.examine.names == ("swap", "piqa", "own")
    assert names(found.model_dump(mode="json")["examine"]) == ["swap", "piqa", "own"]
    assert names({"tasks": ["swap"]}) == ["swap"]  # as stored before there were others


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__corpus": PLAIN}, "expected either `corpus` .* or `instructions`"),
        ({"data__instructions": None}, "expected either `corpus` .* or `instructions`"),
        ({"rollouts": {"prompt_tokens": 40, "new_tokens": 30}}, "rollouts.new_tokens: expected at most 24"),
        ({"rollouts": {"new_tokens": 33}}, "rollouts.new_tokens: expected at most 32"),
        ({"data__pack": True}, "data.pack: an objective learns from text written after prompts"),
        ({"compare__tasks": ["piqqa"]}, "compare.tasks: unknown task 'piqqa'. Did you mean 'piqa'"),
        ({"compare__tasks": ["replace"]}, "are not examined"),
        ({"examine__lm_eval": [{"task": "swap"}], "compare__tasks": ["swap"]}, "the task 'swap' stands twice"),
        ({"examine__tasks": [], "examine__lm_eval": []}, "expected a task in `tasks` or `lm_eval`"),
        ({"tune": TUNE}, r"tune: .* compare.tasks names \['piqa', 'own'\]"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_is_refused_with_what_was_expected(changes, message):
    with pytest.raises(ValueError, match=message):
        suite(**changes)


def test_packed_rows_serve_objectives_that_do_not_write():
    assert suite(data__pack=True, objectives=["sft", "kl"]).data.pack


def test_tuning_goes_with_tasks_made_from_text():
    assert suite(tune=TUNE, compare__tasks=["swap"]).tune
