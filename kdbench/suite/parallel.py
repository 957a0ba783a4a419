"""What a suite may not ask of models that are spread over devices, or kept in few bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbench.suite.schema import Train


def problems(train: Train, length: int, device: str) -> list[str]:
    """Return a sentence for everything in `train.fsdp` that does not fit the rest of the suite.

    Args:
        length: tokens in a row.
        device: of the suite.
    """
    if train.fsdp is None:
        return []
    found, rows = [], train.batch_tokens // length
    if device == "mps":
        found.append("train.fsdp: expected device: cuda, or cpu to try it; found mps")
    if rows < 2 * train.fsdp:  # an objective may replace one of two rows by a text of its own
        found.append(
            f"train.fsdp: expected at least two rows for each of {train.fsdp} processes, found batch_tokens "
            f"{train.batch_tokens:,} // length {length:,} = {rows} rows"
        )
    return found
