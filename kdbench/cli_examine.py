"""`kdbench examine`: what one model folder, trained anywhere, scores on a suite's tasks."""

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

INTRINSIC = {"perplexity/word_perplexity": "word perplexity", "nats_per_token": "nats/token"}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--suite", required=True, type=click.Path(path_type=Path), help="The suite file whose tasks are asked.")
@set_option
@results_option
@objectives_option
@json_option
@errors_end_well
def examine(folder, suite, overrides, results_dir, as_json) -> None:
    """Examine one saved model by a suite's tasks, beside the suite's floor and ceiling.

    FOLDER is an ordinary Hugging Face folder: config.json, safetensors, the suite's tokenizer or none. The suite's own
    plan and results are left as they are. To have such students in the verdict, name them under `arms:` in the suite.

    \b
    kdbench examine runs/mine/checkpoint-500 --suite suites/quickstart.yaml
    """
    from kdbench.run import examine as examination
    from kdbench.run.store import Store
    from kdbench.suite import loader
    from kdbench.suite.schema import Suite

    registry_in_use()
    chosen = loader.validate(Suite, loader.override(loader.parse(suite), overrides))
    base = suite.resolve().parent
    found = examination.examine(chosen, base, Store(results_dir), folder, [_Watch()])
    echo_json(found.as_json()) if as_json else _show(found, results_dir)


class _Watch:
    """Says on stderr what has been made."""

    def event(self, job: Any, event: dict[str, Any]) -> None:
        """Take one event of a job."""
        if event["event"] in ("started", "died"):
            click.echo(f"{job.title}{': ' + event['message'] if 'message' in event else ' …'}", err=True)


def _show(found: Any, results_dir: Path) -> None:
    from rich.table import Table

    from kdbench.console import stdout_console

    console = stdout_console()
    rows = [found.row, *found.beside]
    scored = dict.fromkeys(name.partition("/")[0] for name in found.row.metrics if name.endswith(("/acc", "/score")))
    tasks = [f"{name}/{'score' if f'{name}/score' in found.row.metrics else 'acc'}" for name in scored]
    extra = [name for name in INTRINSIC if name in found.row.metrics]
    table = Table("model", box=None, pad_edge=False, title=f"Suite {found.suite}: accuracy in points")
    heads = [name.partition("/")[0] for name in tasks] + ["overall"] + [INTRINSIC[name] for name in extra]
    for head in heads:
        table.add_column(head, justify="right")
    for row in rows:
        name = row.name if row.models == 1 else f"{row.name} (mean of {row.models})"
        numbers = [f"{100 * value:.1f}" for value in (*(row.metrics[task] for task in tasks), row.overall)]
        table.add_row(name, *numbers, *(f"{row.metrics[one]:,.3f}" for one in extra))
    console.print(table)
    console.print(f"overall: mean over {', '.join(found.tasks)}", highlight=False, markup=False)
    if not found.beside:
        console.print("no floor or ceiling here yet: they come with `kdbench run SUITE`", highlight=False, markup=False)
    console.print(f"scores an item: {results_dir / 'cells' / found.key}/samples.parquet", highlight=False, markup=False)
