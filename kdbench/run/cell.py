"""Make one entry of the store: an idempotent, locked function of its key.

Whoever holds the lock makes it, from where it stands; everyone may try.
"""

from __future__ import annotations

import errno
import re
from functools import lru_cache
from typing import Any

from kdbench.distill import checkpoint
from kdbench.errors import ConfigError, Diverged, Interrupted, OutOfMemory, StoreError
from kdbench.files import read_json
from kdbench.run.makers import MAKERS
from kdbench.run.store import INPUTS, Clock, Store
from kdbench.run.work import Hooks, Work

# The disk is full, over quota, read-only or broken, or the file is larger than is allowed.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


def execute(store: Store, job: dict[str, Any], hooks: Hooks) -> dict[str, Any]:
    """Make the entry of a job unless it is complete; return its DONE.json.

    Divergence and failure are results: they are committed as such. A damaged input is set aside and named.

    Raises:
        Busy: another process is making it.
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
            entry.set_aside()
        for need in job["needs"]:
            _verify(store, need)
        entry.begin(job["inputs"])
        clock = Clock()
        work = Work(store, entry, job["inputs"], job["context"], hooks, clock)
        try:
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


def _is_of_the_disk(error: Exception) -> bool:
    """Whether the disk is full, read-only or broken; safetensors gives the number as text."""
    if isinstance(error, OSError):
        return error.errno in DISK
    found = re.search(r"os error (\d+)", str(error))
    return found is not None and int(found[1]) in DISK


@lru_cache(maxsize=64)
def _verify(store: Store, need: str) -> None:
    """Check an input's sha256 sums once a worker; set it aside if damaged, so that the next run makes it again.

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
                raise StoreError(f"{error} (set aside as {entry.set_aside().name})") from None
        raise
    if need.startswith("texts/"):
        _verify(store, f"tokenizers/{read_json(entry.path / INPUTS)['tokenizer']}")
