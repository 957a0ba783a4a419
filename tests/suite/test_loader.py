"""Reading YAML: values as they were meant, errors with their line, never a traceback.

python -m pytest tests/suite/test_loader.py
"""

from __future__ import annotations

import time
from typing import Annotated, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from kdbench.errors import ConfigError
from kdbench.suite.loader import Parsed, override, parse, validate


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


class Fast(Inner):
    kind: Literal["fast"]


class Slow(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["slow"]
    patience: int


class Unions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    seed: int | Literal["run"] | None = None
    tagged: list[Annotated[Fast | Slow, Field(discriminator="kind")]] = []
    either: Fast | Slow | None = None
    listed: list[Inner] | Inner | None = None
    even: int = 0

    @field_validator("even")
    @classmethod
    def _even(cls, value: int, info: ValidationInfo) -> int:
        if value % (info.context or {}).get("step", 2):
            raise ValueError("expected an even number")
        return value


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
        ("'1e-4'", "1e-4"), ("0x10", 16), ("1_000", 1000), ("~", None), ("[1, a]", [1, "a"]),
        ("2024-01-01", "2024-01-01"),
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
        ("b: 1\na: [1\nc: }\n", "x.yaml:3:"),
        ("a: 1\n---\nb: 1\n", "another document"),
        ("%YAML 1.1\n---\na: no\n", "expected %YAML 1.2"),
        ("a: !!int x\n", ":1: expected a whole number"),
        ("a: !!bool maybe\n", ":1: expected bool"),
        ("a: !!map [1]\n", "tags are not allowed"),
        ("a: 0x_\n", "whole number"),
        ("a: 1e999\n", "finite"),
        ("a: {<<: {b: 1}}\n", "`<<` is not part of YAML 1.2"),
        ("? [a]\n: 1\n", "name as key"),
        ("null: 1\n", "quotes make it a name"),
        ("b: 1\na: \x01\n", ":2: not valid YAML"),
    ],
)
@pytest.mark.fault("H2", "tags and what else YAML can hide")
def test_what_a_suite_may_not_hold_is_refused_with_its_place(file, text, message):
    with pytest.raises(ConfigError) as error:
        parse(file(text))
    assert message in str(error.value) and "x.yaml" in str(error.value)


def test_a_wrong_path_is_refused_with_the_nearest_file_of_its_folder(file, tmp_path):
    file("a: 1\n")
    (tmp_path / "quickstart.yaml").touch()
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xff\n")
    for path, message in (
        (tmp_path / "quikstart.yaml", "Did you mean 'quickstart.yaml'?"),
        (tmp_path, "found a folder"),
        (tmp_path / "latin.yaml", "latin.yaml:2: expected UTF-8 text"),
        (tmp_path / ("n" * 999), "cannot be read"),
    ):
        with pytest.raises(ConfigError) as error:
            parse(path)
        assert message in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "a: &a [*a]\n",
        "a: " + "[" * 900_000,
        "a: [" + "1," * 400_000 + "]",
        "a: " + "x" * 1_000_000,
    ],
    ids=["alias bomb", "alias of itself", "too deep", "too many", "too large"],
)
@pytest.mark.fault("H2", "bombs and depths")
def test_a_hostile_file_is_refused_in_seconds(file, text):
    path, start = file(text), time.monotonic()
    with pytest.raises(ConfigError, match="expected at most"):
        parse(path)
    assert time.monotonic() - start < 15


def test_an_anchor_may_be_used_and_used_again(file):
    assert parse(file("a: &x 1\nb: *x\nc: &x 2\n")).data == {"a": 1, "b": 1, "c": 2}


