"""Make one entry of the store: an idempotent, locked function of its key.

Whoever holds the lock makes it, from where it stands; everyone may try.
"""

from __future__ import annotations

import errno
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from kdbench.distill import checkpoint, memory
from kdbench.errors import ConfigError, Diverged, Interrupted, OutOfMemory, StoreError
from kdbench.files import read_json
from kdbench.run.clock import Clock
from kdbench.run.makers import MAKERS
from kdbench.run.store import INPUTS, Store
from kdbench.run.work import Hooks, Work

# The disk is full, over quota, read-only or broken, or the file is larger than is allowed.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


class Damaged(StoreError):
    """An input is damaged, or gone; once it is made again, the job can be.

    Attributes:
        need: the input's job id.
    """

    def __init__(self, message: str, need: str):
        super().__init__(message)
        self.need = need


def execute(store: Store, job: dict[str, Any], hooks: Hooks) -> dict[str, Any]:
    """Make the entry of a job unless it is complete; return its DONE.json.

    Divergence and failure are results: they are committed as such. What is damaged is set aside and said.

    Raises:
        Busy: another process is making it.
        Damaged: an input is; it has been set aside.
        Interrupted: stopped on request, after saving.
        ConfigError, StoreError: what the user can mend.
    """
    entry = store.entry(job["kind"], job["key"])
    with entry.locked():
        done = entry.done()
        if done is not None and done["status"] != "failed":
            if entry.is_whole():
                entry.drop_checkpoints()
                return done
            _say(hooks, entry.set_aside())
        for need in job["needs"]:
            _verify(store, need)
        if aside := entry.begin(job["inputs"]):
            _say(hooks, aside)
        clock = Clock()
        work = Work(store, entry, job["inputs"], job["context"], hooks, clock)
        try:
            with memory.explained(job["title"]):  # what a maker does not explain itself: a model that is loaded
                facts = MAKERS[job["kind"]](work)
            entry.commit("ok", clock.facts() | checkpoint.facts(entry.checkpoints), **(facts or {}))
        except Diverged as error:
            entry.commit("diverged", clock.facts(), reason=str(error), step=error.step)
        except (ConfigError, StoreError, Interrupted):
            raise
        except OutOfMemory as error:
            entry.commit("failed", clock.facts(), reason=str(error))
            raise
        except Exception as error:
            if _is_of_the_disk(error):  # no result of this cell: what it has saved stays, and the next run goes on
                raise StoreError(f"cannot write {entry.path}: {error}; make room, then run its suite again") from error
            # Any other failure of one cell is its result, not the end of the matrix.
            entry.commit("failed", clock.facts(), reason=f"{type(error).__name__}: {error}")
            raise
        return entry.done() or {}


def _say(hooks: Hooks, aside: Path) -> None:
    hooks.emit({"event": "said", "message": f"was damaged, and is made again (set aside as {aside.name})"})


def _is_of_the_disk(error: Exception) -> bool:
    """Whether the disk is full, read-only or broken; safetensors gives the number as text."""
    if isinstance(error, OSError):
        return error.errno in DISK
    found = re.search(r"os error (\d+)", str(error))
    return found is not None and int(found[1]) in DISK


@lru_cache(maxsize=64)
def _verify(store: Store, need: str) -> None:
    """Check an input's sha256 sums once a worker; set it aside if damaged, so that it is made again.

    With a text comes its tokenizer, which whoever reads the text reads too.
    """
    entry = store.entry(*need.split("/"))
    try:
        entry.verified()
    except StoreError as error:
        with entry.locked():  # another run may have made it again by now
            if entry.is_whole():
                return
            if entry.state() in ("ok", "damaged"):
                raise Damaged(f"{error} (set aside as {entry.set_aside().name})", need) from None
        raise Damaged(str(error), need) from None
    if need.startswith("texts/"):
        _verify(store, f"tokenizers/{read_json(entry.path / INPUTS)['tokenizer']}")
