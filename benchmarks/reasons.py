"""Why a row misses its target, in words, by the row's key (the JSON shows them). Filled in by hand.

A key may end before the row's does: `"head: kl"` stands for every row that begins so. The longest one counts.
"""

from __future__ import annotations

SMALL = (
    "The student has 0.23M parameters and its whole step takes 49 ms; the product with the teacher's head and the "
    "passes over [1,008 tokens, 2,048 classes] are of that size. Measured before the largest class was taken without "
    "its index, which was a third of the divergence's own time."
)
TEACHER = (
    "The cached step stands that far above the bare one (see the first rows); a live teacher costs what TRL's does."
)
REASONS: dict[str, str] = {
    "step: kl, cached": SMALL,
    "step: reverse_kl, cached": SMALL,
    "step: jsd, cached": SMALL + " The mixture costs a logarithm a class more.",
    "step: atkd, cached": SMALL + " Both sides are copied once to leave the target out.",
    "step: kl, teacher": TEACHER,
}


def reason(key: str) -> str:
    """Return what is known of a row that misses its target."""
    known = [start for start in REASONS if key.startswith(start)]
    return REASONS[max(known, key=len)] if known else "no reason written down yet"
