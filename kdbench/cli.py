"""The command line. stdout carries the product (tables, JSON), stderr the talk. Heavy imports stay inside commands.

Exit codes: 0 all done · 1 internal · 2 usage or configuration · 3 some cells failed or diverged · 4 results folder ·
130 and 143 stopped by a signal, saved.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from kdbench import failpoints, telemetry
from kdbench.cli_cache import cache
from kdbench.cli_convert import convert
from kdbench.cli_diff import diff
from kdbench.cli_examine import examine
from kdbench.cli_objectives import check, objectives
from kdbench.cli_profile import profile
from kdbench.cli_report import cite, report
from kdbench.cli_store import gc, show_verified
from kdbench.errors import ConfigError, PartialError, StoreError
from kdbench.options import (
    echo_json,
    errors_end_well,
    executor_options,
    forgive,
    json_option,
    objectives_option,
    registry_in_use,
    results_option,
    set_option,
)
from kdbench.signals import Signals, interrupt

TOLD_OFFLINE = "kdbench.told_offline"  # whether the user set HF_HUB_OFFLINE, to 0 or to 1


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="kdbench")
def main() -> None:
    """Which knowledge-distillation objective should I use, and how sure can I be?"""
    forgive()
    context = click.get_current_context()
    context.with_resource(Signals(interrupt))
    context.meta[TOLD_OFFLINE] = "HF_HUB_OFFLINE" in os.environ
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    telemetry.switch_off()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    errors_end_well(failpoints.arm_from_environment)()


main.add_command(objectives)
main.add_command(check)
main.add_command(profile)
main.add_command(examine)
main.add_command(cache)
main.add_command(convert)
main.add_command(report)
main.add_command(cite)
main.add_command(diff)
main.add_command(gc)


def _load_suite(path: Path, overrides: tuple[str, ...]) -> Any:
    """Read, override and check a suite file; every error at once."""
    from kdbench.suite import loader
    from kdbench.suite.schema import Suite

    registry_in_use()
    return loader.validate(Suite, loader.override(loader.parse(path), overrides))


def _let_the_hub_answer(suite: Any) -> None:
    """Allow the network for a suite that names the Hub, unless the user has said otherwise; workers inherit it.

    Before the Hub's library is imported, which reads the variable once.
    """
    if suite.on_hub and not click.get_current_context().meta.get(TOLD_OFFLINE):
        os.environ["HF_HUB_OFFLINE"] = "0"


@main.command()
@click.argument("suite", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Show what would run and why; write nothing.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes. Default: one a core; on a GPU, as many as fit.")
@click.option(
    "--only", multiple=True, metavar="KEY=VALUE,…", help="Run these cells only: objective=, student=, teacher=, seed=."
)
@click.option(
    "--stall", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
    help="Stop a worker without a sign of life for so long. Default: 900, or 50 of its steps if that is longer.",
)  # fmt: skip
@click.option("--no-mlflow", is_flag=True, help="Do not feed MLflow; `kdbench mlflow sync` can do it later.")
@executor_options
@set_option
@results_option
@objectives_option
@json_option
@errors_end_well
def run(suite, dry_run, workers, only, stall, no_mlflow, where, overrides, results_dir, as_json) -> None:
    """Run a suite: train every cell that is not done, examine it, compare, report.

    Finished cells are never run again; unfinished ones go on from their last checkpoint. Kill it at any time.

    \b
    kdbench run suites/quickstart.yaml
    kdbench run suites/quickstart.yaml --only objective=atkd --set train.steps=50
    kdbench run suites/quickstart.yaml --executor ray --address auto
    """
    if stall is not None and where is not None:
        raise ConfigError("--stall belongs to --executor local; over Ray a task that hangs is not noticed yet")
    chosen = _load_suite(suite, overrides)
    if not dry_run:
        _let_the_hub_answer(chosen)
    from kdbench import commands

    base = suite.resolve().parent
    if dry_run:
        planned = commands.plan(chosen, base, results_dir, only)
        echo_json(planned) if as_json else commands.print_plan(planned)
        return
    found = commands.run(chosen, base, results_dir, only, overrides, workers, not no_mlflow, where, stall)
    echo_json(found.as_json()) if as_json else found.show()
    if found.failed or found.diverged:
        raise (StoreError if found.store_failed else PartialError)(
            f"{len(found.failed)} jobs failed and {len(found.diverged)} cells diverged; the other results stand. "
            f"Reasons are above and in {results_dir}/logs"
        )


@main.command()
@click.argument("suite", type=click.Path(path_type=Path))
@click.option("--power", is_flag=True, help="Show which differences the suite can find, and the seeds it would take.")
@click.option("--margin", type=float, help="With --power: the difference that matters. Default: the suite's.")
@click.option("--seeds", metavar="N,…", help="With --power: numbers of seeds to try. Default: the suite's.")
@click.option("--items", metavar="N,…", help="With --power: items a task to try.")
@click.option("--device-name", metavar="NAME", help="Show GPU-hours and memory on an A100, H100, H200 or 4090 instead.")
@set_option
@results_option
@objectives_option
@json_option
@errors_end_well
def plan(suite, power, margin, seeds, items, device_name, overrides, results_dir, as_json) -> None:
    """Show the matrix, what is done, what would run and why, and what it will cost. Writes nothing.

    \b
    kdbench plan suites/quickstart.yaml
    kdbench plan suites/quickstart.yaml --power --margin 0.01 --seeds 3,6,10
    kdbench plan suites/opt_scaling.yaml --device-name H100      # needs neither weights nor text nor a GPU

    Where the suite's instruction file is not there yet, the plan is that of an H100, from the suite alone.
    """
    if power and device_name:
        raise ConfigError("--power and --device-name answer two questions; ask for one at a time")
    if device_name:
        _show_budget(_load_suite(suite, overrides), suite.resolve().parent, device_name, None, as_json)
        return
    if power:
        from kdbench.analysis import planning

        foreseen = planning.foresee(_load_suite(suite, overrides), results_dir, margin, seeds, items)
        echo_json(foreseen) if as_json else planning.show(foreseen)
        return
    if (margin, seeds, items) != (None, None, None):
        raise ConfigError("--margin, --seeds and --items belong to --power; add it")
    chosen, base = _load_suite(suite, overrides), suite.resolve().parent
    from kdbench import commands
    from kdbench.run import material

    if missing := material.absent(chosen.data, base):
        _show_budget(chosen, base, None, missing, as_json)
        return
    planned = commands.plan(chosen, base, results_dir, ())
    echo_json(planned) if as_json else commands.print_plan(planned)


def _show_budget(suite: Any, base: Path, device_name: str | None, missing: Path | None, as_json: bool) -> None:
    """Show what a suite takes on a named device; `missing`: the text for lack of which nothing else can be said."""
    from kdbench.run import budget, budget_table
    from kdbench.suite import devices

    priced = budget.Budget(suite, base, devices.find(device_name or devices.DEFAULT)).of()
    priced["missing"] = None if missing is None else str(missing)
    echo_json(priced) if as_json else budget_table.show(priced)


@main.command()
@click.option("--suite", help="Name of the suite. Default: the one run last.")
@click.option("--objectives", help="Comma-separated arms, such as kl,atkd. Default: the suite's contrasts.")
@click.option("--baseline", help="The arm that the others are compared with. Default: the first of --objectives.")
@click.option("--metric", default="acc", show_default=True, help="acc, word_log_likelihood, or one task, such as swap.")
@click.option("--markdown", "form", flag_value="markdown", help="Print Markdown.")
@click.option("--json", "form", flag_value="json", help="Print one JSON document and nothing else on stdout.")
@click.option("--csv", "form", flag_value="csv", help="Print every row with its details as one tidy table.")
@click.option("--latex", "form", flag_value="latex", help="Print the tables as LaTeX (package booktabs).")
@results_option
@errors_end_well
def compare(suite, objectives, baseline, metric, form, results_dir) -> None:
    """Compare objectives by paired tests, from the stored results alone.

    \b
    kdbench compare --objectives kl,atkd
    kdbench compare --suite quickstart --objectives kl,reverse_kl,atkd --baseline sft --metric swap
    """
    from kdbench.analysis import answer
    from kdbench.suite.matrix import split_labels

    found = answer.ask(results_dir, suite, split_labels(objectives) if objectives else None, baseline, metric)
    if form is None:
        answer.show(found)
    elif form == "json":
        echo_json(found.to_json())
    else:
        click.echo(answer.printed(found, form).rstrip("\n"))


@main.command()
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
@results_option
@errors_end_well
def ui(port, results_dir) -> None:
    """Browse the results in MLflow, on 127.0.0.1 only."""
    from kdbench.run import tracking_place
    from kdbench.run.store import Store

    store = Store(results_dir)
    if not list(store.root.glob("suites/*/plan.json")):
        raise ConfigError(
            f"no results in {results_dir}; run a suite first, for example: kdbench run suites/quickstart.yaml"
        )
    tracking_place.quiet_environment()
    uri = tracking_place.tracking_uri(store)
    if uri.startswith(("http://", "https://")):
        click.echo(f"MLflow is served at {uri} already (MLFLOW_TRACKING_URI); open it there", err=True)
        return
    if "MLFLOW_TRACKING_URI" not in os.environ:
        if not (store.root / "mlflow.db").exists():
            _sync_all(store, None)
        with tracking_place.reached(store):
            tracking_place.prepare_database(store)
    with tracking_place.reached(store):
        tracking_place.check_installed()
    click.echo(f"MLflow on http://127.0.0.1:{port} over {uri} (Ctrl-C ends it)", err=True)
    arguments = ["-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", uri]
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 — our own interpreter, no shell


@main.group()
def mlflow() -> None:
    """MLflow is a mirror of the results; it can be rebuilt at any time."""


@mlflow.command()
@click.option("--suite", help="Name of the suite. Default: all.")
@results_option
@errors_end_well
def sync(suite, results_dir) -> None:
    """Write every complete cell into MLflow; what is there already is left alone."""
    from kdbench.run.store import Store

    _sync_all(Store(results_dir), suite)


def _sync_all(store: Any, suite: str | None) -> None:
    from kdbench.analysis.results import open_suite
    from kdbench.run import tracking, tracking_place

    names = [suite] if suite else sorted(path.parent.name for path in store.root.glob("suites/*/plan.json"))
    if not names:
        raise ConfigError(f"no results in {store.root}; run a suite first")
    for name in names:
        added = tracking.sync(store, open_suite(store.root, name).plan)
        click.echo(f"{name}: {added} cells written to {tracking_place.tracking_uri(store)}", err=True)


@main.command()
@click.option("--store", "whole_store", is_flag=True, help="Verify every file of every result instead.")
@results_option
@json_option
@errors_end_well
def doctor(whole_store, results_dir, as_json) -> None:
    """Show devices, versions, off-line flags and disk, and what would be in the way of a run.

    With --store: read every stored file and compare it with its sha256; what is damaged is named, exit code 4.
    """
    if whole_store:
        show_verified(results_dir, as_json)
        return
    from kdbench.run import doctor as diagnosis

    found = diagnosis.examine(results_dir)
    echo_json(found) if as_json else click.echo(diagnosis.as_text(found))
    if found["problems"]:
        sys.exit(4)


if __name__ == "__main__":
    main()
