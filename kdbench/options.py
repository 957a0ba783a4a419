"""Options that several commands share, and how a command ends where something is wrong."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from kdbench.errors import ConfigError, KdbenchError, StoreError


def errors_end_well(command: Callable[..., Any]) -> Callable[..., Any]:
    """Show an error of ours as one message without a traceback, and end with its exit code."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except KdbenchError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt as stop:
            click.echo("interrupted", err=True)
            sys.exit(128 + (stop.args or (signal.SIGINT,))[0])
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(0)
        except RuntimeError as error:  # of pathlib, before Python 3.13
            if not str(error).startswith("Symlink loop"):
                raise
            click.echo(f"error: expected a file or a folder, found a {str(error)[0].lower()}{str(error)[1:]}", err=True)
            sys.exit(ConfigError.exit_code)
        except OSError as error:  # of a disk: not to be read, full, a name that is too long
            where = f": {error.filename}" if error.filename else ""
            click.echo(f"error: {error.strerror or error}{where}", err=True)
            sys.exit(StoreError.exit_code)

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


def forgive() -> None:
    """Let stdout and stderr write `?` for a character that their encoding lacks, instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def echo_json(value: Any) -> None:
    """Print one JSON document; where stdout knows no UTF-8, in ASCII, so that no character is lost."""
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    click.echo(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=plain, default=str))


def registry_in_use() -> dict[str, Any]:
    """Return every known objective, name → class, with those of `--objectives-dir`; say which files are left out."""
    from kdbench import registry

    for folder in click.get_current_context().meta.get("kdbench.folders", ()):
        registry.use_folder(folder)
    for reason in registry.broken():
        click.echo(f"left out: {reason}", err=True)
    return registry.objectives()


def executor_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --executor, --address and --gpu-share; the command gets `where`: None for this machine."""

    @wraps(command)
    def wrapped(*args: Any, executor: str, address: str | None, gpu_share: float | None, **kwargs: Any) -> Any:
        if executor == "local":
            if (address, gpu_share) != (None, None):
                raise click.UsageError("--address and --gpu-share belong to --executor ray; add it")
            return command(*args, where=None, **kwargs)
        from kdbench.run.where import Where

        return command(*args, where=Where(address, 1.0 if gpu_share is None else gpu_share), **kwargs)

    options = (
        click.option(
            "--executor", type=click.Choice(["local", "ray"]), default="local", show_default=True,
            help="Who makes the cells: processes of this machine, or a Ray cluster (needs the extra `ray`).",
        ),
        click.option(
            "--address", metavar="HOST:PORT",
            help="With ray: its head; `auto`: the cluster of this node. Default: $RAY_ADDRESS, else a new one here.",
        ),
        click.option(
            "--gpu-share", type=click.FloatRange(0, 64, min_open=True), metavar="X",
            help="With ray on GPUs: GPUs a job takes; 0.5: two jobs share one. Default: 1.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped
