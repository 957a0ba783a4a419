"""`kdbench profile`: where the time of a cell's step goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdbench.options import (
    echo_json,
    errors_end_well,
    json_option,
    objectives_option,
    registry_in_use,
    results_option,
    set_option,
)


@click.command()
@click.argument("suite", type=click.Path(path_type=Path))
@click.option("--cell", required=True, metavar="KEY", help="The beginning of a cell's key, or objective=…,seed=….")
@click.option("--steps", default=20, show_default=True, type=click.IntRange(1, 10_000), help="Steps to measure.")
@set_option
@results_option
@objectives_option
@json_option
@errors_end_well
def profile(suite, cell, steps, overrides, results_dir, as_json) -> None:
    """Show where the time of a cell's step goes, and what its examination takes.

    Runs some steps of the cell on its own inputs, which must be in the results folder; changes nothing there.

    \b
    kdbench profile suites/quickstart.yaml --cell objective=kl,teacher=opt-96x3,seed=0
    """
    from kdbench.run import orchestrate
    from kdbench.run.profile import profile as measure
    from kdbench.run.store import Store
    from kdbench.suite import loader
    from kdbench.suite.schema import Suite

    registry_in_use()
    chosen = loader.validate(Suite, loader.override(loader.parse(suite), overrides))
    store = Store(results_dir)
    found = measure(orchestrate.plan(chosen, suite.resolve().parent, store), store, cell, steps)
    echo_json(found.as_json()) if as_json else _show(found)


def _show(found: Any) -> None:
    from rich.table import Table

    from kdbench.console import stdout_console

    console = stdout_console()
    console.print(f"{found.title} ({found.key[:8]}), {found.steps} steps on {found.device}", highlight=False)
    table = Table("part of a step", box=None, pad_edge=False)
    for name in ("ms", "share"):
        table.add_column(name, justify="right")
    for name, ms in found.parts_ms.items():
        table.add_row(name, f"{ms:.2f}", f"{ms / found.step_ms:.0%}")
        if name == "loss with heads" and found.teacher_head_ms is not None:
            table.add_row("  the teacher's head, measured apart", f"{found.teacher_head_ms:.2f}", "")
    table.add_row("a whole step", f"{found.step_ms:.2f}", "100%")
    console.print(table)
    console.print(f"once a cell: load {found.load_s:.2f} s, examination {found.examine_s:.2f} s", highlight=False)
