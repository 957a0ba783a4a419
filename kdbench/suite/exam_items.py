"""How many items a task from elsewhere has, before its data is there: as a suite says, or as is known of it."""

from __future__ import annotations

from kdbench.suite.examination import LmEvalTask, WithLmEval

# Tasks that come with lm-eval: items it scores, and subtasks, each of which a `limit` cuts.
KNOWN = {
    "mmlu": (14_042, 57),
    "mmlu_generative": (14_042, 57),
    "bbh_fewshot": (6_511, 27),
    "drop": (9_536, 1),
    "hellaswag": (10_042, 1),
    "lambada_openai": (5_153, 1),
    "boolq": (3_270, 1),
    "arc_easy": (2_376, 1),
    "arc_challenge": (1_172, 1),
    "piqa": (1_838, 1),
    "gsm8k": (1_319, 1),
    "winogrande": (1_267, 1),
    "sciq": (1_000, 1),
    "openbookqa": (500, 1),
}


def number(entry: LmEvalTask) -> int | None:
    """Return how many items will be scored; None where that is known only once the task's data is loaded.

    A `limit` of a task whose number is not known counts as that many, as if its data were no smaller.
    """
    if entry.items is not None:
        return entry.items
    items, subtasks = KNOWN.get(entry.task, (None, 1)) if entry.path is None else (None, 1)
    if entry.limit is None:
        return items
    return entry.limit if items is None else min(items, entry.limit * subtasks)


def planned(examine: WithLmEval, made: int, task: str) -> tuple[int, bool]:
    """Return the items of one of a suite's tasks to plan by, and whether they are known.

    Args:
        made: items that a task made from text has; it stands in for what is not known.
    """
    for entry in examine.lm_eval:
        if entry.task == task:
            found = number(entry)
            return (made, False) if found is None else (found, True)
    return made, True
