"""What the design allows to say: remarks on seeds and tasks, and the method in words."""

from __future__ import annotations

from collections.abc import Sequence

from kdbench.analysis import stats
from kdbench.analysis.scores import Notes, Paired, Place, place_name

BOOTSTRAP_FROM = 6  # seeds; below, too few to resample, and a sign-flip p cannot go under .05
MODEL = "crossed random effects"
WIDE = "; where three seeds do not vary at all, 95 % intervals cover 99 %"


def exact_test(n_seeds: int, family: int, alpha: float) -> bool:
    """Return whether sign flipping over seeds can reach `alpha` after Holm in a family of this size."""
    return n_seeds >= BOOTSTRAP_FROM and stats.smallest_sign_flip_p(n_seeds) * family <= alpha


def remark(notes: Notes, cells: Sequence[tuple[Place, str, str, Paired]], n_tasks: int, alpha: float) -> None:
    """Add what the number of seeds allows, and where tasks are missing."""
    family = sum(len(paired.seeds) > 1 for *_, paired in cells)
    for place, a, b, paired in cells:
        where, seeds = f"{a} against {b}, {place_name(place)}", len(paired.seeds)
        if len(paired.tasks) < n_tasks:
            notes.add(f"'overall' covers {len(paired.tasks)} of {n_tasks} tasks", where)
        smallest = f"with {seeds} seeds the smallest possible sign-flip p is {stats.smallest_sign_flip_p(seeds):.2g}"
        if seeds == 1:
            notes.add("one seed cannot decide about an objective: the interval holds for this seed, items only", where)
        elif seeds < BOOTSTRAP_FROM:
            notes.add(f"{smallest}, so interval and p are model-based ({MODEL}, normal errors{WIDE})", where)
        elif not exact_test(seeds, family, alpha):
            notes.add(f"{smallest}, too large for a family of {family}, so p is model-based ({MODEL})", where)


def in_words(
    methods: Sequence[str], alpha: float, adjustments: tuple[str, str] = ("Holm", "Holm"), simultaneous: str = ""
) -> str:
    """Return in words which intervals and tests were used.

    Args:
        methods: one entry a row.
        adjustments: of the overall rows' p, and of the pooled rows'.
        simultaneous: how max-T was made.
    """
    used = " | ".join(dict.fromkeys(methods))
    words = (
        f"{used}. Paired by student, teacher, seed, task and item; seeds and items random, tasks fixed. Intervals are "
        f"{100 * (1 - alpha):g} %, not adjusted; p is adjusted by {adjustments[0]} over all overall rows (pooled rows: "
        f"by {adjustments[1]}, a family of their own) and by Benjamini-Hochberg over per-task rows, which are "
        f"exploratory. Equivalent: the {100 * (1 - 2 * alpha):g} % interval lies inside the margin (two one-sided "
        "tests)."
    )
    return f"{words} {simultaneous}".rstrip()
