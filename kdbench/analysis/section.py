"""What a report is made of: a section, and what is known when it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kdbench.analysis.words import OVERALL

if TYPE_CHECKING:
    from kdbench.analysis.mirror import MirroredRun
    from kdbench.analysis.results import SuiteResults
    from kdbench.analysis.verdict import Comparison

FIXED = ("floor", "ceiling")
Table = tuple[str, Sequence[str], list[list[str]]]  # title, head, rows


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        name: of the picture's files and the address on the page; letters and `_`.
        text: sentences above the picture.
        draw: writes the picture as SVG and PNG to a path without suffix (`plots._save` does).
        says: what the picture shows, for those who cannot see it.
        verbatim: text to copy, as it is.
        links: text of a table's cell → file beside the report.
    """

    name: str
    title: str
    text: Sequence[str] = ()
    draw: Callable[[Path], None] | None = None
    says: str = ""
    tables: Sequence[Table] = ()
    verbatim: str = ""
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a section may speak of.

    Attributes:
        facts: versions, seeds and so on, as they should be read.
        cells: a row a cell (`kdbench.analysis.answer` makes them): names, key, status, metrics, `train_s`, `done`.
        history: training curves, or None.
        scores: item scores as `kdbench.load_scores` gives them, or None.
        sizes: model → parameters, of those that are known.
        plan: the suite's plan.json, or None where a report is made of a bare comparison.
        results: the open suite, or None.
        runs: cell key → its run in MLflow.
    """

    comparison: Comparison
    facts: Mapping[str, str]
    cells: Sequence[Mapping[str, Any]] = ()
    history: pd.DataFrame | None = None
    scores: pd.DataFrame | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    plan: Mapping[str, Any] | None = None
    results: SuiteResults | None = None
    runs: Mapping[str, MirroredRun] = field(default_factory=dict)

    @property
    def elsewhere(self) -> list[str]:
        """Arms whose students were not trained here."""
        return [] if self.results is None else list(self.results.externals)

    @cached_property
    def uncertainty(self) -> pd.DataFrame:
        """How sure each teacher is, read from the cells' token scores once: `token_view.uncertainty`."""
        from kdbench.analysis import token_view

        return pd.DataFrame() if self.results is None else token_view.uncertainty(self.results)

    @cached_property
    def trained(self) -> pd.DataFrame:
        """Overall means of the trained arms."""
        means = self.comparison.means
        return means[(means.task == OVERALL) & ~means.objective.isin(FIXED)]
