"""Finished cells looked through before a run: what is damaged is set aside, and so made again."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from kdbench.run.locks import Busy
from kdbench.run.orchestrate import PlannedCell
from kdbench.run.store import Store


def set_aside(cells: list[PlannedCell], store: Store) -> list[str]:
    """Set finished cells aside of which a file, be it of the weights, is not what was written; say which, and where.

    Planning reads scores alone, since the weights of a large matrix take a minute. What a cell needs, such as its
    teacher, is looked through by the worker that reads it.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing leaves Python alone
        return [said for said in pool.map(lambda cell: _set_aside(cell, store), cells) if said]


def _set_aside(planned: PlannedCell, store: Store) -> str:
    entry = store.entry("cells", planned.job.key)
    if entry.done() is None or not entry.damaged():
        return ""
    with suppress(Busy), entry.locked():  # who holds it is making it again
        if entry.done() is not None and (names := entry.damaged()):
            where = entry.set_aside().name
            return f"{planned.cell.title}: {names[0]} is damaged; set aside as {where}, and made again"
    return ""
