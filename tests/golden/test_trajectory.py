"""Training gives the numbers it gave: to the last bit where nothing that they may depend on has changed.

python -m pytest tests/golden
"""

from __future__ import annotations

import json

import pytest
import torch

from tests.golden import HERE, OBJECTIVES, STEPS, facts, stored, trajectories


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.fault("G12", "five steps of four objectives on the quickstart's student, to the last bit")
def test_the_quickstart_s_models_learn_along_the_golden_trajectory(one_thread, record_property):
    golden, here = stored(), facts()
    if differ := {name: (value, here[name]) for name, value in golden["facts"].items() if here[name] != value}:
        told = "; ".join(f"{name} {was}, here {now}" for name, (was, now) in differ.items())
        pytest.skip(f"the golden trajectory was written with {told}")
    found = trajectories()
    for name in OBJECTIVES:
        for step, (was, now) in enumerate(zip(golden["trajectories"][name], found[name], strict=True)):
            assert now == was, f"{name} parts from the golden trajectory at step {step}; see tests/golden/__init__.py"
    record_property("tried", len(OBJECTIVES) * STEPS)


@pytest.mark.parametrize("path", sorted(HERE.glob("quickstart_*.json")), ids=lambda path: path.stem)
def test_a_golden_trajectory_is_whole_and_of_trainings_that_differ(path):
    golden = json.loads(path.read_text(encoding="utf-8"))["trajectories"]
    assert set(golden) == set(OBJECTIVES) and all(len(steps) == STEPS for steps in golden.values())
    assert len({steps[-1]["loss"] for steps in golden.values()}) == len(OBJECTIVES)
    assert float.fromhex(golden["sft"][-1]["loss"]) < float.fromhex(golden["sft"][0]["loss"])
