"""Random and hostile input at every door: never a traceback, never a hang, never a write outside the results folder.

The commit tier draws few examples and always the same; `-m slow` draws many.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import call

DEADLINE_S = 60  # far more than anything here takes; a hang is what does not end
CODES = (0, 2, 3, 4)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-3, 70), st.floats(), st.text(max_size=12),
    st.sampled_from(["", "..", "../x", "/etc/passwd", "a/b", "\0", "\ud800", "é漢", "nan", "1e-4", "kl", "x" * 300]),
    st.sampled_from([2**70, -(2**70), 1e308]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


class Hang(BaseException):
    """No handler of `Exception` may take it for an error."""


@contextmanager
def within(seconds: int = DEADLINE_S) -> Iterator[None]:
    """End what takes longer than `seconds`, in the main thread; a test's own time limit goes on afterwards."""
    fired = []

    def stop(*_: object) -> None:
        fired.append(Hang(f"still busy after {seconds} s"))
        raise fired[0]

    before, began = signal.signal(signal.SIGALRM, stop), time.monotonic()
    outer_s, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, outer_s and max(0.01, outer_s - (time.monotonic() - began)))
        if fired:  # whoever may have taken it for an error
            raise fired[0]


def ends_well(*arguments: object) -> Any:
    """Run a command in this process; it must end with one clear error, or none."""
    with within():
        shown = call(*arguments)
    wrong = shown.exception if not isinstance(shown.exception, SystemExit) else None
    assert wrong is None, f"kdbench {' '.join(map(str, arguments))}: {wrong!r}"
    assert shown.exit_code in CODES and "Traceback" not in shown.output, shown.output
    assert shown.exit_code == 0 or shown.stderr.strip(), "an error without a word"
    return shown


def fuzzed(few: int, many: int, **strategies: st.SearchStrategy[Any]) -> Any:
    """Run a test on `few` fixed examples, and as a slow test on `many` random ones."""

    def decorate(test: Any) -> Any:
        @pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])
        def both(examples: int, tmp_path: Path, record_property: Any) -> None:
            quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
            limits = settings(
                max_examples=examples, deadline=None, database=None, derandomize=examples == few,
                suppress_health_check=quiet, print_blob=True,
            )  # fmt: skip

            @limits
            @given(**strategies)
            def one(**drawn: Any) -> None:
                test(tmp_path, **drawn)

            one()
            record_property("tried", examples)

        both.__doc__, both.__name__ = test.__doc__, test.__name__
        for mark in getattr(test, "pytestmark", ()):
            both = pytest.mark.fault(*mark.args)(both)
        return both

    return decorate


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside plain data."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, whole: Any, most: int = 3) -> Any:
    """Plain data in which up to `most` values were replaced, deleted, renamed or repeated."""
    value = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from(list(places(value))))
        if not path:
            continue
        home = value
        for key in path[:-1]:
            home = home[key]
        key, how = path[-1], draw(st.sampled_from(["replace", "replace", "delete", "rename", "repeat"]))
        if how == "replace":
            home[key] = draw(VALUES)
        elif how == "delete":
            del home[key]
        elif how == "rename" and isinstance(home, dict):
            home[draw(st.text(max_size=8))] = home.pop(key)
        elif how == "repeat" and isinstance(home, list):
            home.append(home[key])
    return value
