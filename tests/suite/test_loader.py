"""Reading YAML: values as they were meant, errors with their line, never a traceback.

python -m pytest tests/suite/test_loader.py
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from kdbench.errors import ConfigError
from kdbench.suite.loader import override, parse, validate


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: int
    rate: float = 1.0


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    train: Inner
    parts: dict[str, Inner] = {}
    seeds: list[int] = []


@pytest.fixture
def file(tmp_path):
    def write(text: str):
        path = tmp_path / "x.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1.0e-4", 1e-4), ("6E-3", 6e-3), ("no", "no"), ("on", "on"), ("1:30", "1:30"), ("true", True),
        ("'1e-4'", "1e-4"), ("0x10", 16), ("1_000", 1000), ("~", None), ("[1, a]", [1, "a"]), ("2024-01-01", "2024-01-01"),
    ],
)  # fmt: skip
def test_values_mean_what_a_reader_expects(file, text, value):
    found = parse(file(f"a: {text}\n")).data["a"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", ":2: the key 'a' stands twice, first in line 1"),
        ("a: !!python/object/apply:os.system [ls]\n", "tags are not allowed"),
        ("a: !mine 1\n", "tags are not allowed"),
        ("a: .nan\n", "finite"),
        ("a: .inf\n", "finite"),
        (f"a: {2**70}\n", "below 2^63"),
        ("1: a\n", "name as key"),
        ("- a\n", "expected a mapping"),
        ("", "empty"),
        ("a: [1\n", "not valid YAML"),
        ("a: *b\n", "not valid YAML"),
    ],
)
def test_what_a_suite_may_not_hold_is_refused_with_its_place(file, text, message):
    with pytest.raises(ConfigError) as error:
        parse(file(text))
    assert message in str(error.value) and "x.yaml" in str(error.value)


def test_every_error_is_listed_with_line_and_suggestion(file):
    path = file("name: 3\ntrain:\n  stepz: 2\n  rate: fast\nparts:\n  one: {steps: 1, rat: 2}\nseeds: [1, b]\n")
    with pytest.raises(ConfigError) as error:
        validate(Outer, parse(path))
    text = str(error.value)
    assert "6 errors" in text
    for part in (
        "x.yaml:1: name",
        "x.yaml:3: train.stepz: unknown field. Did you mean 'steps'?",
        "x.yaml:2: train.steps: expected a value, found none",
        "x.yaml:4: train.rate",
        "x.yaml:6: parts.one.rat: unknown field. Did you mean 'rate'?",
        "x.yaml:7: seeds.1",
    ):
        assert part in text


def test_one_error_is_one_line(file):
    with pytest.raises(ConfigError) as error:
        validate(Outer, parse(file("name: a\ntrain: {steps: x}\n")))
    assert "\n" not in str(error.value)


def test_overrides_replace_and_are_named_in_errors(file):
    parsed = parse(file("name: a\ntrain: {steps: 1}\nseeds: [1, 2]\n"))
    changed = override(parsed, ["train.steps=5", "train.rate=1e-3", "seeds.1=9", "parts.p.steps=3"])
    made = validate(Outer, changed)
    assert (made.train.steps, made.train.rate, made.seeds, made.parts["p"].steps) == (5, 1e-3, [1, 9], 3)
    assert parsed.data["train"] == {"steps": 1}
    with pytest.raises(ConfigError, match="--set train.steps=x"):
        validate(Outer, override(parsed, ["train.steps=x"]))
    for wrong, message in (("train", "A.B=VALUE"), ("name.b=1", "single value"), ("seeds.7=1", "index from 0 to 1")):
        with pytest.raises(ConfigError, match=message):
            override(parsed, [wrong])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(max_size=60), st.text(alphabet="ab:-[]{}&*!|>'\"#\n 01.,", max_size=80)))
def test_any_text_gives_a_suite_s_data_or_one_clear_error(tmp_path, text):
    path = tmp_path / "fuzz.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        validate(Outer, parse(path))
    except ConfigError as error:
        assert str(error)
