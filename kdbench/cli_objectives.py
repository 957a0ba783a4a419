"""The commands round the registry: `kdbench objectives list|show|explain` and `kdbench check`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

import click

from kdbench.errors import ConfigError, PartialError
from kdbench.options import echo_json, errors_end_well, json_option, objectives_option, registry_in_use


@click.group(invoke_without_command=True)
@click.pass_context
def objectives(context: click.Context) -> None:
    """The registry of distillation objectives; alone, the list of them."""
    if context.invoked_subcommand is None:
        context.invoke(list_objectives)


@objectives.command("list")
@objectives_option
@json_option
@errors_end_well
def list_objectives(as_json) -> None:
    """List every objective with its meaning, the text it learns from, and the year of its publication."""
    rows = _described(registry_in_use().values())
    if as_json:
        echo_json(rows)
        return
    from rich.table import Table

    from kdbench.console import stdout_console

    table = Table("name", "meaning", "learns from", "year", box=None, pad_edge=False)
    table.columns[0].no_wrap = table.columns[2].no_wrap = True
    for row in rows:
        table.add_row(row["name"], row["summary"], row["data"], str(row["source"]["year"]))
    stdout_console(140).print(table)


@objectives.command("show")
@click.argument("name")
@objectives_option
@json_option
@errors_end_well
def show_objective(name, as_json) -> None:
    """Show formula, fields, source and differences of one objective."""
    from kdbench.registry import objective

    registry_in_use()
    made = objective(name)
    row = _describe(type(made)) | {"label": made.label, "spec": made.spec(), "data": str(made.trajectories)}
    if as_json:
        echo_json(row)
        return
    click.echo(f"{made.label}\n\n{row['doc']}\n\nfields")
    for key, text in row["fields"].items():
        value = row["spec"][key]
        shown = value["name"] if isinstance(value, dict) else value
        click.echo(f"  {f'{key} = {shown}':<28} {text}")
    if not row["fields"]:
        click.echo("  none")
    source = row["source"]
    click.echo(f"\nsource\n  {source['title']} ({source['year']}) {source['url']}\n  {source['equation']}")
    click.echo(f"\nlearns from\n  {row['data']}")
    for variant, settings in row["variants"].items():
        click.echo(f"\n{row['name']}@{variant}\n  " + ", ".join(f"{key}={value}" for key, value in settings.items()))
    differs = textwrap.fill(
        source["differs"] or "no differences known", 100, initial_indent="  ", subsequent_indent="  "
    )
    click.echo(f"\nelsewhere\n{differs}\n\nfile\n  {row['file']}")


def _described(members: Iterable[Any]) -> list[dict[str, Any]]:
    """Return the objectives that say of themselves what is listed; what the others do instead is said."""
    rows = []
    for member in members:
        try:
            rows.append(_describe(member))
        except ConfigError as error:
            click.echo(f"left out: {error}", err=True)
    return rows


def _data(member: Any) -> str:
    """Return whose text an objective learns from at its defaults; a wrapper's is its base's."""
    from kdbench.api import Wrapper
    from kdbench.plugins import source_file
    from kdbench.registry import objective

    if issubclass(member, Wrapper):
        return "the base's"
    try:
        return str(objective(member.name).trajectories)
    except Exception as error:  # a plugin's may lack a default, or be computed
        raise ConfigError(f"{source_file(member)}: at its defaults objective {member.name!r} fails: {error}") from None


def _describe(member: Any) -> dict[str, Any]:
    import inspect
    from dataclasses import asdict

    from kdbench.plugins import source_file

    doc = inspect.cleandoc(member.__doc__ or "")
    return {
        "name": member.name,
        "summary": doc.splitlines()[0] if doc else "",
        "data": _data(member),
        "needs_teacher": member.needs_teacher,
        "variants": {name: dict(settings) for name, settings in member.variants.items()},
        "fields": {key: info.description or "" for key, info in member.model_fields.items()},
        "doc": doc,
        "source": asdict(member.source),
        "file": str(source_file(member)),
    }


@objectives.command()
@click.argument("function", required=False)
@click.argument("settings", nargs=-1, metavar="[SETTING=VALUE]…")
@json_option
@errors_end_well
def explain(function, settings, as_json) -> None:
    """Say which specification is the same function as another trainer's, or what differs.

    \b
    kdbench objectives explain                     (lists the functions)
    kdbench objectives explain trl:gkd beta=0.1
    kdbench objectives explain distillm:jsd lam=0.9
    """
    from dataclasses import asdict

    from kdbench import conventions

    if function is None:
        echo_json(conventions.known()) if as_json else click.echo("\n".join(conventions.known()))
        return
    found = conventions.explain(function, conventions.parse_settings(settings))
    echo_json(asdict(found)) if as_json else click.echo(conventions.as_text(found))


@click.command()
@click.argument("name_or_file")
@objectives_option
@json_option
@errors_end_well
def check(name_or_file, as_json) -> None:
    """Try an objective, or a plugin file, on every rule of the contract. Exit code 3 where one is broken.

    \b
    kdbench check kl+atkd
    kdbench check mine/half.py
    """
    from dataclasses import asdict

    from kdbench import testing

    registry_in_use()
    found = {made.label: testing.check(made) for made in testing.load(name_or_file)}
    if as_json:
        echo_json({label: [asdict(result) for result in results] for label, results in found.items()})
    else:
        for label, results in found.items():
            _show_checks(label, results)
    broken = sum(result.status == "failed" for results in found.values() for result in results)
    if broken:
        raise PartialError(f"{broken} rule{'s are' if broken > 1 else ' is'} broken")


def _show_checks(label: str, results: list[Any]) -> None:
    marks = {"passed": "ok    ", "failed": "BROKEN", "exempt": "exempt"}
    click.echo(label)
    for result in results:
        sentence = result.check.replace("_", " ")
        click.echo(f"  {marks[result.status]}  {sentence}" + (f": {result.message}" if result.message else ""))
