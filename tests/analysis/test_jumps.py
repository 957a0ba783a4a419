"""A training whose loss exploded and stayed finite is shown and counted, with a remark.

python -m pytest tests/analysis/test_jumps.py
"""

from __future__ import annotations

import pytest

from kdbench.analysis.answer import jumped
from kdbench.analysis.results import open_suite
from kdbench.files import SUM, write_json
from tests.analysis.small_store import SmallStore

JUMP = {"steps": 3, "first_step": 7, "loss": 913.26, "median": 5.7, "largest": 2000.0}


@pytest.mark.fault("E3", "a cell whose loss jumped: a remark in compare, its scores stay")
def test_a_loss_that_jumped_is_a_remark_of_the_comparison(tmp_path):
    made = SmallStore(tmp_path)
    keys = [made.cell("kl", "small", "big", seed) for seed in range(9)]
    assert jumped(open_suite(tmp_path)) == []
    for key in keys[1:]:
        entry = made.store.entry("cells", key)
        done = {name: value for name, value in entry.done().items() if name != SUM}  # as before there was a sum
        write_json(entry.path / "DONE.json", done | {"loss_jumps": JUMP})
    told = jumped(open_suite(tmp_path))
    assert told[0] == (
        "kl · small ← big · seed 1: the loss jumped to 913.3 at step 7 (median before: 5.7), 3 times in all, at most "
        "to 2,000"
    )
    assert len(told) == 7 and told[-1] == "and 2 more trainings with a loss that jumped"
    assert {cell["status"] for cell in open_suite(tmp_path).cells} == {"ok"}
