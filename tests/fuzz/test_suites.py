"""Suites and objectives that were mutated, cut or made up: a suite, or one clear error.

python -m pytest tests/fuzz/test_suites.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import strategies as st

import kdbench
from kdbench.errors import ConfigError
from kdbench.suite import loader
from kdbench.suite.schema import Suite
from tests.conftest import call
from tests.fuzz import VALUES, ends_well, fuzzed, mutated, within

SUITES = sorted((Path(__file__).parent.parent.parent / "suites").glob("*.yaml"))
DATA = [loader.parse(path).data for path in SUITES]
TEXTS = [path.read_bytes() for path in SUITES]


def is_read_or_refused(path: Path) -> Suite | None:
    try:
        with within():
            return loader.validate(Suite, loader.parse(path))
    except ConfigError as error:
        assert str(path) in str(error) and str(error).strip()
        return None


@fuzzed(60, 3000, data=st.sampled_from(DATA).flatmap(mutated))
@pytest.mark.fault("H1", "suites with values replaced, deleted, renamed or repeated (Hypothesis)")
def test_a_mutated_suite_is_read_or_refused(tmp_path, data):
    path = tmp_path / "fuzz.yaml"
    path.write_text(json.dumps(data))  # which is YAML 1.2 too
    is_read_or_refused(path)


@fuzzed(
    60, 3000, text=st.sampled_from(TEXTS), at=st.integers(0, 5000), count=st.integers(0, 40),
    more=st.binary(max_size=12) | st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass")),
)  # fmt: skip
@pytest.mark.fault("H1", "suites with random bytes put in and cut out (Hypothesis)")
def test_a_suite_with_bytes_put_in_or_cut_out_is_read_or_refused(tmp_path, text, at, count, more):
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(text[:at] + more + text[at + count :])
    is_read_or_refused(path)


@fuzzed(2, 150, data=st.sampled_from([one for one in DATA if one["name"] == "quickstart"]).flatmap(mutated))
@pytest.mark.fault("H1", "mutated suites, planned from the command line (Hypothesis)")
def test_a_mutated_suite_is_planned_or_refused_and_nothing_is_written(tmp_path, data):
    path = tmp_path / "fuzz.yaml"
    path.write_text(json.dumps(data))
    if suite := is_read_or_refused(path):
        too_many = len(suite.seeds) * len(suite.objectives) > 200
        if not too_many and not suite.on_hub:
            ends_well("plan", path, "--results-dir", tmp_path / "results")
    assert [one.name for one in tmp_path.iterdir()] == ["fuzz.yaml"]


NAMES = st.lists(
    st.sampled_from(["kl", "atkd", "gkd", "sekd", "sft", "reverse_kl", "+", "@", "release", " ", "x", "é", "\0"]),
    max_size=9,
).map("".join)  # fmt: skip
FIELDS = st.dictionaries(
    st.sampled_from(["name", "base", "tau", "lam", "beta", "ce", "support", "support_size", "hard_fraction", "x"])
    | st.text(max_size=5),
    NAMES | VALUES,
    max_size=5,
)


def is_made_or_refused(spec) -> None:
    try:
        with within():
            made = kdbench.objective(spec)
        assert kdbench.objective(made.spec()) == made
    except ConfigError as error:
        assert str(error).strip()


@fuzzed(150, 5000, spec=NAMES | VALUES | st.builds(lambda name, rest: rest | {"name": name}, NAMES, FIELDS))
@pytest.mark.fault("H1", "objectives by any name, with any settings (Hypothesis)")
def test_any_specification_gives_an_objective_or_one_clear_error(tmp_path, spec):
    is_made_or_refused(spec)


def nested(depth: int) -> dict:
    spec: dict = {"name": "kl"}
    for _ in range(depth):
        spec = {"name": "atkd", "base": spec}
    return spec


@pytest.mark.fault("H2", "objectives wrapped a thousand times")
@pytest.mark.parametrize("spec", ["kl" + "+atkd" * 5000, nested(400), nested(3000)], ids=["by name", "deep", "deeper"])
def test_an_objective_wrapped_a_thousand_times_is_refused(spec):
    with within(), pytest.raises(ConfigError, match="objective"):
        kdbench.objective(spec)


@fuzzed(25, 1000, words=st.lists(NAMES | st.text(max_size=10), min_size=1, max_size=3))
@pytest.mark.fault("H1", "names of objectives on the command line (Hypothesis)")
def test_any_name_on_the_command_line_is_answered_or_refused(tmp_path, words):
    for command in ("show", "explain"):
        ends_well("objectives", command, *(word.replace("\0", "") for word in words))


def test_an_override_of_any_kind_is_refused_by_name(tmp_path):
    for assignment in ("a" * 10_000 + "=1", "train.steps=" + "[" * 10_000, "objectives.0=kl" + "+atkd" * 5000):
        shown = call("plan", SUITES[0], "--set", assignment, "--results-dir", tmp_path / "r")
        assert shown.exit_code == 2 and "--set " in shown.output
        assert isinstance(shown.exception, SystemExit)
