"""What must hold of what an objective declares: source, fields and bounds, state, exceptions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, get_args

from pydantic import ValidationError

from kdbench import registry
from kdbench.api import Measured, Objective, Source, Step, Wrapper
from kdbench.checks.cases import (
    CHECKS,
    Broken,
    a_case,
    demand,
    demand_finite,
    dense,
    rule,
)
from kdbench.errors import ConfigError, did_you_mean

MISSPELT = {"gte", "lte", "min", "max", "minimum", "maximum"}  # pydantic takes any name, and bounds nothing by it
GRADIENT = "gradient_agrees_with_finite_differences"


def exemptions(objective: Objective) -> dict[str, str]:
    """Return the checks that are not run, each with its reason: what the class declares, and what its base does.

    A base whose split has no true gradient exempts the gradient of whatever is wrapped round it.
    """
    inherited = exemptions(objective.base) if isinstance(objective, Wrapper) else {}
    if f"split_{GRADIENT}" in inherited:
        inherited[GRADIENT] = inherited[f"split_{GRADIENT}"]
    declared = objective.exempt if isinstance(objective.exempt, Mapping) else {}
    return inherited | {name: why for name, why in declared.items() if _honest(name, why)}


def _honest(name: str, reason: object) -> bool:
    known = name in CHECKS and name != exemptions_name_a_check_and_a_reason.__name__
    return known and isinstance(reason, str) and bool(reason.strip())


@rule
def source_and_meaning_are_stated(objective: Objective) -> None:
    """The class names its publication, and says in its docstring what it measures."""
    member = type(objective)
    source = getattr(member, "source", None)
    demand(isinstance(source, Source), f"expected source = Source(title=…, year=…), found {source!r:.60}")
    named = source.title.strip() and 1600 <= source.year <= 2200
    demand(named, f"source should name a title and a year, found {source.title!r}, {source.year!r}")
    text = (vars(member).get("__doc__") or "").strip()
    demand(text, f"class {member.__name__} should say in a docstring what it measures, found none")


@rule
def exemptions_name_a_check_and_a_reason(objective: Objective) -> None:
    """Each entry of `exempt` is a check's name and says why it cannot hold; this check has no exemption."""
    demand(isinstance(objective.exempt, Mapping), f"exempt should map check to reason, found {objective.exempt!r:.60}")
    for name, reason in objective.exempt.items():
        known = [other for other in CHECKS if _honest(other, "known")]
        demand(
            name in known, f"exempt names {name!r}, which is no check that can be exempt.{did_you_mean(name, known)}"
        )
        demand(_honest(name, reason), f"exempt should say why {name!r} cannot hold, found {reason!r}")


@rule
def the_specification_comes_back(objective: Objective) -> None:
    """`kdbench.objective(o.spec()) == o`, through JSON too, as suites and results keep it."""
    spec = objective.spec()
    try:
        text = json.dumps(spec, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Broken(f"spec() should be plain JSON data, found otherwise: {error}") from None
    for plain in (spec, json.loads(text)):
        back = _rebuilt(type(objective), plain)
        hint = "spec() must name every hyper-parameter, and a validator must leave valid values alone"
        demand(back == objective, f"the specification should come back as {objective!r}, found {back!r}; {hint}")


def _rebuilt(member: type[Objective], spec: Mapping[str, Any]) -> Objective:
    if registry.objectives().get(member.name) is member:
        return registry.objective(spec)
    settings = {key: value for key, value in spec.items() if key != "name"}
    if issubclass(member, Wrapper):
        settings["base"] = registry.objective(settings["base"])
    return member(**settings)


def _with(objective: Objective, **changes: Any) -> Objective | None:
    """Return the objective with other hyper-parameters; None when they are refused."""
    settings = {key: getattr(objective, key) for key in type(objective).model_fields} | changes
    try:
        return type(objective)(**settings)
    except (ValidationError, ConfigError):
        return None


def _bounds(objective: Objective) -> list[tuple[str, Any, str, Any]]:
    """Return each declared bound as (hyper-parameter, bound, its sign, the nearest value beyond it)."""
    found = []
    for key, info in type(objective).model_fields.items():
        whole = int in (info.annotation, *get_args(info.annotation))
        for sign, inclusive, towards in (("ge", True, -1), ("gt", False, -1), ("le", True, 1), ("lt", False, 1)):
            for limit in (getattr(one, sign) for one in info.metadata if hasattr(one, sign)):
                beyond = limit + towards if whole else math.nextafter(limit, towards * math.inf)
                found.append((key, limit, sign, beyond if inclusive else limit))
    return found


@rule
def hyper_parameters_out_of_bounds_are_refused(objective: Objective) -> None:
    """The nearest value beyond each declared bound is an error; so are unknown names, NaN and infinity."""
    hint = "a validator or model_config lets it pass"
    for key, limit, sign, beyond in _bounds(objective):
        refused = _with(objective, **{key: beyond}) is None
        demand(refused, f"{key}={beyond!r} should be refused ({sign}={limit!r}), found accepted; {hint}")
    for key, info in type(objective).model_fields.items():
        misspelt = sorted(MISSPELT & set(info.json_schema_extra if isinstance(info.json_schema_extra, dict) else ()))
        demand(not misspelt, f"{key} should be bounded by ge, gt, le or lt, found {misspelt}, which bound nothing")
        for bad in (math.nan, math.inf) if info.annotation is float else ():
            demand(_with(objective, **{key: bad}) is None, f"{key}={bad} should be refused, found accepted; {hint}")
    unknown = _with(objective, no_such_hyper_parameter=1)
    demand(unknown is None, "an unknown hyper-parameter should be refused, found accepted; keep extra='forbid'")


@rule
def hyper_parameters_at_their_bounds_give_finite_numbers(objective: Objective) -> None:
    """The smallest and the largest allowed value of each hyper-parameter make a finite loss and gradient."""
    for key, limit, sign, _ in _bounds(objective):
        edge = _with(objective, **{key: limit}) if sign in ("ge", "le") else None
        if edge is not None:
            demand_finite(edge, a_case(), f"with {key}={limit!r}", "divide by nothing that is 0 there, or use gt")


@rule
def the_state_is_plain_and_finite(objective: Objective) -> None:
    """`at` and `observe` are pure; the state is a mapping of finite numbers, as a checkpoint keeps it."""
    case, state = a_case(), {}
    for index in range(4):
        step = Step(index, 4, state)
        moved, again = objective.at(step), objective.at(step)
        demand(isinstance(moved, Objective), f"at() should return an objective, found {type(moved).__name__}")
        demand(moved == again, f"at() should return the same at the same step, found {moved!r} and {again!r}")
        parts = dense(moved, case)
        demand(parts.total.isfinite(), f"the loss at step {index} of 4 should be finite, found {parts.total.item()}")
        watched = {name: float(value) for name, value in parts.watched.items()}
        measured = Measured(float(parts.total.detach()), watched, lambda index=index: 3.0 - 0.1 * index)
        before = deepcopy(state)
        found, repeated = (dict(objective.observe(step, measured)) for _ in range(2))
        demand(state == before, "observe() should leave step.state alone, found it changed; return a new mapping")
        for name, value in found.items():
            plain = isinstance(name, str) and type(value) in (int, float) and math.isfinite(value)
            what = f"{value!r:.40} ({type(value).__name__})"
            demand(plain, f"state {name!r} should be a finite number, found {what}; use float(value)")
        demand(found == repeated, f"observe() should return the same twice, found {found} and {repeated}")
        state = json.loads(json.dumps(found))