def test_lines_are_known_for_every_key_and_item(file):
    lines = parse(file("a:\n  b: 1\n  c:\n  - x\n  - {d: 2}\n")).lines
    assert lines == {
        (): 1, ("a",): 1, ("a", "b"): 2, ("a", "c"): 3, ("a", "c", 0): 4, ("a", "c", 1): 5, ("a", "c", 1, "d"): 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: x", "x.yaml:1: seed: expected a valid integer or 'run', found 'x'"),
        (
            "tagged:\n- kind: fast\n  stepz: 1\n  steps: 1",
            "x.yaml:3: tagged.0.stepz: unknown field. Did you mean 'steps'?",
        ),
        (
            "tagged:\n- {kind: slow, steps: 1, patience: 1}",
            "x.yaml:2: tagged.0.steps: unknown field. Known: kind, patience.",
        ),
        ("tagged:\n- {kind: fats}", "x.yaml:2: tagged.0: expected 'kind' to be one of 'fast', 'slow', found 'fats'"),
        ("tagged: [{}]", "x.yaml:1: tagged.0: expected a field 'kind', found none"),
        ("either: {kind: slow}", "x.yaml:1: either.patience: expected a value, found none"),
        ("listed:\n  steps: 1\n  rat: 2", "x.yaml:3: listed.rat: unknown field. Did you mean 'rate'?"),
        ("listed:\n- steps: y", "x.yaml:2: listed.0.steps: expected a valid integer, found 'y'"),
        ("even: 3", "x.yaml:1: even: expected an even number"),
        (f"seed: {'y' * 99}", f"found '{'y' * 56}..."),
    ],
)
def test_a_wrong_value_is_told_once_in_our_words(file, text, message):
    with pytest.raises(ConfigError) as error:
        validate(Unions, parse(file(text)))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_validators_see_the_context(file):
    assert validate(Unions, parse(file("even: 3")), {"step": 3}).even == 3


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
    with pytest.raises(ConfigError, match=r"--set train\.steps=x"):
        validate(Outer, override(parsed, ["train.steps=x"]))
    for wrong, message in (("train", "A.B=VALUE"), ("name.b=1", "single value"), ("seeds.7=1", "index from 0 to 1")):
        with pytest.raises(ConfigError, match=message):
            override(parsed, [wrong])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train=[1", "not valid YAML"), ("train=!x 1", "tags are not allowed"), ("train.steps=.inf", "finite"),
        ("a..b=1", "A.B=VALUE"), ("=1", "A.B=VALUE"), ("seeds.0=1", "the list is empty"), ("seeds.²=1", "'²'"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named_instead_of_a_line(file, assignment, message):
    with pytest.raises(ConfigError) as error:
        override(parse(file("name: a\nseeds: []\n")), [assignment])
    assert message in str(error.value) and str(error.value).startswith(f"--set {assignment}: ")


def test_an_override_reaches_keys_with_dots_and_owns_the_sections_it_makes(file):
    parsed = parse(file("name: a\ntrain: {steps: 1}\nparts: {v-1.7b: {steps: 1}}\n"))
    changed = override(parsed, ["parts.v-1.7b.steps=2", "seeds=[0, 1]"])
    assert changed.data["parts"] == {"v-1.7b": {"steps": 2}} and changed.data["seeds"] == [0, 1]
    with pytest.raises(ConfigError, match=r"--set parts\.new\.rate=1: parts\.new\.steps: expected a value"):
        validate(Outer, override(parsed, ["parts.new.rate=1"]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(max_size=60), st.text(alphabet="ab:-[]{}&*!|>'\"#\n 01.,", max_size=80)))
@pytest.mark.fault("H1", "any text (Hypothesis)")
def test_any_text_gives_a_suite_s_data_or_one_clear_error(tmp_path, text):
    path = tmp_path / "fuzz.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        validate(Outer, parse(path))
    except ConfigError as error:
        assert str(error)


TOKENS = [
    "a", ": ", "- ", "\n", " ", "[", "]", "{", "}", "&x ", "*x", "!", "!!int ", "!!bool ", "? ", "0x_",
    "---\n", "<<", "%YAML 1.1\n", "|", ">", "'", '"', "#", ",", "1:30", "1e9", "~", "=", "\ufeff", "\u0085",
]  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(st.sampled_from(TOKENS), max_size=25).map("".join))
@pytest.mark.fault("H1", "any text that looks like YAML (Hypothesis)")
def test_any_yaml_like_text_gives_data_or_one_clear_error(tmp_path, text):
    path = tmp_path / "fuzz.yaml"
    path.write_text(text, encoding="utf-8")
    for read in (lambda: validate(Outer, parse(path)), lambda: override(Parsed(path, {}, {}), [f"a.b={text}"])):
        try:
            read()
        except ConfigError as error:
            assert str(error)
