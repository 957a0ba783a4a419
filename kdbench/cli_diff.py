"""`kdbench diff`: two checkpoints side by side, down to items and tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from kdbench.options import echo_json, errors_end_well, json_option, results_option

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kdbench.analysis.difference import Difference
    from kdbench.analysis.token_pair import TokenPair

    Captioned = tuple[Table, list[str]]


@click.command()
@click.argument("first", metavar="CELL")
@click.argument("second", metavar="CELL")
@click.option("--task", help="Show this task alone.")
@click.option("--items", default=3, show_default=True, type=click.IntRange(0, 1000), help="Items to show, each way.")
@results_option
@json_option
@errors_end_well
def diff(first, second, task, items, results_dir, as_json) -> None:
    """Compare two trained students, down to the items and tokens on which they part.

    A CELL is the beginning of its key, objective/student/teacher/seed (without what it has not), or a choice such as
    objective=kl,seed=0.

    \b
    kdbench diff atkd/opt-64x2/opt-128x4/0 kl/opt-64x2/opt-128x4/0
    kdbench diff objective=sft,seed=0 floor/opt-64x2 --task swap --items 10
    """
    from kdbench.analysis.difference import difference
    from kdbench.run.store import Store

    found = difference(Store(results_dir), first, second, task=task, items=items)
    echo_json(found.as_json()) if as_json else _show(found)


def _show(found: Difference) -> None:
    from kdbench.console import stdout_console

    console = stdout_console(highlight=False, markup=False, soft_wrap=False)
    for name, cell in zip(found.names, found.cells, strict=True):
        suite = f"suite {cell.suite}" if cell.suite else "of no suite any more"
        console.print(f"{name}: {cell.title} ({cell.key[:8]}, {suite})")
    console.print()
    for table, captions in (_inputs(found), _scores(found), _items(found), *_tokens(found)):
        if table.row_count:
            console.print(table)
            for caption in captions:
                console.print(caption, style="italic")
            console.print()
    _talk(console, found)


def _talk(console: Console, found: Difference) -> None:
    """Print what stands in words: generated text, what is left out, the answer."""
    for name, values in found.written.items():
        told = (f"{who} {_number(value, 3)}" for who, value in zip(found.names, values, strict=True))
        console.print(f"written in the last step of training, {name}: {', '.join(told)}")
    for note in found.notes:
        console.print(f"note: {note}")
    console.print(found.sentence)


def _table(title: str, left: Sequence[str], right: Sequence[str] = ()) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    for name in left:
        table.add_column(Text(name), overflow="fold")
    for name in right:
        table.add_column(Text(name), justify="right", no_wrap=True)
    return table


def _row(table: Table, *cells: str) -> None:
    from rich.text import Text

    table.add_row(*(Text(cell) for cell in cells))


def _inputs(found: Difference) -> Captioned:
    table = _table("Inputs that differ", ("input", *found.names))
    for row in found.inputs:
        _row(table, row["input"], row["a"], row["b"])
    return table, []


def _scores(found: Difference) -> Captioned:
    from kdbench.analysis.words import p_text

    a, b = found.names
    table = _table("Scores by task, in points", ("task",), (a, b, "difference", "wins", "losses", "items", "p"))
    for row in found.scores.to_dict("records"):
        points = row["metric"] == "acc"
        scale, digits = (100, 1) if points else (1, 3)
        numbers = [_number(scale * row[name], digits) for name in ("a", "b")]
        numbers.append(_number(scale * (row["a"] - row["b"]), digits, sign=True))
        counts = [str(row[name]) if row["n_items"] else "–" for name in ("a_only", "b_only", "n_items")]
        task = row["task"] if points else f"{row['task']} (nats ↓)"
        _row(table, task, *numbers, *counts, p_text(row["p_adjusted"]))
    return table, [
        f"wins: items on which {a} does better than {b}; losses: the other way round",
        "p: exact McNemar (graded: random signs), Holm over tasks; about these two checkpoints",
    ]


def _items(found: Difference) -> Captioned:
    table = _table("Items that one gets and the other misses", ("got by", "task", "item", "text"))
    for item in found.items:
        name = found.names[0 if item["by"] == "a" else 1]
        if item["wrong"]:
            text = f"right: {item['right']}\nwrong: {item['wrong']}"
        else:
            text = f"{item['context']} […] {item['right']}"
        _row(table, name, item["task"], str(item["item"]), text)
    return table, []


def _tokens(found: Difference) -> list[Captioned]:
    if found.tokens is None:
        return []
    ceiling = any(cell.named["arm"] == "ceiling" for cell in found.cells)  # it is the teacher: no column beside it
    own = ("teacher",) if found.tokens.teacher and not ceiling else ()
    return [_measures(found, found.tokens, own), _apart(found, own)]


def _measures(found: Difference, told: TokenPair, own: tuple[str, ...]) -> Captioned:
    from kdbench.analysis.token_pair import unc_text

    table = _table("Held-out tokens", ("measure",), (*found.names, *own, "difference", "interval"))
    for row in told.table.to_dict("records"):
        values = [_number(row[side], 3) for side in ("a", "b", *own)]
        interval = f"{_number(row['low'], 3)} to {_number(row['high'], 3)}" if math.isfinite(row["low"]) else "–"
        _row(table, row["measure"], *values, _number(row["delta"], 3, sign=True), interval)
    captions = [f"{told.n_tokens:,} held-out tokens; 95 % intervals over blocks of text, for these two checkpoints"]
    if told.teacher:
        ranges = (f"{one['third']} {unc_text(one['low'])} to {unc_text(one['high'])}" for one in told.thirds)
        sure, lost = (f"{told.shares[name]:.0%}" for name in ("sure", "lost"))
        captions += [
            f"thirds by UNC = 1 − p(token that follows): {', '.join(ranges)}",
            f"UNC of {told.teacher} is below .5 on {sure} of tokens, .9 or more on {lost}",
        ]
    return table, captions


def _apart(found: Difference, own: tuple[str, ...]) -> Captioned:
    table = _table("Tokens on which they differ most", ("in its text",), (*found.names, *own, "alike"))
    for row in found.apart:
        shown = [_chance(math.exp(row[side])) for side in ("a", "b")]
        shown += [_chance(1 - row["unc"])] if own else []
        _row(table, f"{row['before']}‹{row['token']}›{row['after']}".strip(), *shown, str(row["alike"]))
    return table, ["probability of the token in ‹ ›; alike: how many of the 100 that differ most are that token"]


def _number(value: Any, digits: int, *, sign: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def _chance(value: float) -> str:
    return f"{value:.3f}" if value >= 0.0005 else f"{value:.0e}".replace("e-0", "e-")
