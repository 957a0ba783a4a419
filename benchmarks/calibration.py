"""`python -m benchmarks.calibration`: does the verdict err as seldom as it says?

Simulated, and judged by the verdict's own functions. Scores are 0 or 1, as the minimal pairs' are: an arm answers an
item right where difficulty + the arm's own luck with the item + the seed's luck + noise is above 0. All arms are alike,
so every difference that is found is an error. A row is one regime: what was measured, the bound that it must keep, and
whether it does. The bound of an error rate is what a right 5 % procedure exceeds once in 1,000 runs of this length.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from scipy import stats as scipy_stats

from benchmarks import report
from kdbench.analysis import looks, maxt, power, ranking, stats
from kdbench.analysis.remarks import BOOTSTRAP_FROM, exact_test
from kdbench.analysis.variance import moderated, moderates

ALPHA = 0.05
SEEDS, ITEMS = (3, 6, 10), (80, 500, 2_000)
PAGE = Path(__file__).parent / "CALIBRATION.md"
HEADING = """\
# Does the verdict err as seldom as it says?

Written by `python -m benchmarks.calibration --write` (`make calibration`), by simulation, judged by the functions that
`kdbench compare` uses. Under the null all arms are alike, so every difference found is an error: of a whole family of
contrasts at most 5 % of the time, for 3, 6 and 10 seeds and 80 to 2,000 items, with and without luck of the seed.
Intervals that promise 95 % should hold the truth in 93 to 97 %; TOST at the margin should err in 5 % at most; predicted
power should be within 5 points of the simulated. Bounds allow for the simulation's own error. `wide`: the interval
holds the truth more often than it promises, which is safe and costs sensitivity; it is so where three seeds meet no
luck of the seed, since with two degrees of freedom that cannot be known."""
SEED_SD = 0.15  # probit units: about 4 points


@dataclass(frozen=True)
class Row:
    """One regime."""

    what: str
    regime: str
    measured: float
    low: float
    high: float

    @property
    def bound(self) -> str:
        """The bound in words."""
        return f"{self.low:.3f} to {self.high:.3f}" if self.low else f"≤ {self.high:.3f}"

    @property
    def status(self) -> str:
        """`ok`, `MISSES`, or `wide` for intervals that cover more than they promise, which is safe."""
        if self.low <= self.measured <= self.high:
            return "ok"
        return "wide" if "coverage" in self.what and self.measured > self.high else "MISSES"


def at_most(repeats: int, rate: float = ALPHA) -> float:
    """Return the largest share of errors that a procedure of this rate shows, but for once in 1,000."""
    return float(scipy_stats.binom.ppf(0.999, repeats, rate)) / repeats


def answers(rng: np.random.Generator, arms: int, seeds: int, items: int, seed_sd: np.ndarray | float) -> np.ndarray:
    """Return 0/1 scores [arms, seeds, items] of arms that are all alike, but for the size of their seeds' luck."""
    difficulty = rng.normal(0.5, 1.0, (1, 1, items))
    own = rng.normal(0, 0.3, (arms, 1, items))
    luck = rng.normal(0, 1, (arms, seeds, 1)) * np.reshape(np.broadcast_to(seed_sd, arms), (arms, 1, 1))
    return (difficulty + own + luck + rng.normal(0, 0.6, (arms, seeds, items)) > 0).astype(np.float64)


def judged(fits: list[stats.Crossed], rng: np.random.Generator) -> np.ndarray:
    """Return the adjusted p of a family of overall rows, by the rules of `kdbench.analysis.inference`."""
    seeds = fits[0].n_seeds
    if moderates(seeds, len(fits)):
        return stats.adjust(np.array([stats.t_p_value(fit) for fit in moderated(fits)]), "bonferroni")
    p = np.array([stats.t_p_value(fit) for fit in fits])
    if exact_test(seeds, len(fits), ALPHA):
        p = np.maximum(p, [stats.sign_flip(fit.seed_means, rng) for fit in fits])
    return stats.adjust(p, "holm")


def interval(fit: stats.Crossed, block: np.ndarray, resampler: stats.Resampler, level: float) -> tuple[float, float]:
    """Return a row's interval as `compare` makes it."""
    if fit.n_seeds < BOOTSTRAP_FROM:
        return stats.t_interval(fit, level)
    return stats.bootstrap_interval(fit, resampler.means([block], [0])[0], level)


