"""`python -m benchmarks`: measure, print a table, and write it down if asked to."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import click

from benchmarks import report
from benchmarks.measure import Bench, Found
from benchmarks.rows import Row

GROUPS = ("head", "step", "matrix", "cache", "growth", "evaluation")
ON_GPU = ("head", "step")


@click.command()
@click.option("--only", metavar="GROUP,…", help=f"Of {', '.join(GROUPS)}.")
@click.option("--quick", is_flag=True, help="An hour: one or two turns, and shorter steps and curves.")
@click.option("--turns", type=click.IntRange(min=1), help="Turns of each contestant. Default: 3 to 5.")
@click.option("--smoke", is_flag=True, help="Seconds, to see that everything runs; the ratios mean nothing.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all rows there.")
@click.option("--write", is_flag=True, help="Write benchmarks/README.md.")
@click.option(
    "--from", "earlier", type=click.Path(exists=True, path_type=Path),
    help="Take these rows; measure only the groups of --only again, if any.",
)  # fmt: skip
def main(
    only: str | None,
    quick: bool,
    turns: int | None,
    smoke: bool,
    json_path: Path | None,
    write: bool,
    earlier: Path | None,
) -> None:
    """Measure kdbench beside TRL, Liger, torchtune and lm-eval; peers that are not installed are said so."""
    chosen = only.split(",") if only else [] if earlier else list(GROUPS)
    if unknown := set(chosen) - set(GROUPS):
        raise click.UsageError(f"unknown groups {sorted(unknown)}; expected some of {', '.join(GROUPS)}")
    begin = time.monotonic()
    scale = "smoke" if smoke else "quick" if quick else "full"
    rows, gpu = measure(chosen, scale, json_path, turns) if chosen else ([], None)
    about = report.facts(scale, gpu, time.monotonic() - begin)
    if earlier is not None:
        rows, about = report.joined(*report.from_json(earlier.read_text()), rows, about)
    report.print_table(rows)
    print(about["gpu"] or report.NO_GPU)
    if json_path:
        json_path.write_text(report.as_json(rows, about))
    if write:
        report.README.write_text(report.markdown(rows, about))


def measure(
    groups: list[str], scale: str, json_path: Path | None, turns: int | None = None
) -> tuple[list[Row], str | None]:
    """Run the groups; after each one the rows so far are safe in `json_path`, since a full run takes hours."""
    gpu = Bench(scale).call("benchmarks.__main__:gpu")["name"]
    rows: list[Row] = []
    for group in groups:
        for device in ("cpu", "cuda")[: 2 if gpu and group in ON_GPU else 1]:
            click.echo(f"{group} on {device}", err=True)
            turns = turns or (2 if scale == "quick" else None)
            bench = Bench(scale, device, say=lambda line: click.echo(line, err=True), turns=turns)
            found = importlib.import_module(f"benchmarks.{group}").run(bench)
            rows += [_on(device, row) for row in found]
            if json_path:
                json_path.write_text(report.as_json(rows, report.facts(scale, gpu, 0)))
    return rows, gpu


def gpu() -> Found:
    """Name the GPU that torch sees, if any."""
    import torch

    return {"name": f"GPU: {torch.cuda.get_device_name()}" if torch.cuda.is_available() else None}


def _on(device: str, row: Row) -> Row:
    """On a GPU the targets, which were set for one CPU thread, do not count; the times do."""
    from dataclasses import replace

    return row if device == "cpu" else replace(row, what=f"{row.what} (GPU)", target=None)


if __name__ == "__main__":
    main()
