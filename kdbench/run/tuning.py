"""Choose each objective's training settings by trials on the dev split, and keep what was chosen and why.

A trial is an ordinary cell with a seed of the tuning's own, examined on items made from the dev split. When all trials
of a place (an arm at a pair, or an arm alone) have ended, the choice is an entry of the store; its key is made of the
trials' keys and the rule, so it is a function of them and a run may end and go on anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from kdbench.errors import StoreError
from kdbench.files import read_json
from kdbench.run import decisions
from kdbench.run.job import Job
from kdbench.run.jobs import Planner
from kdbench.run.locks import Busy
from kdbench.run.store import Entry, Store
from kdbench.suite.matrix import Cell, Place, place
from kdbench.suite.schema import Suite

FILE = "choice.json"
RULE = "fewest diverged trials, then highest mean score, then smallest lr, then first in the list"
WAITS = "after tuning"  # the state of a cell whose settings are not chosen yet


@dataclass(frozen=True)
class Choice:
    """What was chosen at one place.

    Attributes:
        content: `chosen` settings, `edge` (names of those at the end of what was tried), and `points`: each with its
            settings, mean score, number of diverged trials, and the score of every trial. Free of wall-clock times.
        seconds: of each trial, by the cell's key.
    """

    inputs: dict[str, Any]
    content: dict[str, Any]
    seconds: dict[str, float]

    @property
    def key(self) -> str:
        """The content key."""
        return decisions.key(self.inputs)


@dataclass(frozen=True)
class Tuned:
    """Where a suite's tuning stands.

    Attributes:
        trials: the trials of each place, with their jobs.
        choices: of the places whose trials have all ended.
        damaged: entries of trials that do not verify; they have to be made again.
    """

    suite: Suite
    trials: dict[Place, list[tuple[Cell, Job]]] = field(default_factory=dict)
    choices: dict[Place, Choice] = field(default_factory=dict)
    damaged: dict[str, Entry] = field(default_factory=dict)

    def settle(self, cell: Cell) -> tuple[Cell, Sequence[Job]]:
        """Give a cell its chosen settings; where they are not known yet, return the trials that it waits for."""
        where = place(self.suite, cell)
        if cell.spec is None or where not in self.trials:
            return cell, ()
        if where not in self.choices:
            return cell, [job for _, job in self.trials[where]]
        return replace(cell, settings={**cell.settings, **self.choices[where].content["chosen"]}), ()


def look(planner: Planner, store: Store) -> Tuned:
    """Plan the trials of a suite, and choose where they have ended. Writes nothing.

    Raises:
        ConfigError: points are to be drawn and Optuna is not installed.
    """
    suite = planner.suite
    tuned = Tuned(suite)
    if suite.tune is None:
        return tuned
    for cell, job in planner.trials(suite.tune.points()):
        tuned.trials.setdefault(place(suite, cell), []).append((cell, job))
    for where, found in tuned.trials.items():
        choice = _choose(store, _inputs(suite, found), tuned.damaged)
        if choice is not None:
            tuned.choices[where] = choice
    return tuned


def _inputs(suite: Suite, found: Sequence[tuple[Cell, Job]]) -> dict[str, Any]:
    weights = {task: suite.compare.weights.get(task, 1.0) for task in suite.compare.tasks}
    listed = [{"cell": job.key, "settings": _point(suite, cell)} for cell, job in found]
    return {"rule": {"score": "acc", "tasks": weights, "order": RULE}, "trials": listed}


def _point(suite: Suite, cell: Cell) -> dict[str, Any]:
    """Return the settings of a trial that are to be chosen; an arm's own are not among them."""
    return {name: cell.settings[name] for name in (suite.tune.names if suite.tune else ())}


def _choose(store: Store, inputs: dict[str, Any], damaged: dict[str, Entry]) -> Choice | None:
    """Return the stored choice, or make it from trials that have all ended; else None."""
    if stored := decisions.stored(store, inputs, FILE):
        content, timing = stored
        return Choice(inputs, content, timing["trials_s"])
    entries = {trial["cell"]: store.entry("cells", trial["cell"]) for trial in inputs["trials"]}
    done = {key: entry.done() for key, entry in entries.items()}
    if any(one is None or one["status"] not in ("ok", "diverged") for one in done.values()):
        return None
    scores = {}
    for key, entry in entries.items():
        try:
            scores[key] = _score(entry, inputs["rule"]["tasks"])
        except StoreError:
            damaged[f"cells/{key}"] = entry
    if len(scores) < len(entries):
        return None
    seconds = {key: one["timing"]["wall_s"] for key, one in done.items() if one}
    return Choice(inputs, _content(inputs["trials"], scores), seconds)


def _score(entry: Entry, weights: Mapping[str, float]) -> float | None:
    """Return a trial's accuracy, the weighted mean over tasks; None where it diverged."""
    if entry.verified()["status"] != "ok":
        return None
    found = read_json(entry.path / "results.json")
    return sum(found[f"{task}/acc"] * weight for task, weight in weights.items()) / sum(weights.values())


def _content(trials: Sequence[Mapping[str, Any]], scores: Mapping[str, float | None]) -> dict[str, Any]:
    settings: list[dict[str, Any]] = []
    for trial in trials:
        if trial["settings"] not in settings:
            settings.append(trial["settings"])
    points = []
    for one in settings:
        own = [trial["cell"] for trial in trials if trial["settings"] == one]
        ended = [score for key in own if (score := scores[key]) is not None]
        mean = round(sum(ended) / len(ended), 12) if ended else None  # equal scores must tie, whatever the order
        listed = [{"cell": key, "score": scores[key]} for key in own]
        points.append({"settings": one, "score": mean, "diverged": len(own) - len(ended), "trials": listed})
    best = min(points, key=lambda point: (point["diverged"], -(point["score"] or 0.0), point["settings"]["lr"]))
    return {"chosen": best["settings"], "edge": _edge(best["settings"], settings), "points": points}


def _edge(chosen: Mapping[str, Any], tried: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of chosen numbers beyond which nothing was tried; a 0 has nothing beyond it."""
    found = []
    for name, value in chosen.items():
        values = {one[name] for one in tried if isinstance(one[name], int | float)}
        if len(values) > 1 and value in (min(values), max(values)) and value != 0:
            found.append(name)
    return found


def keep(tuned: Tuned, store: Store) -> None:
    """Write the choices that are not in the store yet, and set damaged trials aside."""
    for entry in tuned.damaged.values():
        with suppress(Busy), entry.locked():  # who holds it is making it again
            if entry.done() and not entry.is_whole():
                entry.set_aside()
    for choice in tuned.choices.values():
        decisions.keep(store, choice.inputs, FILE, choice.content, {"trials_s": choice.seconds})


def facts(tuned: Tuned) -> dict[str, Any]:
    """Return what plan.json says of the tuning: the budget, every trial, and for each place what was chosen and why."""
    tune = tuned.suite.tune
    if tune is None:
        return {}
    trials = [_trial(tuned.suite, cell, job) for found in tuned.trials.values() for cell, job in found]
    seconds = [choice.seconds for choice in tuned.choices.values()]
    return {
        "per": tune.per,
        "names": tune.names,
        "points": [_point(tuned.suite, cell) for cell in _first(tuned) if cell.seed == tune.seeds[0]],
        "drawn": tune.trials is not None,
        "seeds": list(tune.seeds),
        "items": tune.items,
        "tasks": list(tuned.suite.compare.tasks),
        "seconds": round(sum(sum(one.values()) for one in seconds), 1),
        "choices": [_place_facts(where, tuned) for where in tuned.trials],
        "trials": trials,
    }


def _first(tuned: Tuned) -> list[Cell]:
    """Return the trials of one arm at one pair; all others have the same points."""
    found = [cell for cell, _ in next(iter(tuned.trials.values()))]
    return [cell for cell in found if (cell.student, cell.teacher) == (found[0].student, found[0].teacher)]


def _trial(suite: Suite, cell: Cell, job: Job) -> dict[str, Any]:
    names = {"arm": cell.arm, "student": cell.student, "teacher": cell.teacher, "seed": cell.seed}
    return names | {"key": job.key, "settings": _point(suite, cell), "inputs": job.inputs}


def _place_facts(where: Place, tuned: Tuned) -> dict[str, Any]:
    named = dict(zip(("objective", "student", "teacher"), where, strict=True))
    choice = tuned.choices.get(where)
    if choice is None:
        return named | {"key": None, "chosen": None, "edge": [], "points": [], "seconds": None}
    points = []
    for point in choice.content["points"]:
        spent = round(sum(choice.seconds[trial["cell"]] for trial in point["trials"]), 3)
        listed = [trial | {"seconds": choice.seconds[trial["cell"]]} for trial in point["trials"]]
        points.append(point | {"trials": listed, "seconds": spent})
    whole = round(sum(choice.seconds.values()), 1)
    known = {name: choice.content[name] for name in ("chosen", "edge")}
    return named | {"key": choice.key} | known | {"points": points, "seconds": whole}
