"""The shape of an entry: a peer's function, its settings, and a rule that says what it is in kdbench.

Symbols: p teacher, q student, D_β the generalised JSD whose β is the teacher's weight in the mixture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Value = str | float | bool | None
BOTH, GRADIENT, FACTOR, NO = "value and gradient", "gradient only", "up to a constant factor", "no"

TEACHER_BETA = "Beta: the teacher's weight in the mixture, as here."
STUDENT_BETA = "Beta: the student's weight in the mixture; here it is the teacher's, so it is 1 minus theirs."
JUMP = "Endpoints: β = 0 is forward and β = 1 reverse KL, but D_β → 0 as β → 0 or 1: the loss jumps there."
NO_SQUARE = "Temperature: divides both models' logits, and there is no τ² (tau_sq: false)."
SQUARE = "Temperature: divides both models' logits, and the divergence is multiplied by τ² (tau_sq: true)."
NO_HEAT = "Temperature: none."
SOFT_CE = "Value: it reports the cross-entropy CE(p, q) = KL(p‖q) + H(p); the gradient is that of the KL."
SKEW_CE = "Value: it reports the cross-entropy CE(p, M), M the mixture; the gradient is that of the divergence."
GLOBAL = "Normaliser: the valid tokens of the whole optimiser step, as here."
MICRO = "Normaliser: the valid tokens of each micro-batch; here, of the whole optimiser step."
CALL = "Normaliser: the tokens of the call that are not ignored."
SEQUENCE = "Normaliser: the mean over each sequence, then over sequences; here, over all tokens of the optimiser step."
DRAWN = "Data: the chance of student text is drawn per micro-batch on each rank; here once per optimiser step."
FULL_TOP_K = "Support: the teacher renormalised over its top-k, the student over the whole vocabulary."
SHARED_TOP_K = "Support: both sides renormalised over the teacher's top-k, so student mass outside of it costs nothing."
NO_SUPPORT = "Here only forward KL has a support."


@dataclass(frozen=True)
class Knob:
    """A setting: its default in the peer (None: left out) and what it accepts; `open_` excludes both ends."""

    default: Value
    low: float = -math.inf
    high: float = math.inf
    open_: bool = False
    choices: tuple[str, ...] = ()
    whole: bool = False

    def problem(self, value: Value) -> str:
        """Say what is wrong with a value; empty if nothing is."""
        if value is None and self.default is None:
            return ""
        if isinstance(self.default, bool):
            return "" if isinstance(value, bool) else f"expected true or false, found {value!r}"
        if self.choices:
            return (
                ""
                if self.read(value) in self.choices
                else f"expected one of {', '.join(self.choices)}, found {value!r}"
            )
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if good and self._inside(value) and (not self.whole or value == int(value)):
            return ""
        return f"expected a {'whole ' if self.whole else ''}number {self._range()}, found {value!r}"

    def read(self, value: Value) -> Value:
        """Return a value that has no problem as a rule wants it: `none` may be a word, and 64.0 stands for 64."""
        if value is None and "none" in self.choices:
            return "none"
        return int(value) if self.whole and value is not None else value

    def _inside(self, value: float) -> bool:
        return self.low < value < self.high if self.open_ else self.low <= value <= self.high

    def _range(self) -> str:
        if math.isinf(self.high):
            return f"{'above' if self.open_ else 'of at least'} {self.low:g}"
        return f"in ({self.low:g}, {self.high:g})" if self.open_ else f"in [{self.low:g}, {self.high:g}]"


def share(default: float | None) -> Knob:
    """A number in [0, 1]."""
    return Knob(default, 0, 1)


def inner(default: float) -> Knob:
    """A number in (0, 1)."""
    return Knob(default, 0, 1, open_=True)


def positive(default: float) -> Knob:
    """A number above 0."""
    return Knob(default, 0, open_=True)


def weight(default: float | None) -> Knob:
    """A number of at least 0."""
    return Knob(default, 0)


def count(default: int | None, low: int = 1) -> Knob:
    """A whole number of at least `low`."""
    return Knob(default, low, whole=True)


def flag(default: bool) -> Knob:
    """True or false."""
    return Knob(default)


def choice(*options: str) -> Knob:
    """One of some words; the first is the default."""
    return Knob(options[0], choices=options)


@dataclass(frozen=True)
class Match:
    """What a function is in kdbench: see `Explanation`."""

    spec: dict[str, Any] | None
    same: str
    differs: tuple[str, ...]
    nearest: dict[str, Any] | None = None


Rule = Callable[[Any], Match]


@dataclass(frozen=True)
class Entry:
    """A peer's function: where it was read, its settings, and the rule from them to a match."""

    peer: str
    knobs: Mapping[str, Knob]
    rule: Rule


def recorder(table: dict[str, Entry]) -> Callable[..., Callable[[Rule], Rule]]:
    """Return a decorator that puts a rule into a table, under a name and with its settings."""

    def record(name: str, peer: str, **knobs: Knob) -> Callable[[Rule], Rule]:
        def keep(rule: Rule) -> Rule:
            table[name] = Entry(peer, knobs, rule)
            return rule

        return keep

    return record


SILENT = {"tau": 1, "tau_sq": False, "ce": 0, "temperature": 1, "off_policy": "corpus"}  # kdbench's own defaults


def spec(name: str, **fields: Any) -> dict[str, Any]:
    """Return a specification as plain data, without fields that are None or say nothing."""
    if fields.get("tau", 1) == 1:
        fields["tau_sq"] = False
    kept = {key: value for key, value in fields.items() if value is not None and SILENT.get(key, ()) != value}
    ordered = sorted(kept, key=lambda key: ("tau", "tau_sq", "ce").index(key) if key in ("tau", "tau_sq", "ce") else -1)
    return {"name": name} | {k: round(kept[k], 12) if isinstance(kept[k], float) else kept[k] for k in ordered}


def same(name: str, *differs: Any, how: str = BOTH, **fields: Any) -> Match:
    """The function is this specification; lines that are false or empty are left out."""
    return Match(spec(name, **fields), how, tuple(line for line in differs if line))


def weighted(kd: float, ce: float, name: str, *differs: Any, how: str = BOTH, **fields: Any) -> Match:
    """The function is kd · KD + ce · CE; here both weights add up to 1."""
    total = kd + ce
    if not total:
        return none("Both weights are 0, and so is the loss.")
    if not math.isclose(total, 1):
        how = how if how == GRADIENT else FACTOR
        differs += (
            f"Scale: its weights add up to {total:g}, so the loss is {total:g} times that of the specification.",
        )
    return same(name, *differs, how=how, ce=ce / total, **fields)


def none(*why: Any, nearest: dict[str, Any] | None = None) -> Match:
    """No specification is this function."""
    return Match(None, NO, tuple(line for line in why if line), nearest)


def rest(ratio: float | None) -> float | None:
    """The share of cross-entropy where `ratio` is that of distillation."""
    return None if ratio is None else 1 - ratio


def top(size: int | None) -> dict[str, Any]:
    """The fields of a top-k over which both sides are renormalised; none for the whole vocabulary."""
    return {"support": "topk_both", "support_size": size} if size else {}