def null_regime(seeds: int, items: int, seed_sd: float, repeats: int) -> Iterator[Row]:
    """Yield familywise error, coverage and TOST error of a family of three that shares a baseline."""
    rng, resampler = np.random.default_rng([seeds, items, seed_sd > 0]), stats.Resampler(0, 500)
    errors, covered, bounds, sizes = 0, 0, [], []
    for _ in range(repeats):
        scores = answers(rng, 4, seeds, items, seed_sd)
        blocks = [scores[arm] - scores[0] for arm in (1, 2, 3)]
        fits = [stats.crossed([block], [1.0]) for block in blocks]
        errors += judged(fits, rng).min() < ALPHA
        low, high = interval(fits[0], blocks[0], resampler, 1 - ALPHA)
        covered += low <= 0 <= high
        bounds.append(interval(fits[0], blocks[0], resampler, 1 - 2 * ALPHA))
        sizes.append(fits[0].se)
    name = f"{seeds} seeds, {items:,} items, {'with' if seed_sd else 'no'} seed variance"
    yield Row("familywise error, 3 contrasts", name, errors / repeats, 0.0, at_most(repeats))
    slack = 0.02 + 2 * math.sqrt(0.05 * 0.95 / repeats)
    yield Row("coverage of 95 % intervals", name, covered / repeats, 0.95 - slack, 0.95 + slack)
    margin = 4 * float(np.median(sizes))  # the true difference is put on the margin
    wrong = np.mean([-margin < low + margin and high + margin < margin for low, high in bounds])
    yield Row("TOST error at the margin", name, float(wrong), 0.0, at_most(repeats))


def moderated_regime(seeds: int, contrasts: int, spread: str, repeats: int) -> Row:
    """Return the familywise error where few seeds borrow the family's variance, with unequal seed variances."""
    rng, errors = np.random.default_rng([seeds, contrasts, len(spread)]), 0
    sds = {
        "equal": np.ones(contrasts + 1),
        "spread evenly by 4 x": np.exp(np.linspace(0, math.log(4), contrasts + 1)),
        "one arm 4 x": np.where(np.arange(contrasts + 1) == 1, 4.0, 1.0),
        "baseline 4 x": np.where(np.arange(contrasts + 1) == 0, 4.0, 1.0),
    }[spread]
    for _ in range(repeats):
        scores = answers(rng, contrasts + 1, seeds, 300, SEED_SD * sds)
        fits = [stats.crossed([scores[arm] - scores[0]], [1.0]) for arm in range(1, contrasts + 1)]
        errors += judged(fits, rng).min() < ALPHA
    name = f"{seeds} seeds, {contrasts} contrasts, seed sd {spread}"
    return Row("familywise error, moderated", name, errors / repeats, 0.0, at_most(repeats))


def simultaneous_regime(seeds: int, contrasts: int, repeats: int) -> Iterator[Row]:
    """Yield the error of max-T, the coverage of simultaneous intervals, and how often the best set loses an arm."""
    rng, draw = np.random.default_rng([seeds, contrasts]), np.random.default_rng(1)
    errors = missed = lost = 0
    for _ in range(repeats):
        scores = answers(rng, contrasts + 1, seeds, 200, SEED_SD)
        pairs, members = {}, []
        for arm in range(1, contrasts + 1):
            block = scores[arm] - scores[0]
            fit = stats.crossed([block], [1.0])
            items = (block.mean(axis=0) - block.mean()) / math.sqrt(200 * 199)
            members.append(maxt.Member(fit, stats.t_p_value(fit), tuple(range(seeds)), items, (arm, 0)))
            pairs[str(arm), "0"] = ranking.Known(tuple(range(seeds)), fit, items)
        p, level = maxt.adjusted(members, draw, ALPHA, draws=2_000)
        errors += p.min() < ALPHA
        ends = [stats.t_interval(one.fit, 1 - level) for one in members]
        missed += not all(low <= 0 <= high for low, high in ends)
        lost += ranking.p_best("0", [str(arm) for arm in range(contrasts + 1)], pairs, draw) < ALPHA
    name = f"{seeds} seeds, {contrasts} contrasts, 200 items"
    yield Row("max-T error", name, errors / repeats, 0.0, at_most(repeats))
    yield Row("simultaneous intervals miss", name, missed / repeats, 0.0, at_most(repeats))
    yield Row("best set loses the best", name, lost / repeats, 0.0, at_most(repeats))


def looks_regime(repeats: int) -> Row:
    """Return how often any of three planned looks errs."""
    rng, planned, errors = np.random.default_rng(5), (3, 6, 10), 0
    allowed = looks.levels(planned, ALPHA)
    for _ in range(repeats):
        scores = answers(rng, 2, 10, 300, SEED_SD)
        for seeds, level in zip(planned, allowed, strict=True):
            fit = stats.crossed([(scores[1] - scores[0])[:seeds]], [1.0])
            if stats.t_p_value(fit) < level:
                errors += 1
                break
    return Row("any of the looks errs", "looks at 3, 6, 10 seeds, 300 items", errors / repeats, 0.0, at_most(repeats))


