"""The commands round the teacher caches: `kdbench cache ls|verify|rm`."""

from __future__ import annotations

from typing import Any

import click

from kdbench.errors import ConfigError, StoreError
from kdbench.options import echo_json, errors_end_well, json_option, results_option


@click.group()
def cache() -> None:
    """The stored signals of teachers: what is there, whether it is whole, and how to make room."""


@cache.command("ls")
@results_option
@json_option
@errors_end_well
def list_caches(results_dir, as_json) -> None:
    """List every teacher cache with its size, its state and the suites that use it."""
    found = _caches().known(_store(results_dir))
    echo_json([one.as_json() for one in found]) if as_json else _show(found)


@cache.command()
@results_option
@json_option
@errors_end_well
def verify(results_dir, as_json) -> None:
    """Check every file of every cache against its sha256. A damaged cache is named and set aside; exit code 4."""
    rows = _caches().verify(_store(results_dir))
    if as_json:
        echo_json(rows)
    else:
        for row in rows:
            click.echo(f"{row['key']}  {row['state']}" + "".join(f"\n  damaged: {name}" for name in row["damaged"]))
    if damaged := [row for row in rows if row["damaged"]]:
        names = ", ".join(f"{row['key']} → {row['set_aside']}" for row in damaged)
        raise StoreError(f"damaged caches were set aside ({names}); a run that needs them makes them again")


@cache.command()
@click.argument("keys", nargs=-1, metavar="[KEY]…")
@click.option("--unused", is_flag=True, help="Every cache that no suite's last plan names.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@results_option
@errors_end_well
def rm(keys, unused, yes, results_dir) -> None:
    """Remove teacher caches; a run that needs them makes them again. Finished cells do not need them.

    \b
    kdbench cache rm 3f1c0d9a77aa51b2c9e0
    kdbench cache rm --unused --yes
    """
    if bool(keys) == unused:
        raise ConfigError("expected keys of caches (`kdbench cache ls` shows them), or --unused")
    caches, store = _caches(), _store(results_dir)
    found = caches.chosen(store, keys, unused)
    if not found:
        click.echo("nothing to remove", err=True)
        return
    _show(found)
    total = sum(one.bytes_ for one in found)
    if not yes and not click.confirm(f"Remove {len(found)} caches, {total / 1e6:,.1f} MB?", err=True):
        click.echo("nothing was removed", err=True)
        return
    for one in found:
        caches.remove(store, one)
    click.echo(f"removed {len(found)} caches, {total / 1e6:,.1f} MB", err=True)


def _caches() -> Any:
    from kdbench.run import caches

    return caches


def _store(results_dir: Any) -> Any:
    from kdbench.run.store import Store

    return Store(results_dir)


def _show(found: list[Any]) -> None:
    from rich.table import Table

    from kdbench.console import stdout_console

    names = ("key", "teacher", "text", "tokens", "dtype", "layout", "MB", "bytes/token", "state", "suites")
    table = Table(*names, box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for one in found:
        a_token = "" if one.bytes_a_token is None else f"{one.bytes_a_token:,.0f}"
        texts = (one.key, one.teacher, one.text[:8], f"{one.tokens:,}", one.dtype, one.layout)
        table.add_row(*texts, f"{one.bytes_ / 1e6:,.1f}", a_token, one.state, ", ".join(one.suites) or "none")
    stdout_console(160).print(table)
