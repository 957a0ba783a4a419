"""Sections that hold a suite against what papers say: their claims, model sizes, how sure teachers are, costs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from kdbench.analysis import (
    claims,
    costs,
    equal_time,
    plots,
    plots_arms,
    plots_tuning,
    scaling,
    token_plots,
    token_view,
    words,
)
from kdbench.analysis.results import METRICS, item_scores
from kdbench.analysis.section import Context, Section
from kdbench.analysis.words import number
from kdbench.run.tuning_words import sensitivity
from kdbench.suite.claims import Claim

if TYPE_CHECKING:
    from kdbench.analysis.verdict import Comparison

NO_LOOK = "So many seeds are no planned look of the suite, so these judgements are exploratory."
TOKEN_TABLES = 4  # contrasts of which the token view is shown
HEAD = ("verdict", "claim", "found", "interval", "source")


def _options(known: Context) -> dict[str, Any]:
    """The question that the suite asks, as `scaling` and `claims` take it."""
    assert known.plan is not None
    asked = known.plan["suite"]["compare"]
    return {"tasks": asked["tasks"], "weights": asked.get("weights") or None, "alpha": known.comparison.alpha}


def _medians(known: Context) -> Mapping[str, float]:
    """Each teacher's median UNC on the distilled text; on held-out text where no cache has noted it."""
    frame = known.uncertainty
    if frame.empty:
        return {}
    held_out = frame[frame.text == token_view.HELD_OUT].set_index("teacher").q50.to_dict()
    return held_out | frame[frame.text == token_view.DISTILLATION].set_index("teacher").q50.to_dict()


def claimed(known: Context) -> Section | None:
    """Published claims, judged."""
    entries = known.plan["suite"].get("claims") if known.plan is not None else None
    if not entries or known.scores is None:
        return None
    wanted = [Claim.model_validate(entry) for entry in entries]
    scores = {"acc": known.scores}
    if known.results is not None:
        others = (METRICS.keys() - scores.keys()) & {claim.metric for claim in wanted}
        scores |= {name: item_scores(known.results, name) for name in others}
    margin = known.comparison.margin
    found = claims.judge(
        wanted, scores, margin=margin, sizes=known.sizes, uncertainty=_medians(known), **_options(known)
    )
    rows = []
    for one in found:
        low, high = (number(known.comparison, end) for end in one.interval)
        value = number(known.comparison, one.estimate, sign=True)
        rows.append([one.verdict, one.claim.sentence, value, f"{low} to {high}", one.claim.source])
    deviations = dict.fromkeys(text for one in found for text in one.deviations)
    text = [NO_LOOK] * (not _is_a_look(known.comparison)) + [one.sentence for one in found]
    text += [f"This suite is not the paper's experiment: {'; '.join(deviations)}."] if deviations else []
    return Section("claims", "Published claims", text, tables=[("", HEAD, rows)])


def _is_a_look(comparison: Comparison) -> bool:
    """Whether the suite planned to look at so many seeds, or planned no looks at all."""
    return not comparison.looks or int(comparison.table.n_seeds.max()) in comparison.looks


def sizes(known: Context) -> Section | None:
    """Do larger teachers hurt, and does an objective help more or less with size."""
    if known.plan is None or known.scores is None or len(known.sizes) < 2:
        return None
    options = _options(known)
    trend = scaling.teacher_trend(known.scores, known.sizes, **options)
    gains = scaling.interactions(known.scores, known.sizes, known.comparison.contrasts, **options)
    if trend.empty and gains.empty:
        return None
    return Section(
        "sizes", "Does the size of the teacher matter", [*scaling.sentences(trend), *scaling.sentences(gains)]
    )


def sure(known: Context) -> Section | None:
    """How sure the teachers are, and whether the gain follows it."""
    if known.results is None or known.plan is None or known.scores is None:
        return None
    frame = known.uncertainty
    if frame.empty:
        return None
    text = token_view.sentences(frame)
    if len(medians := _medians(known)) > 1:
        gains = scaling.along_uncertainty(known.scores, medians, known.comparison.contrasts, **_options(known))
        text += scaling.sentences(gains)
    says = "Distribution of each teacher's UNC"
    draw = partial(token_plots.draw_uncertainty, frame)
    return Section("sure", "How sure the teachers are", text, draw, says, [token_view.levels(frame)])


def tokens(known: Context) -> Section | None:
    """Where on the easy-hard scale contrasts gain or lose; the first one is drawn."""
    if known.results is None:
        return None
    contrasts = known.comparison.contrasts
    found = [token_view.by_difficulty(known.results, a, b) for a, b in contrasts[:TOKEN_TABLES]]
    frames = [frame for frame in found if len(frame)]
    if not frames:
        return None
    a, b = (frames[0].iloc[0][side] for side in ("objective", "baseline"))
    text = [
        f"The picture is of {a} against {b}. Held-out tokens are sorted by the teacher's UNC = 1 − p(token that "
        "follows) into ten parts of equally many; intervals are over seeds, for these tokens."
    ]
    text += [f"The first {TOKEN_TABLES} of {len(contrasts)} contrasts are shown."] * (len(contrasts) > TOKEN_TABLES)
    text += token_view.lacking(known.results)
    draw = partial(token_plots.draw_by_difficulty, frames[0])
    says = f"Gain of {a} on {b} in log p by the teacher's UNC"
    tables = [token_view.table(frame) for frame in frames]
    return Section("tokens", "Token by token, from easy to hard", text, draw, says, tables)


def time(known: Context) -> Section | None:
    """The same contrasts at equal wall time."""
    timed = known.comparison.at_equal_time
    if timed is None or known.plan is None:
        return None
    text = [equal_time.ABOUT, *equal_time.sentences(known.plan), *words.summary(timed)]
    draw = partial(plots.forest, timed)
    tables = words.at_equal_time(known.comparison)
    says = "Differences with intervals at equal wall time"
    return Section("equal_time", "At equal wall time", text, draw, says, tables)


def tuning(known: Context) -> Section | None:
    """How much each objective's score depends on its learning rate, and what was chosen."""
    frame = pd.DataFrame(sensitivity(known.plan) if known.plan is not None else [])
    if frame.empty or frame.score.isna().all():
        return None
    text = [
        known.facts.get("tuning", ""),
        "These are scores on the dev split, by which settings were chosen; no reported number rests on them. A line "
        "that still rises at its end would be better served by another range.",
    ]
    draw = partial(plots_tuning.sensitivity, frame)
    return Section("tuning", "How the learning rates were chosen", text, draw, "Dev accuracy against learning rate")


def cost(known: Context) -> Section | None:
    """Quality against training time."""
    timed = equal_time.arms(known.plan or {})
    frame = costs.costs([cell for cell in known.cells if cell["objective"] not in timed], known.comparison.means)
    if frame.empty or frame.objective.nunique() < 2 or frame.seconds.isna().all():
        return None
    points = known.comparison.points
    draw = lambda path: plots_arms.costs(frame, path, points=points)  # noqa: E731
    text = ["The line joins the arms that no other arm of the pair beats in both score and seconds."]
    return Section(
        "cost", "Quality against cost", [*text, *costs.sentences(frame)], draw, "Score against training seconds"
    )
