"""The paper's token analysis: how sure each teacher is, and where on the easy-hard scale a student gains on another.

UNC = 1 − p(target) is what the teacher leaves to all tokens but the one that follows (ATKD, §3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from kdbench.analysis import stats
from kdbench.analysis.results import SuiteResults
from kdbench.analysis.token_pair import by_difficulty as equal_parts
from kdbench.analysis.token_pair import unc_text
from kdbench.analysis.token_plots import draw_by_difficulty, draw_uncertainty
from kdbench.errors import ConfigError, StoreError, did_you_mean
from kdbench.evaluate import token_scores
from kdbench.run.store import DONE
from kdbench.suite.matrix import CEILING, title

__all__ = ["by_difficulty", "draw_by_difficulty", "draw_uncertainty", "lacking", "sentences", "uncertainty"]

NOTED = ("mean", *token_scores.QUANTILES)
HELD_OUT, DISTILLATION = "held-out", "distillation"
SURE = 0.5


def uncertainty(results: SuiteResults) -> pd.DataFrame:
    """Return how sure each teacher is of the token that follows.

    Returns:
        A row a teacher and text, `held-out` (from the ceiling's cell) or `distillation` (from the teacher's cache):
        `teacher`, `text`, `n_tokens` (null where it is not known), `mean`, `q10`, `q25`, `q50`, `q75`, `q90` of UNC.
        A text of which nothing is stored has no row; `lacking` says which cells have no token scores.
    """
    rows: list[dict[str, Any]] = []
    held_out = teacher_log_probs(results)
    for teacher in results.plan["suite"]["teachers"]:
        if teacher in held_out:
            unc = -np.expm1(held_out[teacher].log_prob.to_numpy(float))
            spread = {"mean": float(unc.mean()), **token_scores.quantiles(unc)}
            rows.append({"teacher": teacher, "text": HELD_OUT, "n_tokens": len(unc), **spread})
        if found := _of_cache(results, teacher):
            rows.append({"teacher": teacher, "text": DISTILLATION, "n_tokens": None, **found})
    names = ["teacher", "text", "n_tokens", *NOTED]
    return pd.DataFrame(rows, columns=names).astype({"n_tokens": "Int64"})


def _of_cache(results: SuiteResults, teacher: str) -> dict[str, float]:
    """Return what was noted beside a teacher's cache; nothing where it has none, or one from before that was noted.

    Raises:
        StoreError: it is something else.
    """
    keys = {cell["inputs"].get("cache") for cell in results.plan["cells"] if cell["teacher"] == teacher}
    for key in sorted(key for key in keys if key):
        entry = results.store.entry("teacher_cache", key)
        if found := (entry.done() or {}).get("uncertainty"):
            if not isinstance(found, dict) or not all(isinstance(found.get(name), float) for name in NOTED):
                raise StoreError(f"cannot read {entry.path / DONE}: expected {', '.join(NOTED)} in its `uncertainty`")
            return {name: found[name] for name in NOTED}
    return {}


def teacher_log_probs(results: SuiteResults) -> dict[str, pd.DataFrame]:
    """Return, for each teacher that was examined, its held-out tokens: `row`, `position`, `target`, `log_prob`.

    The ceiling's cell knows them; failing that, any student that was measured against the teacher.
    """
    found: dict[str, pd.DataFrame] = {}
    for cell in sorted(results.cells, key=lambda cell: cell["arm"] != CEILING):
        teacher = cell["teacher"]
        if teacher is None or teacher in found or cell["status"] != "ok":
            continue
        tokens = token_scores.read(cell["path"])
        name = "log_prob" if cell["arm"] == CEILING else "teacher_log_prob"
        if tokens is not None and name in tokens:
            place = list(token_scores.PLACE)
            found[teacher] = tokens[[*place, name]].rename(columns={name: "log_prob"})
    return found


def lacking(results: SuiteResults) -> list[str]:
    """Say which cells have no token scores."""
    bare = [
        cell for cell in results.cells if cell["status"] == "ok" and not (cell["path"] / token_scores.FILE).is_file()
    ]
    if not bare:
        return []
    names = [title(cell["arm"], cell["student"], cell["teacher"], cell["seed"]) for cell in bare]
    shown = "; ".join(names[:3]) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")
    return [
        f"{len(bare)} of {len(results.cells)} cells were examined before kdbench kept token scores and are not in the "
        f"token view: {shown}"
    ]


def by_difficulty(results: SuiteResults, a: str, b: str, bins: int = 10) -> pd.DataFrame:
    """Return where on the easy-hard scale arm `a` gives the token that follows more than arm `b` does.

    Held-out tokens are sorted by the teacher's UNC into bins of equally many. Arms are paired token by token and seed
    by seed; the interval is over seeds (t), for these tokens.

    Returns:
        A row a (student, teacher) and bin: `student`, `teacher`, `objective` (a), `baseline` (b), `bin` (1 the
        easiest; 0 all tokens), `unc_low`, `unc_high`, `n_tokens`, `n_seeds`, `delta` (mean of log p_a − log p_b, nats
        a token), `ci_low`, `ci_high` (NaN with one seed). No row where an arm, its token scores or the teacher's are
        missing; `lacking` says which.

    Raises:
        ConfigError: the suite has no such arm, or no bin.
    """
    known = {cell["arm"] for cell in results.cells}
    for arm in (a, b):
        if arm not in known:
            raise ConfigError(f"token view: suite {results.name!r} has no arm {arm!r}.{did_you_mean(arm, known)}")
    if bins < 1:
        raise ConfigError(f"token view: expected at least one bin, found {bins}")
    suite, rows = results.plan["suite"], []
    reference, level = teacher_log_probs(results), 1 - suite["compare"]["alpha"]
    for student in suite["students"]:
        for teacher in [name for name in suite["teachers"] if name in reference]:
            differences = _differences(results, (a, b), student, teacher, reference[teacher])
            if len(differences):
                log_prob = reference[teacher].log_prob.to_numpy(float)
                place = {"student": student, "teacher": teacher, "objective": a, "baseline": b}
                rows += [place | row for row in _bins(differences, log_prob, bins, level)]
    names = ["student", "teacher", "objective", "baseline", "bin", "unc_low", "unc_high", "n_tokens", "n_seeds"]
    return pd.DataFrame(rows, columns=[*names, "delta", "ci_low", "ci_high"])


def _differences(
    results: SuiteResults, arms: tuple[str, str], student: str, teacher: str, reference: pd.DataFrame
) -> np.ndarray:
    """Return log p_a − log p_b of the tokens of `reference`, `[seeds, N]`: a row a seed that both arms have."""
    found = [_of_arm(results, arm, student, teacher, reference) for arm in arms]
    seeds = set.union(*(set(one) for one in found)) - {None} or {None}
    rows = []
    for seed in sorted(seeds, key=str):
        pair = [one.get(seed, one.get(None)) for one in found]  # a floor without a seed stands beside every seed
        if pair[0] is not None and pair[1] is not None:
            rows.append(pair[0] - pair[1])
    return np.array(rows)


def _of_arm(
    results: SuiteResults, arm: str, student: str, teacher: str, reference: pd.DataFrame
) -> Mapping[int | None, np.ndarray]:
    """Return an arm's log p of each token of `reference`, by seed; an arm without a teacher serves all teachers."""
    place = list(token_scores.PLACE)
    found = {}
    for cell in results.cells:
        here = cell["arm"] == arm and cell["student"] in (student, None) and cell["teacher"] in (teacher, None)
        if here and cell["status"] == "ok":
            tokens = token_scores.read(cell["path"])
            if tokens is not None and tokens[place].equals(reference[place]):
                found[_seed(results, cell)] = tokens.log_prob.to_numpy(float)
    return found


