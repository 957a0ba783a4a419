"""Which objectives a sparse teacher cache can serve, and what to set where it cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdbench.api import Objective

SERVED = {"topk": ("topk", "topk_both", "topk+tail"), "sampled": ("sampled",)}
WAY_OUT = "or set teacher.layout: hidden, which serves every objective"


def refusals(signal: str, layout: str, k: int, objectives: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each arm that a stored teacher of this layout cannot serve; none where all are served.

    Args:
        signal, layout, k: of the suite's `teacher:`.
        objectives: the suite's arms, each with `label` and `spec`.
    """
    from kdbench.registry import objective

    if signal != "cache" or layout == "hidden":
        return []
    found = ((entry["label"], _why(objective(entry["spec"]), layout, k)) for entry in objectives)
    return [f"teacher.layout: {layout} cannot serve {label!r}: {why}, {WAY_OUT}" for label, why in found if why]


def reads_cache(chosen: Objective) -> bool:
    """Whether an objective reads the teacher's signal of the corpus, now or later: that is what a cache holds."""
    wanted = chosen.trajectories
    return chosen.reads_teacher and wanted.fixed == "corpus" and wanted.reads_fixed


def _why(chosen: Objective, layout: str, k: int) -> str:
    """Return what an objective needs that the layout lacks, and what to set; empty where it is served."""
    if not reads_cache(chosen):
        return ""
    support, size = chosen.reads_support
    if chosen.trajectories.rollout is not None:
        return "some of its text is written while training, where the teacher is asked live; set teacher.signal: live"
    if support not in SERVED[layout]:
        allowed = " or ".join(SERVED[layout])
        forward = "support" in type(chosen).model_fields
        hint = f"set its support: {allowed}, with support_size: {k}" if forward else "leave it out"
        return f"it reads {_classes(support)}; {hint}"
    if size > k:
        return f"it keeps {size} classes, and {k} are stored; set teacher.k: {size}, or its support_size: {k}"
    if getattr(chosen, "tau", 1.0) != 1.0:
        return "it reads the teacher at a temperature of its own, and what is stored is that of 1; set its tau: 1"
    return ""


def _classes(support: str) -> str:
    return {"full": "all classes of the teacher", "sampled": "draws from the teacher"}.get(
        support, f"the teacher's likeliest classes ({support})"
    )
