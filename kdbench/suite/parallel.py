"""What a suite may not ask of models that are spread over devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbench.suite.schema import Suite


def problems(suite: Suite) -> list[str]:
    """Return a sentence for everything in `train.fsdp` that does not fit the rest of the suite."""
    count, length, tokens = suite.train.fsdp, suite.data.length, suite.train.batch_tokens
    if count is None:
        return []
    found, rows = [], tokens // length
    if suite.device == "mps":
        found.append("train.fsdp: expected device: cuda, or cpu to try it; found mps")
    if suite.teacher.placement != "single":
        found.append("teacher.placement: auto would spread a teacher of each process of train.fsdp over all devices")
    if rows < 2 * count:  # an objective may replace one of two rows by a text of its own
        found.append(
            f"train.fsdp: expected at least two rows for each of {count} processes, found batch_tokens "
            f"{tokens:,} // length {length:,} = {rows} rows"
        )
    return found
