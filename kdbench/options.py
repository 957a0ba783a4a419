"""Options that several commands share, and how a command ends where something is wrong."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from kdbench.errors import KdbenchError


def errors_end_well(command: Callable[..., Any]) -> Callable[..., Any]:
    """Show an error of ours as one message without a traceback, and end with its exit code."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except KdbenchError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(0)

    return wrapped


def results_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--results-dir", type=click.Path(path_type=Path), default=Path("results"), show_default=True,
        envvar="KDBENCH_RESULTS_DIR", help="Where results are kept.",
    )(command)  # fmt: skip


def objectives_option(command: Callable[..., Any]) -> Callable[..., Any]:
    def use(context: click.Context, parameter: click.Parameter, folders: tuple[Path, ...]) -> None:
        context.meta["kdbench.folders"] = folders

    return click.option(
        "--objectives-dir", type=click.Path(path_type=Path), multiple=True, expose_value=False, callback=use,
        help="A folder with objectives of your own, one Python file each.",
    )(command)  # fmt: skip


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else on stdout.")(
        command
    )


def set_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override a value of the suite."
    )(command)


def echo_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False, default=str))


def registry_in_use() -> dict[str, Any]:
    """Return every known objective, name → class, with those of `--objectives-dir`."""
    from kdbench import registry

    for folder in click.get_current_context().meta.get("kdbench.folders", ()):
        registry.use_folder(folder)
    return registry.objectives()
