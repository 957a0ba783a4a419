"""A budget as a person reads it: at most a hundred columns."""

from __future__ import annotations

from typing import Any

from kdbench.suite.cost import duration

STAGES = {"training": "train", "cache": "store its states", "text": "let it write"}


def show(found: dict[str, Any]) -> None:
    """Print a budget: assumptions, what is made first, the cells by student and teacher, totals, what will not fit."""
    from rich.table import Table

    from kdbench.console import stdout_console

    console = stdout_console()
    device, assumed = found["device"], found["assumed"]
    if found.get("missing"):
        console.print(
            f"There is no text at {found['missing']} yet. Assumed: {device['name']} (another: --device-name), the "
            "sizes that the suite declares, nothing done before.",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"suite {found['suite']} on {device['name']}: {device['peak_flops'] / 1e12:,.0f} TFLOP/s bf16 at most, "
        f"{device['bytes'] / 1e9:.0f} GB ({device['source']}). Assumed, not measured: "
        f"{assumed['utilisation']:.0%} of the peak is reached, text is written at "
        f"{assumed['bandwidth_utilisation']:.0%} of the memory's rate, and takes {assumed['layer_s'] * 1e3:g} ms "
        "a layer and token at least.",
        highlight=False,
    )
    first = Table("made first", "model", "GPU-hours", "on disk", "memory", "fits", box=None, pad_edge=False)
    for row in found["stages"]:
        disk = gigabytes(row["cache_bytes"]) if row["cache_bytes"] else ""
        first.add_row(STAGES[row["stage"]], row["model"], hours(row), disk, gigabytes(row["bytes"]), fits(row))
    table = Table("student", "teacher", "cells", "GPU-hours", "memory", "fits", box=None, pad_edge=False)
    for row in found["pairs"]:
        names = [row["student"] or "", row["teacher"] or ""]
        table.add_row(*names, f"{row['cells']:,}", hours(row), gigabytes(row["bytes"]), fits(row))
    if found["stages"]:
        console.print(first)
    console.print(table)
    console.print(
        f"{found['cells']:,} cells · {found['flop']:.2e} FLOP · {found['gpu_hours']:,.1f} GPU-hours "
        f"({duration(found['gpu_hours'] * 3600)} on one) · teacher caches {gigabytes(found['cache_bytes'])} at most, "
        "as if every token were a target",
        highlight=False,
    )
    if found["not_counted"]:
        console.print(f"not counted: the examination by {', '.join(found['not_counted'])}", highlight=False)
    for line in remarks(found):
        console.print(line, highlight=False)


def remarks(found: dict[str, Any]) -> list[str]:
    """Return a line for everything that does not fit on the device, with what takes the memory."""
    lines = []
    for row in (*found["stages"], *found["pairs"]):
        name = f"{row['stage']} of {row['model']}" if "stage" in row else pair_name(row)
        rows = row["micro_batch_that_fits"]
        if rows == row["micro_batch"]:
            continue
        if rows:
            lines.append(f"{name}: fits with micro_batch: {rows} instead of {row['micro_batch']}")
            continue
        parts = ", ".join(f"{what} {gigabytes(size)}" for what, size in row["parts"].items() if size > 1e9)
        lines.append(
            f"{name}: does not fit on one {found['device']['name']} ({parts}); take a larger device or a smaller "
            "model, spread it (fsdp of train or finetune, teacher.placement), keep it in few bits (teacher.quantize), "
            "or leave it out"
        )
    return lines


def pair_name(row: dict[str, Any]) -> str:
    """Return `student ← teacher`, or the one there is."""
    return " ← ".join(name for name in (row["student"], row["teacher"]) if name)


def fits(row: dict[str, Any]) -> str:
    """Return `yes`, the micro-batch that would fit, or `no`."""
    rows = row["micro_batch_that_fits"]
    return "yes" if rows == row["micro_batch"] else f"micro_batch {rows}" if rows else "no"


def gigabytes(count: float) -> str:
    """Return 1e9 bytes with the digits that matter."""
    return f"{count / 1e9:,.0f} GB" if count >= 10e9 else f"{count / 1e9:.1f} GB"


def hours(row: dict[str, Any]) -> str:
    """Return GPU-hours with the digits that matter."""
    return f"{row['gpu_hours']:,.2f}" if row["gpu_hours"] >= 0.005 else "< 0.01"
