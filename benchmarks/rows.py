"""A row of the table: what was measured, against what, how they compare, and whether that was aimed at."""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.measure import Found

SENSES = {"<=": operator.le, ">=": operator.ge, "<": operator.lt}
SIGNS = {"<=": "≤", ">=": "≥", "<": "<"}
HEAD = ("what", "contestant", "reference", "ratio", "target", "met?", "median", "peak extra memory")


@dataclass(frozen=True)
class Row:
    """One line.

    Attributes:
        ratio: contestant over reference, unless `what` names another quantity; None where either could not run.
        target: such as `("<=", 1.3)`; None where nothing was aimed at.
        value, unit: the contestant's own median.
        extra_bytes: how far it raised the peak of its process.
        note: why there is no ratio, or what must be known to read it.
    """

    group: str
    what: str
    contestant: str
    reference: str
    ratio: float | None
    target: tuple[str, float] | None = None
    value: float | None = None
    unit: str = "s"
    extra_bytes: float | None = None
    note: str = ""

    @property
    def key(self) -> str:
        """How `reasons` names it."""
        return f"{self.group}: {self.what}: {self.contestant} / {self.reference}"

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without a target or a ratio."""
        if self.target is None or self.ratio is None:
            return None
        return SENSES[self.target[0]](self.ratio, self.target[1])

    def data(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self) | {"key": self.key, "met": self.met}

    def cells(self) -> list[str]:
        """Return what the table shows."""
        ratio = self.note if self.ratio is None else f"{self.ratio:.3g}" + (" ¹" if self.note else "")
        target = "–" if self.target is None else f"{SIGNS[self.target[0]]} {self.target[1]:g}"
        met = "–" if self.met is None else "yes" if self.met else "NO"
        return [self.what, self.contestant, self.reference, ratio or "–", target, met, self._median(), self._memory()]

    def _median(self) -> str:
        return "–" if self.value is None else f"{self.value:,.4g} {self.unit}"

    def _memory(self) -> str:
        return "–" if self.extra_bytes is None else f"{self.extra_bytes / 2**20:,.0f} MiB"


def against(
    group: str,
    what: str,
    names: tuple[str, str],
    pair: tuple[Found, Found],
    target: tuple[str, float] | None = None,
    quantity: str = "seconds",
    note: str = "",
) -> Row:
    """Return the row of two measurements: contestant over reference; for `speed`, how many times as fast."""
    one, other = pair
    missing = [f"{name}: {found['missing']}" for name, found in zip(names, pair, strict=True) if "missing" in found]
    value, extra = one.get("seconds"), one.get("extra_bytes")
    if missing:
        return Row(group, what, *names, None, target, value, "s", extra, "; ".join(missing))
    key = "seconds" if quantity == "speed" else quantity
    if not one.get(key) or not other.get(key):
        return Row(group, what, *names, None, target, value, "s", extra, "no measure of memory on this system")
    ratio = other[key] / one[key] if quantity == "speed" else one[key] / other[key]
    return Row(group, what, *names, ratio, target, value, "s", extra, note)
