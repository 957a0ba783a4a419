"""`kdbench profile` measures a cell's parts on its own inputs; `run` and `plan` show prediction beside fact.

python -m pytest tests/run/test_profile.py
"""

from __future__ import annotations

import json

import pytest

from kdbench.files import SUM, sealed, sha256_file
from tests.conftest import call

STEP = {"student forward", "student backward", "loss with heads", "optimiser", "data", "teacher states", "probe"}


def contents(results):
    return {path: sha256_file(path) for path in results.rglob("*") if path.is_file()}


def test_the_parts_of_a_step_add_up_and_the_store_stays_as_it_was(world):
    _, suite, results, _ = world
    before = contents(results)
    asked = ("profile", suite, "--results-dir", results, "--cell", "objective=kl,seed=0", "--steps", 4, "--json")
    result = call(*asked)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["title"] == "kl · small ← big · seed 0" and found["steps"] == 4
    assert set(found["parts_ms"]) == STEP | {"the rest"}
    assert sum(found["parts_ms"].values()) == pytest.approx(found["step_ms"], abs=0.1)
    assert sum(found["shares"].values()) == pytest.approx(1, abs=0.02)
    assert found["teacher_head_ms"] > 0 and found["examine_s"] > 0
    assert contents(results) == before


def test_a_cell_may_be_named_by_the_beginning_of_its_key_and_the_table_has_shares(world):
    _, suite, results, _ = world
    cells = json.loads((results / "suites" / "tiny" / "plan.json").read_text())["cells"]
    key = next(cell["key"] for cell in cells if cell["arm"] == "sft")
    text = call("profile", suite, "--results-dir", results, "--cell", key[:10], "--steps", 2).stdout
    assert "student backward" in text and "%" in text and "examination" in text
    assert "teacher's head" not in text


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("objective=kl", "expected one cell of the suite, found 3"),
        ("objective=atk,seed=0", "Did you mean 'atkd'"),
        ("zzz", "expected one cell of the suite, found none"),
        ("objective=floor,seed=0", "takes no steps"),
    ],
)
def test_what_is_no_single_trained_cell_is_refused_with_a_hint(world, asked, message):
    _, suite, results, _ = world
    result = call("profile", suite, "--results-dir", results, "--cell", asked)
    assert result.exit_code == 2 and message in result.stderr


def test_missing_inputs_are_named_with_what_makes_them(world, tmp_path):
    _, suite, _, _ = world
    result = call("profile", suite, "--results-dir", tmp_path / "none", "--cell", "objective=kl,seed=0")
    assert result.exit_code == 2
    assert "teacher_cache/" in result.stderr and "kdbench run SUITE --only objective=kl" in result.stderr
    assert not (tmp_path / "none").exists()


def test_nothing_is_timed_unless_it_is_asked_for():
    from kdbench.distill import timing

    with timing.part("a"):
        pass
    with timing.collect() as seconds:
        with timing.part("a"), timing.part("b"):
            pass
        with timing.part("a"):
            pass
    with timing.part("c"):
        pass
    assert set(seconds) == {"a", "b"}
    assert timing.part("a") is timing.part("b")


def test_a_run_says_what_it_foresaw_and_writes_it_beside_the_fact(world):
    _, suite, results, process = world
    assert "cost          predicted" in process.stdout and "median error" in process.stdout
    found = json.loads((results / "suites" / "tiny" / "costs.json").read_text())
    assert found["took_s"] > 0 and found["predicted_s"] > 0 and found["workers"] == 2
    cells = [row for row in found["jobs"] if row["job"].startswith("cells/")]
    assert len(cells) == 13
    assert all(row["seconds"] > 0 and row["took_s"] > 0 and row["peak_rss_mib"] > 0 and row["mib"] > 0 for row in cells)
    planned = json.loads(call("plan", suite, "--results-dir", results, "--json").stdout)
    assert found == sealed(found) and planned["last_run"] | {SUM: found[SUM]} == found
    assert planned["expected_seconds"] == 0 and planned["expected_peak_mib"] == 0


def test_a_plan_foresees_seconds_and_memory_and_writes_nothing(world, tmp_path):
    _, suite, _, _ = world
    planned = json.loads(call("plan", suite, "--results-dir", tmp_path / "none", "--json").stdout)
    assert planned["expected_seconds"] > 10  # the workers' imports alone take that
    assert planned["expected_peak_mib"] > 800 and planned["last_run"] is None
    assert not (tmp_path / "none").exists()
