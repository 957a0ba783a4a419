"""Looking again after adding seeds: planned looks spend alpha; others are called exploratory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import optimize, special

from kdbench.errors import ConfigError, StoreError
from kdbench.files import read_json, write_json

if TYPE_CHECKING:
    from kdbench.analysis.verdict import Comparison

FILE = "looks.json"
_GRID = 801  # odd, for Simpson's rule


def spent(fraction: float, alpha: float) -> float:
    """Return the two-sided alpha that may be spent up to an information fraction: 2 · (2 − 2Φ(z(alpha/4) / √fraction)).

    The O'Brien-Fleming-type function of Lan & DeMets (1983, Biometrika 70:659) on each side with alpha / 2, as ldbounds
    takes it: next to nothing early, alpha at 1.
    """
    return float(4 * special.ndtr(special.ndtri(alpha / 4) / math.sqrt(fraction)))


def levels(looks: Sequence[int], alpha: float) -> list[float]:
    """Return the two-sided level at which a p is judged at each look, so that all looks together err at most `alpha`.

    Information is seeds over the last look's. The boundary of each look follows from the earlier ones by integrating
    the density of a Brownian motion that has not crossed yet (Armitage, McPherson & Rowe 1969). What looks share beyond
    that, such as the items, makes them err less.
    """
    found: list[float] = []
    before, grid, mass = 0.0, np.zeros(1), np.ones(1)  # the motion starts at 0
    for now in (look / looks[-1] for look in looks):
        wanted = spent(now, alpha) - (spent(before, alpha) if before else 0.0)
        sd = math.sqrt(now - before)

        def excess(bound: float, grid=grid, mass=mass, sd=sd, wanted=wanted) -> float:
            beyond = special.ndtr((grid - bound) / sd) + special.ndtr((-bound - grid) / sd)
            return float(mass @ beyond) - wanted

        bound = float(optimize.brentq(excess, 0.0, 40.0))
        found.append(float(2 * special.ndtr(-bound / math.sqrt(now))))
        ahead = np.linspace(-bound, bound, _GRID)
        density = np.exp(-(((ahead[:, None] - grid) / sd) ** 2) / 2) @ mass / (sd * math.sqrt(2 * math.pi))
        simpson = np.where(np.arange(_GRID) % 2, 4.0, 2.0)
        simpson[[0, -1]] = 1.0
        before, grid, mass = now, ahead, density * simpson * (ahead[1] - ahead[0]) / 3
    return found


def level_now(looks: Sequence[int] | None, n_seeds: int, alpha: float) -> tuple[float, str | None, bool]:
    """Return (level to judge at, what to note, whether to judge at all) for results with `n_seeds` seeds.

    Raises:
        ConfigError: the looks are not growing numbers of seeds, at least two.
    """
    if not looks:
        return alpha, None, True
    if any(not isinstance(look, int) or look < 2 for look in looks) or list(looks) != sorted(set(looks)):
        raise ConfigError(f"looks must be growing numbers of seeds from 2 on, such as [3, 6, 10]; found {list(looks)}")
    planned = ", ".join(map(str, looks))
    position = list(looks).index(n_seeds) if n_seeds in looks else None
    if position is None:
        return alpha, f"{n_seeds} seeds are no planned look ({planned}): exploratory, so no row is judged", False
    level = _floored(levels(looks, alpha)[position])
    note = (
        f"planned look {position + 1} of {len(looks)} (at {planned} seeds): rows are judged at {level:g}, so that all "
        f"looks together err at most {alpha:g} (O'Brien-Fleming-type spending, Lan & DeMets 1983)"
    )
    return level, note, True


def _floored(level: float) -> float:
    """Return a level with two digits, never above it."""
    scale = 10.0 ** (math.floor(math.log10(level)) - 1)
    return float(f"{math.floor(level / scale * (1 + 1e-12)) * scale:.2g}")


def options(question: dict[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    """Return what a suite's `compare:` says of weights and looks, as arguments of `compare`."""
    weights = question.get("weights") or {}
    given = {task: weights[task] for task in tasks} if set(tasks) <= set(weights) else None
    return {"weights": given, "looks": tuple(question.get("looks") or ())}


def remember(folder: Path, metric: str, found: Comparison) -> list[str]:
    """Write down that this many seeds were looked at, and return what to say of earlier looks.

    `looks.json` in the suite's folder holds the numbers of seeds that were compared, by metric. A folder that cannot be
    written to keeps no memory.
    """
    now = int(found.table.n_seeds.max())
    path = folder / FILE
    with suppress(StoreError):
        known = read_json(path) if path.is_file() else {}
        known = known if isinstance(known, dict) else {}
        looked = known.get(metric)
        looked = [seeds for seeds in looked if isinstance(seeds, int)] if isinstance(looked, list) else []
        earlier = [seeds for seeds in looked if seeds < now]
        if now > 1 and now not in looked:
            write_json(path, known | {metric: sorted([*looked, now])})
        planned = set(found.looks)
        unplanned = [seeds for seeds in earlier if seeds not in planned]
        if unplanned:
            before = ", ".join(map(str, unplanned))
            return [f"looked before at {before} seeds without planned looks (compare.looks): exploratory"]
    return []
