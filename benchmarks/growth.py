"""Rows 5: how cost grows. Each row is the slope of log cost against log size: 1 is proportional, 0 is free.

Drawn in `growth.png`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, Bench, Found, slope
from benchmarks.rows import Row

GROUP = "growth"
PICTURE = ROOT / "benchmarks" / "growth.png"


@dataclass(frozen=True)
class Curve:
    """One line of the picture: seconds at each size."""

    against: str
    what: str
    sizes: list[float]
    seconds: list[float]
    missing: str = ""

    def row(self) -> Row:
        """Return its slope; the median stands at the largest size."""
        span = f"{self.sizes[0]:,.0f} to {self.sizes[-1]:,.0f}" if self.sizes else ""
        what = f"{self.what} against {self.against}: log-log slope"
        if self.missing or len(self.sizes) < 2:
            return Row(GROUP, what, "kdbench", "size", None, note=self.missing or "fewer than two sizes")
        grown = slope(self.sizes, self.seconds)
        return Row(GROUP, what, "kdbench", span, grown, None, self.seconds[-1], "s", note="median at the largest size")


def run(bench: Bench, picture: Path | None = None) -> list[Row]:
    """Measure every curve and draw them."""
    curves = [*_heads(bench), *_teachers(bench), _objectives(bench), *_cells(bench)]
    picture = picture or (None if bench.scale == "smoke" else PICTURE)
    if picture is not None:
        draw(curves, picture)
    return [curve.row() for curve in curves]


def _heads(bench: Bench) -> list[Curve]:
    """The loss head, against tokens and against the vocabulary."""
    base = {"student": bench.pick(256, 256, 16), "teacher": bench.pick(768, 768, 24), "device": bench.device}
    tokens, vocabulary = bench.pick(2048, 1024, 64), bench.pick(32_768, 16_384, 256)
    points = {
        "tokens": [{"tokens": tokens // 2**k, "vocabulary": vocabulary} for k in (3, 2, 1, 0)],
        "vocabulary": [{"tokens": tokens, "vocabulary": vocabulary // 2**k} for k in (3, 2, 1, 0)],
    }
    calls = {
        (axis, objective, size[axis]): ("benchmarks.head:once", base | size | who)
        for axis, sizes in points.items()
        for objective in ("kl", "atkd")
        for size in sizes
        for who in [{"contestant": "kdbench, log p stored", "objective": objective}]
    }
    found = bench.interleaved(calls, repeats=bench.pick(3, 3, 1))

    def points_of(axis: str, objective: str) -> dict[Any, Found]:
        return {size: one for (of, which, size), one in found.items() if (of, which) == (axis, objective)}

    return [
        _curve(axis, f"loss head, {objective}", points_of(axis, objective))
        for axis in points
        for objective in ("kl", "atkd")
    ]


def _teachers(bench: Bench) -> list[Curve]:
    """A training step, against the teacher's layers: with the cache it should not care."""
    layers = bench.pick((1, 2, 4, 8, 16), (1, 4, 16), (1, 2))
    width = bench.pick(256, 256, 16)
    size = {"steps": bench.pick(24, 16, 4), "device": bench.device, "smoke": bench.scale == "smoke", "objective": "kl"}
    size |= {"vocabulary": bench.pick(2048, 2048, 64), "length": bench.pick(64, 64, 16), "rows": bench.pick(16, 16, 4)}
    calls = {
        (signal, count): ("benchmarks.step:once", size | {"contestant": signal, "teacher": [width, count]})
        for signal in ("cache", "live")
        for count in layers
    }
    found = bench.interleaved(calls, repeats=bench.pick(3, 3, 1))
    return [
        _curve("teacher's parameters", f"step, {signal}", {count: found[signal, count] for count in layers}, "teacher")
        for signal in ("cache", "live")
    ]


def _objectives(bench: Bench) -> Curve:
    """A teacher's cache and so many students that learn from it: the cache is written once."""
    counts = bench.pick((1, 2, 4, 8), (1, 2, 4), (1, 2))
    settings = {"steps": bench.pick(40, 24, 4), "smoke": bench.scale == "smoke"}
    calls = {count: ("benchmarks.growth:several", settings | {"count": count}) for count in counts}
    return _curve("number of objectives", "cache and students", bench.interleaved(calls, bench.pick(3, 2, 1)))


