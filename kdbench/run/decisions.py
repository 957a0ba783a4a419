"""What a run decided from cells that had ended, kept as an entry: whoever is first decides, and it stays so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdbench.errors import StoreError
from kdbench.files import digest, read_json, write_json
from kdbench.run.clock import Clock
from kdbench.run.job import KEY_LENGTH
from kdbench.run.store import Store

KIND = "choices"


def key(inputs: Mapping[str, Any]) -> str:
    """Return the content key of a decision: of its rule, and of the cells that it rests on."""
    return digest(inputs)[:KEY_LENGTH]


def stored(store: Store, inputs: Mapping[str, Any], file: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the content of a decision and the timing of its entry; None where it is not there or does not verify."""
    entry = store.entry(KIND, key(inputs))
    try:
        done = entry.verified()
        return read_json(entry.path / file), done["timing"]
    except StoreError:
        return None


def keep(
    store: Store, inputs: dict[str, Any], file: str, content: Mapping[str, Any], timing: Mapping[str, Any]
) -> None:
    """Write a decision that is not in the store yet; what stands in its place and does not verify is set aside."""
    entry, clock = store.entry(KIND, key(inputs)), Clock()
    with entry.locked(wait_s=10.0):
        if stored(store, inputs, file):
            return
        if entry.done():  # of the right size, and yet not what was written
            entry.set_aside()
        entry.begin(inputs)
        write_json(entry.path / file, content)
        entry.commit("ok", clock.facts() | timing)
