"""Training settings that differ between arms: chosen by `tune:`, or written into an entry of `objectives:`.

Objectives have gradients of different scale, so one learning rate for all would decide the winner. `tune:` gives every
objective the same budget over the same space, on seeds and text of its own.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from kdbench.errors import ConfigError, did_you_mean
from kdbench.suite.part import Part

if TYPE_CHECKING:
    from kdbench.suite.schema import Train

FIELDS = ("schedule", "warmup", "weight_decay", "clip", "betas")  # what changes neither a model, a text nor the budget
OWN = ("steps", "lr", *FIELDS, "micro_batch", "checkpoint_steps")  # what one arm may have for itself
MAX_POINTS = 200
DIGITS = 3  # of a drawn learning rate; more would be false precision, and are hard to read
SAMPLER_SEED = 0
Rate = Annotated[float, Field(gt=0, lt=10)]


class Range(Part):
    """Learning rates to draw from, evenly on a logarithmic scale."""

    low: Rate
    high: Rate

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"expected low < high, found low: {self.low:g}, high: {self.high:g}")
        return self


class Tune(Part):
    """How each objective's training settings are chosen before the matrix is run."""

    lr: Annotated[tuple[Rate, ...], Field(min_length=1)] | Range = Field(
        description="peak learning rates to try: a list, or {low, high} with `trials`"
    )
    fields: dict[str, tuple[Any, ...]] = Field(
        {},
        description=f"more settings of `train` with lists of values, every combination is tried: {', '.join(FIELDS)}",
    )
    trials: int | None = Field(
        None, ge=2, le=MAX_POINTS, description="points drawn from a range, the same for all objectives (needs Optuna)"
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(
        (1000,), min_length=1, description="of the trials; none of the suite's own"
    )
    items: int = Field(300, ge=20, le=100_000, description="items a task has, made from the dev split")
    per: Literal["pair", "objective"] = Field(
        "pair", description="one choice for each objective, student and teacher, or one for an objective on all pairs"
    )

    @model_validator(mode="after")
    def _fits(self) -> Tune:
        ranged = isinstance(self.lr, Range)
        if ranged and self.trials is None:
            raise ValueError("trials: expected the number of points to draw from lr's range, found none")
        if not ranged and self.trials is not None:
            raise ValueError("trials: goes with a range of lr, {low: …, high: …}; a list of values is tried whole")
        empty = [name for name, values in self.fields.items() if not values]
        if empty:
            raise ValueError(f"fields: expected lists of values, found none for {', '.join(empty)}")
        for name in ("lr", "seeds"):
            values = getattr(self, name)
            if isinstance(values, tuple) and len(set(values)) != len(values):
                raise ValueError(f"{name}: an entry stands twice in {list(values)}")
        if not ranged and not 2 <= self._combinations() <= MAX_POINTS:
            raise ValueError(
                f"expected 2 to {MAX_POINTS} points to choose among, found {self._combinations()}; "
                "a single value belongs into `train`"
            )
        return self

    def _combinations(self) -> int:
        rates = 1 if isinstance(self.lr, Range) else len(self.lr)
        return rates * math.prod(len(values) for values in self.fields.values())

    @property
    def names(self) -> list[str]:
        """The settings that are chosen, the learning rate first."""
        return ["lr", *self.fields]

    def points(self) -> list[dict[str, Any]]:
        """Return the settings to try, in a fixed order: the same for every objective, today and tomorrow.

        Raises:
            ConfigError: a range is given and Optuna is not installed.
        """
        if isinstance(self.lr, Range):
            return self._drawn(self.lr)
        grid = [self.lr, *self.fields.values()]
        return [dict(zip(self.names, values, strict=True)) for values in itertools.product(*grid)]

    def _drawn(self, span: Range) -> list[dict[str, Any]]:
        """Draw points by Optuna's quasi-random sampler: it looks at no score, so all trials may run at once."""
        try:
            import optuna
        except ModuleNotFoundError:
            raise ConfigError(
                "tune: points of a range are drawn by Optuna, which is not installed; `pip install kdbench[tune]`, "
                "or give tune.lr as a list of values"
            ) from None
        space: dict[str, Any] = {"lr": optuna.distributions.FloatDistribution(span.low, span.high, log=True)}
        for name, values in self.fields.items():
            space[name] = optuna.distributions.CategoricalDistribution(range(len(values)))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(sampler=optuna.samplers.QMCSampler(seed=SAMPLER_SEED, scramble=True))
        drawn = []
        for _ in range(self.trials or 0):
            trial = study.ask(space)
            study.tell(trial, 0.0)
            settings = {name: values[trial.params[name]] for name, values in self.fields.items()}
            drawn.append({"lr": float(f"{trial.params['lr']:.{DIGITS}g}"), **settings})
        ordered = sorted(drawn, key=lambda point: point["lr"])
        return [point for at, point in enumerate(ordered) if point not in ordered[:at]]


def problems(tune: Tune | None, train: Train, seeds: Sequence[int]) -> list[str]:
    """Return a sentence for everything in `tune` that does not fit the rest of the suite.

    Args:
        train: the suite's training, of which `tune` varies some fields.
        seeds: of the suite.
    """
    if tune is None:
        return []
    found = []
    if shared := sorted({*tune.seeds} & {*seeds}):
        found.append(f"tune.seeds: expected seeds of their own, found {shared} among the suite's seeds too")
    for name, values in tune.fields.items():
        if name not in FIELDS:
            found.append(f"tune.fields: {name!r} cannot be tuned.{did_you_mean(name, FIELDS)}")
            continue
        found += [f"tune.fields.{name}: {said}" for value in values if (said := _refusal(train, name, value))]
    return found


def own_problems(objectives: Sequence[Mapping[str, Any]], train: Train, tune: Tune | None) -> list[str]:
    """Return a sentence for everything that is wrong with the `train:` of an entry of `objectives:`."""
    found = []
    for entry in objectives:
        where = f"objectives: {entry['label']!r}: train"
        for name, value in entry.get("train", {}).items():
            if name not in OWN:
                found.append(f"{where}: {name!r} cannot be an arm's own.{did_you_mean(name, OWN)}")
            elif tune and name in tune.names:
                found.append(f"{where}: {name} is chosen by `tune` already; leave it out in one of the two")
            elif said := _refusal(train, name, value):
                found.append(f"{where}.{name}: {said}")
    return found


def _refusal(train: Train, name: str, value: Any) -> str:
    """Return what `train` has against a value, in words; empty where it takes it."""
    try:
        type(train).model_validate(train.model_dump() | {name: value})
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Input should be ")
        return f"expected {said}, found {value!r:.60}"
    return ""