def power_regime(design: power.Design, delta: float, items: int, repeats: int) -> Row:
    """Return simulated power less predicted; within 5 points, and what chance adds."""
    rng, hits = np.random.default_rng([design.seeds, design.family, items]), 0
    sds = [math.sqrt(value) for value in (design.seed, design.item * items, design.residual * items)]
    for _ in range(repeats):
        shape = (design.seeds, items)
        noise = rng.normal(0, 1, (design.family, design.seeds, 1)) - rng.normal(0, 1, (1, design.seeds, 1))
        fits = [
            stats.crossed(
                [
                    delta
                    + sds[0] * own / math.sqrt(2)
                    + sds[1] * rng.normal(0, 1, (1, items))
                    + sds[2] * rng.normal(0, 1, shape)
                ],
                [1.0],
            )
            for own in noise
        ]
        p = judged(fits, rng)[0] if moderates(design.seeds, design.family) else _alone(fits[0], design, rng)
        hits += p < ALPHA
    name = f"{design.seeds} seeds, family of {design.family}, {items} items, power {power.power(design, delta):.2f}"
    slack = 0.05 + 2 * math.sqrt(0.25 / repeats)
    return Row("simulated less predicted power", name, hits / repeats - power.power(design, delta), -slack, slack)


def _alone(fit: stats.Crossed, design: power.Design, rng: np.random.Generator) -> float:
    """Return the p of one contrast at the first step of Holm."""
    p = stats.t_p_value(fit)
    if exact_test(design.seeds, design.family, ALPHA):
        p = max(p, stats.sign_flip(fit.seed_means, rng))
    return design.family * p


def designs() -> Iterator[tuple[power.Design, float, int]]:
    """Yield designs, true differences and items whose power is neither 0 nor 1."""
    for seeds, family, factor in ((3, 1, 4.5), (3, 5, 6.0), (6, 1, 3.0), (6, 3, 4.0), (10, 1, 2.8), (10, 3, 3.4)):
        for seed in (0.0, 4e-4):
            items = 300
            design = power.Design(seeds, seed, 0.03 / items, 0.07 / items, items - 1.0, family, ALPHA)
            yield design, factor * math.sqrt((seed + design.residual) / seeds + design.item), items


def rows(repeats: int) -> Iterator[Row]:
    """Yield every regime; `repeats` is the number of simulated families in each."""
    for seeds in SEEDS:
        for items in ITEMS:
            for seed_sd in (0.0, SEED_SD):
                yield from null_regime(seeds, items, seed_sd, repeats)
    for seeds in (3, 5):
        for contrasts in (4, 12):
            for spread in ("equal", "spread evenly by 4 x", "one arm 4 x", "baseline 4 x"):
                yield moderated_regime(seeds, contrasts, spread, repeats)
    for seeds, contrasts in ((3, 3), (3, 8), (6, 5)):
        yield from simultaneous_regime(seeds, contrasts, repeats)
    yield looks_regime(repeats)
    for design, delta, items in designs():
        yield power_regime(design, delta, items, repeats)


def counted(found: list[Row]) -> str:
    """Say how many regimes keep their bound."""
    counts = {name: sum(row.status == name for row in found) for name in ("ok", "wide", "MISSES")}
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{len(found)} regimes: {told}"


def markdown(found: list[Row], repeats: int) -> str:
    """Return the page: how it was measured, what misses, and every regime."""
    wide = [row for row in found if row.status != "ok"]
    about = report.facts("full", None, 0)
    lines = [HEADING, "", f"{about['date']}, commit {about['commit']}; {repeats:,} simulated families a regime.", ""]
    lines += [f"**{counted(found)}**", ""]
    lines += [f"- {row.status}: {row.what}, {row.regime}: {row.measured:.3f}, bound {row.bound}" for row in wide]
    lines += ["", "| what | regime | measured | bound | |", "|---|---|---|---|---|"]
    lines += [f"| {row.what} | {row.regime} | {row.measured:.3f} | {row.bound} | {row.status} |" for row in found]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--quick", is_flag=True, help="A tenth of the repeats: to see that it runs.")
@click.option("--repeats", type=click.IntRange(min=20), default=1_000, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the rows there.")
@click.option("--write", is_flag=True, help="Write benchmarks/CALIBRATION.md.")
def main(quick: bool, repeats: int, json_path: Path | None, write: bool) -> None:
    """Measure how often the verdict errs under the null, and whether predicted power is true."""
    begin, found = time.monotonic(), []
    repeats = repeats // 10 if quick else repeats
    for row in rows(repeats):
        found.append(row)
        click.echo(f"{row.what:31s} {row.regime:52s} {row.measured:6.3f}  {row.bound:16s} {row.status}")
    click.echo(f"{counted(found)}; {time.monotonic() - begin:.0f} s", err=True)
    if json_path:
        json_path.write_text(json.dumps([asdict(row) | {"status": row.status} for row in found], indent=1) + "\n")
    if write:
        PAGE.write_text(markdown(found, repeats))


if __name__ == "__main__":
    main()