def _seed(results: SuiteResults, cell: Mapping[str, Any]) -> int | None:
    """Return the seed under which a cell is paired: of a student trained elsewhere, the one that it is set against."""
    arm = results.externals.get(cell["arm"])
    return arm.stands_beside(cell["seed"], results.seeds) if arm else cell["seed"]


def _bins(differences: np.ndarray, log_prob: np.ndarray, bins: int, level: float) -> list[dict[str, Any]]:
    unc = -np.expm1(log_prob)
    rows = []
    for number, part in enumerate([np.arange(len(unc)), *equal_parts(log_prob, bins)]):
        if not len(part):
            continue
        fit = stats.crossed([differences[:, part].mean(axis=1, keepdims=True)], [1.0])
        low, high = stats.t_interval(fit, level) if len(differences) > 1 else (math.nan, math.nan)
        row = {"bin": number, "unc_low": float(unc[part].min()), "unc_high": float(unc[part].max())}
        row |= {"n_tokens": len(part), "n_seeds": len(differences)}
        rows.append(row | {"delta": fit.delta, "ci_low": low, "ci_high": high})
    return rows


def sentences(frame: pd.DataFrame) -> list[str]:
    """Say which teachers are sure, from a frame of `uncertainty`."""
    if frame.empty:
        return ["No teacher's certainty is known: there are no token scores and no cache of its distributions."]
    text = DISTILLATION if (frame.text == DISTILLATION).any() else HELD_OUT
    sure = list(frame[(frame.text == text) & (frame.q50 < SURE)].teacher)
    named = ", ".join(sure) or "no teacher"
    return [f"Sure of most tokens of the {text} text (median UNC below {unc_text(SURE)}): {named}."]


def levels(frame: pd.DataFrame) -> tuple[str, list[str], list[list[str]]]:
    """Return title, head and rows of a frame of `uncertainty`: how sure each teacher is of each text."""
    rows = [
        [row.teacher, row.text, unc_text(row.q50), f"{unc_text(row.q25)} to {unc_text(row.q75)}"]
        for row in frame.itertuples()
    ]
    return "UNC = 1 − p(token that follows)", ["teacher", "text", "median", "half of the tokens"], rows


def table(gains: pd.DataFrame) -> tuple[str, list[str], list[list[str]]]:
    """Return title, head and rows of the gains of one pair of arms: all held-out tokens, the easiest, the hardest."""
    first, last = gains.iloc[0], int(gains.bin.max())
    share = "tenth" if last == 10 else f"of {last} bins"
    rows = []
    for (student, teacher), part in gains.groupby(["student", "teacher"], sort=False):
        told = [_nats(part[part.bin == number].iloc[0]) for number in (0, 1, last)]
        rows.append([f"{student} ← {teacher}", *told, str(int(part.n_seeds.iloc[0]))])
    title = f"{first.objective} − {first.baseline}: log p of the token that follows, in nats a token"
    return title, ["pair", "all held-out tokens", f"the easiest {share}", f"the hardest {share}", "seeds"], rows


def _nats(row: Any) -> str:
    numbers = [f"{value:.3f}" for value in (row.delta, row.ci_low, row.ci_high) if math.isfinite(value)]
    delta, *ends = ("0.000" if float(text) == 0 else text.replace("-", "−") for text in numbers)
    return ("+" if float(numbers[0]) > 0 else "") + delta + (f" [{' to '.join(ends)}]" if ends else "")
