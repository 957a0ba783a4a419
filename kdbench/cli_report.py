"""The commands that make something to keep of stored results: `kdbench report` and `kdbench cite`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdbench.errors import ConfigError
from kdbench.options import errors_end_well, objectives_option, registry_in_use, results_option


@click.command()
@click.argument("suite", required=False)
@click.option("--open", "open_page", is_flag=True, help="Open the page in the browser.")
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write it there instead, with item scores and plan: to publish, or to commit. No weights.",
)
@results_option
@objectives_option
@errors_end_well
def report(suite, open_page, keep, results_dir) -> None:
    """Write a suite's report anew from the stored results: one page, its pictures as SVG and PNG, its numbers.

    SUITE is a name or the suite's file. Default: the one run last.

    \b
    kdbench report quickstart --open
    kdbench report quickstart --keep results/reference/quickstart
    """
    from kdbench.analysis import conclusion

    registry_in_use()
    _, written = conclusion.write_report(results_dir, _name(suite) if suite else None, keep)
    page = written["report.html"]
    click.echo(str(page))
    pictures = sum(path.suffix == ".png" for path in written.values())
    more = ", item scores and plan" if keep else ""
    click.echo(f"with {pictures} pictures as SVG and PNG, comparison.csv{more}, in {page.parent}", err=True)
    if open_page:
        click.launch(page.resolve().as_uri())


@click.command()
@click.argument("names", nargs=-1, metavar="[SUITE | OBJECTIVE]…")
@results_option
@objectives_option
@errors_end_well
def cite(names, results_dir) -> None:
    """Print BibTeX of the objectives that a suite uses, or of objectives by name, and of kdbench.

    SUITE is a suite's file or the name of one that was run. Default: the one run last.

    \b
    kdbench cite suites/quickstart.yaml
    kdbench cite reverse_kl+atkd gkd
    """
    from kdbench.analysis import cite as citations

    known = registry_in_use()
    found: dict[str, None] = {}
    for name in names or [None]:
        found |= dict.fromkeys(_entries(citations, name, known, results_dir))
    own = citations.kdbench()
    click.echo("\n\n".join([entry for entry in found if entry != own] + [own]))


def _entries(citations: Any, name: str | None, known: dict[str, Any], results_dir: Path) -> list[str]:
    """Return the entries of one name: a suite's file, an objective, or a suite that was run."""
    from kdbench.analysis.results import open_suite

    if name and Path(name).suffix in (".yaml", ".yml"):
        return citations.entries([entry["spec"] for entry in _suite(Path(name)).objectives])
    if name and name.replace("@", "+").split("+")[0] in known:
        return citations.entries([name])
    try:
        return citations.of_suite(open_suite(results_dir, name).plan["suite"])
    except ConfigError:
        if name is None:
            return citations.entries([])
        if not (results_dir / "suites").is_dir():  # nothing has been run, so an objective was meant
            return citations.entries([name])
        raise ConfigError(
            f"expected an objective (`kdbench objectives list`), a suite's file, or a suite that was run in "
            f"{results_dir}; found {name!r}"
        ) from None


def _suite(path: Path) -> Any:
    from kdbench.suite import loader
    from kdbench.suite.schema import Suite

    return loader.validate(Suite, loader.parse(path))


def _name(suite: str) -> str:
    """Return the name of a suite given by name or by its file."""
    return _suite(Path(suite)).name if Path(suite).suffix in (".yaml", ".yml") else suite
