"""What plan.json knows of a suite's tuning, as sentences and as rows for a picture. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdbench.suite.cost import duration
from kdbench.suite.matrix import point_title

SHOWN = 4  # names in a sentence, before "and 3 more"


def in_words(plan: Mapping[str, Any]) -> str:
    """Say how settings were chosen, with budget, cost and what should make a reader careful.

    Args:
        plan: a suite's plan.json.

    Returns:
        Sentences; empty where the suite has no `tune:`.
    """
    told = plan.get("tuning")
    if not told:
        return ""
    settled = [choice for choice in told["choices"] if choice["chosen"]]
    sentences = [_budget(told)]
    if settled:
        sentences.append(f"Chosen: {_chosen(settled)}")
    if len(settled) < len(told["choices"]):
        open_ = len(told["choices"]) - len(settled)
        sentences.append(
            f"{open_} of {len(told['choices'])} choices are still open, as their trials have not all ended"
        )
    if edge := _edge(settled):
        sentences.append(edge)
    if lost := sum(point["diverged"] for choice in settled for point in choice["points"]):
        sentences.append(f"{lost} {'trial' if lost == 1 else 'trials'} diverged and lost")
    return ". ".join(sentences) + "."


def _budget(told: Mapping[str, Any]) -> str:
    points, seeds = told["points"], told["seeds"]
    what = "learning rate" if told["names"] == ["lr"] else f"settings ({', '.join(told['names'])})"
    rates = [f"{rate:g}" for rate in dict.fromkeys(point["lr"] for point in points)]
    listed = ", ".join(rates) if len(rates) <= 8 else f"{rates[0]} to {rates[-1]}"
    space = f"the same {len(points)} {'drawn ' if told['drawn'] else ''}points (lr {listed})"
    scope = "for each student and teacher" if told["per"] == "pair" else "once for all students and teachers"
    own = f"{len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'} of {'its' if len(seeds) == 1 else 'their'} own"
    return (
        f"Each objective's {what} was chosen {scope} among {space}, on {own}, by accuracy on at most "
        f"{told['items']:,} items a task ({', '.join(told['tasks'])}) of the dev split, which no reported number "
        f"rests on; {len(told['trials'])} trials, {duration(told['seconds'])} of work"
    )


def _chosen(settled: Sequence[Mapping[str, Any]]) -> str:
    """Group what was chosen by its value: `lr 0.003 (kl, sft); lr 0.006 (atkd)`."""
    groups: dict[str, list[str]] = {}
    for choice in sorted(settled, key=lambda one: one["chosen"]["lr"]):
        groups.setdefault(point_title(choice["chosen"]), []).append(_name(choice, settled))
    return "; ".join(f"{title} ({_some(names)})" for title, names in groups.items())


def _name(choice: Mapping[str, Any], among: Iterable[Mapping[str, Any]]) -> str:
    """Name a place: the arm, and as much of the pair as tells it from its like."""
    alike = [one for one in among if one["objective"] == choice["objective"]]
    pair = [choice[role] for role in ("student", "teacher") if len({one[role] for one in alike}) > 1]
    return f"{choice['objective']} {' ← '.join(pair)}" if pair else choice["objective"]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def _edge(settled: Sequence[Mapping[str, Any]]) -> str:
    """Warn of choices beyond which nothing was tried."""
    names = [_name(choice, settled) for choice in settled if choice["edge"]]
    if not names:
        return ""
    where = "lies" if len(names) == 1 else "lie"
    count = f"{len(names)} of {len(settled)} choices {where} at the edge of what was tried ({_some(names)})"
    return f"{count}: a value beyond it may be better still"


def sensitivity(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return how each objective's score depends on the settings: a row for each arm, pair and point.

    Args:
        plan: a suite's plan.json.

    Returns:
        Rows with `objective, student, teacher, lr, settings, score, seconds, diverged, chosen`: `score` the mean
        accuracy on dev items over the seeds of the tuning (None where all diverged), `settings` the whole point,
        `seconds` of its trials together, `diverged` their number, `chosen` whether this point was.
    """
    told = plan.get("tuning") or {}
    trials = {trial["key"]: trial for trial in told.get("trials", [])}
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for choice in told.get("choices", []):
        for number, point in enumerate(choice["points"]):
            for trial in point["trials"]:
                names = {name: trials[trial["cell"]][name] for name in ("arm", "student", "teacher")}
                row = rows.setdefault((*names.values(), number), _row(names, point, choice["chosen"]))
                row["scores"] += [trial["score"]] if trial["score"] is not None else []
                row["diverged"] += trial["score"] is None
                row["seconds"] = round(row["seconds"] + trial["seconds"], 3)
    for row in rows.values():
        scores = row.pop("scores")
        row["score"] = sum(scores) / len(scores) if scores else None
    return list(rows.values())


def _row(names: Mapping[str, Any], point: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    settings = point["settings"]
    named = {"objective": names["arm"], "student": names["student"], "teacher": names["teacher"]}
    known = {"lr": settings["lr"], "settings": settings, "score": None, "chosen": settings == chosen}
    return named | known | {"seconds": 0.0, "diverged": 0, "scores": []}
