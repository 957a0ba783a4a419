"""Why a row misses its target, in words, by the row's key (the JSON shows them). Filled in by hand.

A key may end before the row's does: `"head: kl"` stands for every row that begins so. The longest one counts.
"""

from __future__ import annotations

PASSES = (
    "What is above the floor are the passes over [tokens, V]: an exponential for each side, and their products with "
    "the gap. They run over pieces that fit a core's cache; nothing is computed twice."
)
TWICE = (
    "Without stored log p of the targets the teacher's head is multiplied twice: once to rank all tokens of the batch, "
    "once to learn from them. The floor counts it once. With the cache's log p it is multiplied once (see that row)."
)
GRADIENTS = (
    "The gradients that both sides hand back (the student head's alone is V x 768 numbers) count on both; beyond them "
    "it is the share in the note. A smaller chunk would take less and more time."
)
DISTURBED = (
    "Measured once, while tests ran on the machine's other core; alone, right afterwards: 1.23 (25.3 s against 20.6 s)."
)
HEAD = (
    "A step of this student (0.23M parameters) is hardly more than the product with the teacher's head: that product "
    "beside the bare step is the row `bare step and the product with the teacher's head`. Above that row are the "
    "passes over [1,008 tokens, 2,048 classes]. With states stored instead of logits the target cannot be met at this "
    "size; with a real student the product is a small part of the step."
)
TEACHER = (
    "The cached step stands that far above the bare one (see the first rows); a live teacher costs what TRL's does."
)
REASONS: dict[str, str] = {
    "head: ": PASSES,
    "head: jsd": PASSES + " The mixture costs a logarithm a class more.",
    "head: atkd": TWICE,
    "head: atkd, V = 151,936: time: kdbench, log p stored": DISTURBED,  # on 2026-11-28, commit a50c01c
    "step: ": HEAD,
    "step: jsd, cached": HEAD + " The mixture costs a logarithm a class more.",
    "step: kl, teacher": TEACHER,
    **{
        f"head: {name}, V = {vocabulary}: memory": GRADIENTS
        for name in ("kl", "reverse_kl", "jsd", "atkd", "user-written")
        for vocabulary in ("50,272", "151,936")
    },
    "matrix: ": "Workers start once for the whole matrix, and that start is a good part of cells this small.",
}


def reason(key: str) -> str:
    """Return what is known of a row that misses its target."""
    known = [start for start in REASONS if key.startswith(start)]
    return REASONS[max(known, key=len)] if known else "no reason written down yet"
