"""The commands round the whole results folder: `kdbench gc`, and what `kdbench doctor --store` shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdbench.errors import StoreError
from kdbench.options import echo_json, errors_end_well, json_option, results_option


def show_verified(results_dir: Path, as_json: bool) -> None:
    """Verify every entry and every plan, and show what is damaged.

    Raises:
        StoreError: something is, or was written by a later kdbench.
    """
    from kdbench.run import upkeep
    from kdbench.run.store import LATER, Store

    found = upkeep.verify(Store(results_dir))
    damaged = [one for one in found if one.damaged]
    if as_json:
        echo_json([one.as_json() for one in found])
    else:
        for one in damaged:
            click.echo(f"{one.kind}/{one.key}  damaged: {', '.join(one.damaged)}")
        count = {state: sum(one.state == state for one in found) for state in sorted({one.state for one in found})}
        told = ", ".join(f"{number} {state}" for state, number in count.items()) or "no entries"
        click.echo(f"{results_dir}: {told}; {sum(one.bytes_ for one in found) / 1e6:,.1f} MB")
    later = [one for one in found if one.state == LATER]
    if later:
        raise StoreError(
            f"{len(later)} of {len(found)} entries were written by a later kdbench, {later[0].kind}/{later[0].key} "
            "among them; use that one to verify them"
        )
    if damaged:
        raise StoreError(
            f"{len(damaged)} of {len(found)} entries are damaged; run their suite again: what a run needs is set aside "
            "and made again"
        )


@click.command()
@click.option("--yes", is_flag=True, help="Remove what is shown.")
@results_option
@json_option
@errors_end_well
def gc(yes, results_dir, as_json) -> None:
    """Show what nothing needs any more; remove it with --yes.

    That is: entries that were found damaged and set aside; entries to which no suite's last plan leads, such as those
    of a setting that was changed, or of `kdbench examine`; and what killed processes left behind. What a running
    process holds, what a symlink points to, and files that kdbench did not write stay.

    \b
    kdbench gc
    kdbench gc --yes
    """
    from kdbench.run import upkeep
    from kdbench.run.store import Store

    store = Store(results_dir)
    found = upkeep.waste(store)
    if not as_json:
        _show(results_dir, found)
    gone = [one for one in found if yes and upkeep.remove(store, one)]
    if as_json:
        removed = {one.path for one in gone}
        echo_json([_row(results_dir, one) | {"removed": one.path in removed} for one in found])
    elif gone:
        click.echo(f"removed {len(gone)} of {len(found)}, {sum(one.bytes_ for one in gone) / 1e6:,.1f} MB", err=True)
    elif found:
        click.echo("nothing was removed; `--yes` removes it", err=True)


def _row(results_dir: Path, one: Any) -> dict[str, Any]:
    return {"path": one.path.relative_to(results_dir).as_posix(), "bytes": one.bytes_, "why": one.why}


def _show(results_dir: Path, found: list[Any]) -> None:
    for one in found:
        row = _row(results_dir, one)
        click.echo(f"{one.bytes_ / 1e6:>12,.3f} MB  {row['path']}  ({one.why})")
    click.echo(f"{sum(one.bytes_ for one in found) / 1e6:>12,.3f} MB  in {len(found)} places that nothing needs")
