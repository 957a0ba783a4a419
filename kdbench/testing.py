"""A public conformance suite for objectives: does a plugin keep the contract of `kdbench.api`?

In a test file of your own:

    from kdbench.testing import parametrize_with_checks

    @parametrize_with_checks(["kl", "mine"])
    def test_objective(objective, check):
        check(objective)

or `for result in check("mine"): print(result)`. A rule that cannot hold is declared by the class, with the reason:
`exempt = {"never_negative": "a policy gradient's surrogate has no sign"}`. Here stand the runner and the checks of
what an objective declares, how it behaves, and what it makes of edge cases; `kdbench.checks` holds the mathematics.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from kdbench import plugins, registry
from kdbench.api import Objective, Wrapper
from kdbench.checks import CHECKS, Broken, exemptions
from kdbench.errors import ConfigError, KdbenchError

__all__ = ["CHECKS", "Broken", "Result", "check", "exemptions", "load", "parametrize_with_checks"]

Spec = str | Mapping[str, Any] | Objective | type[Objective]


@dataclass(frozen=True)
class Result:
    """What became of one check; `message` says what is wrong, or why it was not run."""

    check: str
    status: Literal["passed", "failed", "exempt"]
    message: str = ""


def check(objective_or_spec: Spec) -> list[Result]:
    """Run every check on an objective; a plugin that raises fails the check, with the file and line.

    Raises:
        ConfigError: when the specification makes no objective.
    """
    objective = _made(objective_or_spec)
    exempt = exemptions(objective)
    return [Result(name, "exempt", exempt[name]) if name in exempt else _run(name, objective) for name in CHECKS]


def _run(name: str, objective: Objective) -> Result:
    try:
        CHECKS[name](objective)
    except (Broken, KdbenchError) as error:
        return Result(name, "failed", str(error))
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return Result(name, "failed", f"{message} ({_place(error, objective)})")
    return Result(name, "passed")


def _place(error: Exception, objective: Objective) -> str:
    """Return file:line of the deepest frame that is the plugin's own; else of the deepest."""
    frames, sources, one = traceback.extract_tb(error.__traceback__), set(), objective
    while one is not None:
        sources.add(getattr(sys.modules.get(type(one).__module__), "__file__", None))
        one = getattr(one, "base", None)
    frame = ([frame for frame in frames if frame.filename in sources] or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def parametrize_with_checks(specs: Iterable[Spec]) -> Any:
    """Return a pytest decorator that runs a test once for each objective and check, as `(objective, check)`.

    Exempt checks are skipped, with the reason.
    """
    import pytest

    rows = []
    for objective in map(_made, specs):
        exempt = exemptions(objective)
        for name, function in CHECKS.items():
            marks = [pytest.mark.skip(reason=f"exempt: {exempt[name]}")] if name in exempt else []
            rows.append(pytest.param(objective, function, id=f"{objective.label}-{name}", marks=marks))
    return pytest.mark.parametrize(("objective", "check"), rows)


def load(name_or_file: str | Path) -> list[Objective]:
    """Return the objective that a name stands for (`reverse_kl+atkd`), or those that a plugin file (`*.py`) defines.

    Raises:
        ConfigError: no such name or file, a file without an objective, or one whose settings lack a default.
    """
    if Path(name_or_file).suffix != ".py":
        return [registry.objective(str(name_or_file))]
    return [_made(member) for member in plugins.load_file(Path(name_or_file))]


def _made(spec: Spec) -> Objective:
    if not inspect.isclass(spec):
        return registry.objective(spec)
    settings = {"base": registry.objective(spec.default_base)} if issubclass(spec, Wrapper) else {}
    try:
        return spec(**settings)
    except ValidationError as error:
        missing = ", ".join(".".join(map(str, entry["loc"])) for entry in error.errors())
        raise ConfigError(
            f"objective {spec.name!r}: expected a valid default for every hyper-parameter, found none for {missing}"
        ) from None
