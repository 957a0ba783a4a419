"""What another trainer's objective and its settings mean in kdbench: the same function, and what differs.

One name stands for several functions, and one setting for opposite things: a JSD with "beta = 0.1" weighs the teacher
by 0.1 in TRL and by 0.9 in KDFlow. `explain` says which specification here is the function that was meant:

    explain("kdflow:jsd", {"jsd_beta": 0.1}).spec == {"name": "jsd", "beta": 0.9}

The table stands beside this file, in `libraries`, `toolkits`, `distillm` and `papers`, with the versions read.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from kdbench.conventions.distillm import DISTILLM
from kdbench.conventions.entries import BOTH, FACTOR, GRADIENT, NO, Entry, Value
from kdbench.conventions.libraries import LIBRARIES
from kdbench.conventions.papers import PAPERS
from kdbench.conventions.toolkits import TOOLKITS
from kdbench.errors import ConfigError, did_you_mean

__all__ = ["BOTH", "FACTOR", "GRADIENT", "NO", "Explanation", "as_text", "explain", "known", "parse_settings"]

TABLE: dict[str, Entry] = LIBRARIES | TOOLKITS | DISTILLM | PAPERS
SHORT = {"abkd": "abkd:ab", "axolotl": "axolotl:kd", "ms-swift": "ms-swift:gkd", "nemo-rl": "nemo-rl:kl"}
WIDTH = 100


@dataclass(frozen=True)
class Explanation:
    """What a peer's function is in kdbench.

    Attributes:
        name: as in `known()`: `kdflow:jsd`.
        peer: the trainer, its function, and the version that was read.
        spec: the kdbench specification of the same function of the logits, as plain data; None where there is none.
        same: what is equal when both average over the same tokens: "value and gradient", "gradient only", "up to a
            constant factor", or "no".
        differs: one line each for what is not the same, or not visible in the specification.
        given: the settings that were given.
        defaults: the peer's own defaults, used for the other settings; None: the peer leaves it out.
        nearest: where `spec` is None, the specification that comes nearest, if any does.
    """

    name: str
    peer: str
    spec: dict[str, Any] | None
    same: str
    differs: tuple[str, ...]
    given: dict[str, Value]
    defaults: dict[str, Value]
    nearest: dict[str, Any] | None = None


def known() -> list[str]:
    """Return the names that `explain` knows, `trainer:function`."""
    return sorted(TABLE)


def explain(name: str, settings: Mapping[str, Value] | None = None) -> Explanation:
    """Say what a peer's function with these settings is in kdbench.

    Args:
        name: `trainer:function`, such as `trl:gkd`; the trainer alone where it has one function.
        settings: under the peer's own names; the others take the peer's defaults.

    Raises:
        ConfigError: unknown function, unknown setting (with a did-you-mean), or values out of range: all at once.
    """
    full = SHORT.get(name, name)
    if full not in TABLE:
        raise ConfigError(f"unknown function {name!r}.{_which(name)}")
    entry, given = TABLE[full], dict(settings or {})
    problems = [
        f"unknown setting {key!r}.{did_you_mean(key, entry.knobs) or ' It has none.'}"
        if key not in entry.knobs
        else f"{key}: {problem}"
        for key, value in given.items()
        if key not in entry.knobs or (problem := entry.knobs[key].problem(value))
    ]
    if problems:
        raise ConfigError(f"{full}: " + "; ".join(problems))
    given = {key: entry.knobs[key].read(value) for key, value in given.items()}
    defaults = {key: knob.default for key, knob in entry.knobs.items() if key not in given}
    match = entry.rule(SimpleNamespace(**defaults, **given))
    return Explanation(
        full, entry.peer, match.spec, match.same, match.differs, given, defaults, None if match.spec else match.nearest
    )


def _which(name: str) -> str:
    """A hint: the trainer's functions if the trainer is known, else the nearest name, else the trainers."""
    trainers = sorted({one.partition(":")[0] for one in TABLE})
    trainer = name.partition(":")[0]
    if trainer in trainers:
        return did_you_mean(name, [one for one in TABLE if one.startswith(f"{trainer}:")])
    close = did_you_mean(name, TABLE)
    return close if "mean" in close else did_you_mean(trainer, trainers)


def parse_settings(words: Iterable[str]) -> dict[str, Value]:
    """Read settings as they stand on a command line: `["beta=0.1", "seq_kd=true"]`.

    A value is a bool (true, false), None (none, null), a number, or else a string.

    Raises:
        ConfigError: a word without `=`, or a setting given twice.
    """
    found: dict[str, Value] = {}
    for word in words:
        key, equals, text = (part.strip() for part in word.partition("="))
        if not (key and equals and text):
            raise ConfigError(f"expected settings of the form NAME=VALUE, such as beta=0.1; found {word!r}")
        if key in found:
            raise ConfigError(f"setting {key!r} is given twice: {found[key]} and {text}")
        found[key] = _value(text)
    return found


def _value(text: str) -> Value:
    words: dict[str, Value] = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def as_text(explanation: Explanation) -> str:
    """Write an explanation for a terminal: the peer, the line to paste into a suite's `objectives`, what differs."""
    lines = [f"{explanation.name}: {explanation.peer}"]
    for title, values in (("given", explanation.given), ("its default", explanation.defaults)):
        if values:
            lines.append(f"  {title}: " + ", ".join(f"{key}={_shown(value)}" for key, value in values.items()))
    if explanation.spec:
        lines += ["", f"In kdbench ({_WORDS[explanation.same]}):", f"  - {_yaml(explanation.spec)}"]
    else:
        lines += ["", "In kdbench: no specification is the same function."]
    if explanation.nearest:
        lines += ["Nearest:", f"  - {_yaml(explanation.nearest)}"]
    if explanation.differs:
        lines += ["", "What differs, and what the settings mean:" if explanation.spec else "Why:"]
        for line in explanation.differs:
            lines += textwrap.wrap(line, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)


_WORDS = {
    BOTH: "same value and gradient",
    GRADIENT: "same gradient, another value",
    FACTOR: "the same up to a constant factor",
}


def _shown(value: Value) -> str:
    if value is None:
        return "unset"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _yaml(value: Any) -> str:
    """YAML on one line; specifications hold names, numbers, bools and mappings only."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(one)}" for key, one in value.items()) + "}"
    return _shown(value)