def several(count: int, steps: int, smoke: bool) -> Found:
    """Write the cache once and train `count` students from it, by different objectives."""
    import tempfile

    import kdbench
    from benchmarks import tiny
    from benchmarks.measure import watched
    from benchmarks.step import stored
    from benchmarks.trl_trainers import Task
    from kdbench.distill.train import Plan, train

    vocabulary, length, rows = (64, 16, 4) if smoke else (2048, 64, 16)
    shape, guide_shape = ((16, 1), tiny.SMOKE["30x"]) if smoke else (tiny.STUDENT, tiny.TEACHERS["30x"])
    guide = tiny.model(guide_shape, vocabulary, length, 2, teacher=True).requires_grad_(False)
    text = tiny.blocks(rows * steps, length, vocabulary)
    names = ("kl", "reverse_kl", "jsd", "atkd", "reverse_kl+atkd", "jeffreys", "tvd", "skew_kl")
    settings: dict[str, Any] = {"seed": 0, "vocabulary": vocabulary, "precision": "float32"}
    with tempfile.TemporaryDirectory() as name, watched() as seen:
        folder = Path(name)
        task = Task(guide, guide, None, text, [], rows, 1e-3, 0.0, folder / "out")
        cached = stored(task, vocabulary)
        for one in names[:count]:
            student = tiny.model(shape, vocabulary, length, 1)
            plan = Plan(steps, rows, 1e-3, checkpoint_steps=steps)
            train(student, kdbench.objective(one), text, cached, plan, folder=folder / one, **settings)
    return seen.facts()


def _cells(bench: Bench) -> list[Curve]:
    """Planning, reading and comparing, against the number of complete cells."""
    counts = bench.pick((100, 1000, 10_000), (100, 1000, 10_000), (40, 60))
    found = {
        count: bench.call("benchmarks.cells:cost", corpus=dict(bench.corpus), cells=count, warm=bench.fresh)
        for count in counts
    }
    missing = next((one["missing"] for one in found.values() if "missing" in one), "")
    if missing:
        return [Curve("cells", "plan, scan, compare", [], [], missing)]
    sizes = [float(one["cells"]) for one in found.values()]
    parts = next(iter(found.values()))["parts"]
    return [Curve("cells", part, sizes, [one["parts"][part] for one in found.values()]) for part in parts]


def _curve(axis: str, what: str, found: dict[Any, Found], size: str = "") -> Curve:
    missing = next((one["missing"] for one in found.values() if "missing" in one), "")
    if missing:
        return Curve(axis, what, [], [], missing)
    points = sorted((float(one[size] if size else key), one["seconds"]) for key, one in found.items())
    return Curve(axis, what, [point[0] for point in points], [point[1] for point in points])


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draw one panel for each thing that grows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    shown = [curve for curve in curves if len(curve.sizes) > 1]
    axes_names = list(dict.fromkeys(curve.against for curve in shown))
    if not shown:
        return
    figure, panels = pyplot.subplots(1, len(axes_names), figsize=(3.6 * len(axes_names), 3.4), squeeze=False)
    for panel, name in zip(panels[0], axes_names, strict=True):
        for curve in (one for one in shown if one.against == name):
            label = f"{curve.what} ({slope(curve.sizes, curve.seconds):.2f})"
            panel.loglog(curve.sizes, curve.seconds, marker="o", markersize=4, label=label)
        panel.set_xlabel(name)
        panel.xaxis.set_minor_locator(NullLocator())
        sizes = sorted({size for curve in shown if curve.against == name for size in curve.sizes})
        panel.set_xticks(
            sizes, [EngFormatter(places=1 if size >= 1e6 else 0, sep="")(size) for size in sizes], fontsize=8
        )
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter("{x:g}")
        panel.grid(True, which="major", color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
        low, high = panel.get_ylim()
        panel.set_ylim(low, high * (high / low) ** 0.6)  # room for the legend
        panel.legend(frameon=False, fontsize=7, loc="upper left")
    panels[0][0].set_ylabel("seconds")
    figure.suptitle("Cost against size, one thread; slopes in brackets: 1 is proportional, 0 is free", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
