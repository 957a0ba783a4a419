"""The teacher caches of a results folder: what they are, who uses them, whether they are whole, and how to drop them.

Nothing here reaches outside `teacher_cache/`; an entry is removed, or set aside, only under its lock.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdbench.errors import ConfigError, StoreError, did_you_mean
from kdbench.files import read_json
from kdbench.run.locks import Busy, held
from kdbench.run.places import GONE_NAME, NAME, drop, entries, size
from kdbench.run.store import DONE, INPUTS, Entry, Store

KIND = "teacher_cache"
SET_ASIDE = "set aside"


@dataclass(frozen=True)
class Cache:
    """One cache as `kdbench cache ls` shows it.

    Attributes:
        key: the content key; of a damaged one that was set aside, its folder's name.
        teacher: its name in the suites that use it, else its number of parameters, else its key.
        text: key of the tokenised text.
        tokens: of the distillation set. bytes_a_token: None where that is unknown.
        state: `ok`, `unfinished`, `damaged`, `set aside`; or `in use` while a process writes or reads it.
        suites: whose last plan names it.
        effect: what its layout loses, as measured when it was written; None where it was not.
    """

    key: str
    teacher: str
    text: str
    tokens: int
    dtype: str
    layout: str
    bytes_: int
    bytes_a_token: float | None
    state: str
    suites: tuple[str, ...]
    effect: dict[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        found = asdict(self)
        return {"bytes": found.pop("bytes_"), **found, "suites": list(self.suites)}


@dataclass(frozen=True)
class _Use:
    """Where a plan names a cache: suite, teacher's name, key of the cell."""

    suite: str
    teacher: str
    cell: str


def known(store: Store) -> list[Cache]:
    """Return every cache of the store, those set aside among them, by key."""
    uses = _uses(store)
    return [_describe(store, folder, uses.get(folder.name, [])) for folder in _folders(store)]


def _folders(store: Store) -> list[Path]:
    return [folder for _, folder in entries(store, [KIND])]


def _uses(store: Store) -> dict[str, list[_Use]]:
    """Return, for each cache, where the suites' plans name it; a plan that cannot be read is passed over."""
    found: dict[str, list[_Use]] = {}
    for path in sorted(store.root.glob("suites/*/plan.json")):
        try:
            plan = read_json(path)
            known = [*plan["cells"], *plan.get("tuning", {}).get("trials", [])]
            cells = [cell for cell in known if isinstance(cell["inputs"].get("cache"), str)]
        except (StoreError, KeyError, TypeError, AttributeError):
            continue
        for cell in cells:
            use = _Use(path.parent.name, str(cell.get("teacher")), str(cell.get("key")))
            found.setdefault(cell["inputs"]["cache"], []).append(use)
    return found


def _describe(store: Store, folder: Path, uses: Sequence[_Use]) -> Cache:
    inputs = _json(folder / INPUTS)
    bytes_ = size(folder)
    tokens = found if isinstance(found := inputs.get("tokens"), int) else 0
    layout = inputs.get("layout", "hidden")
    state = SET_ASIDE if "." in folder.name else Entry(folder).state()
    return Cache(
        key=folder.name,
        teacher=", ".join(dict.fromkeys(use.teacher for use in uses)) or _parameters(store, inputs.get("teacher")),
        text=str(inputs.get("text", "")),
        tokens=tokens,
        dtype=str(inputs.get("dtype", "")),
        layout=layout if layout == "hidden" else f"{layout} {inputs.get('k')}",
        bytes_=bytes_,
        bytes_a_token=round(bytes_ / tokens, 1) if tokens and state == "ok" else None,
        state="in use" if state != SET_ASIDE and _busy(store, folder.name, uses) else state,
        suites=tuple(dict.fromkeys(use.suite for use in uses)),
        effect=_json(folder / "manifest.json").get("effect"),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except StoreError:
        return {}
    return found if isinstance(found, dict) else {}


def _parameters(store: Store, model: Any) -> str:
    """Return how large a teacher is that no plan names."""
    known = isinstance(model, str) and model.isalnum()  # of what was set aside the inputs may stand where it was
    count = _json(store.entry("models", model).path / DONE).get("parameters") if known else None
    return f"{count:,} parameters" if isinstance(count, int) else f"model {model}" if model else "?"


def _busy(store: Store, key: str, uses: Iterable[_Use]) -> bool:
    """Whether a process writes the cache, or trains a cell that reads it."""
    cells = {use.cell for use in uses if str(use.cell).isalnum()}
    return held(store.root / KIND / key) or any(held(store.entry("cells", cell).path) for cell in cells)


# --- verify -----------------------------------------------------------------------------------------------------------


def verify(store: Store) -> list[dict[str, Any]]:
    """Check every file of every complete cache against its sha256; set the damaged ones aside, as a run would.

    Returns:
        For each: `key`, `state` (ok, unfinished, in use, damaged), `damaged` (names of files) and `set_aside` (the
        folder's new name, or None).
    """
    rows = []
    for folder in _folders(store):
        if "." not in folder.name:
            try:
                with Entry(folder).locked():
                    rows.append(_verify(Entry(folder)))
            except Busy:
                rows.append({"key": folder.name, "state": "in use", "damaged": [], "set_aside": None})
    return rows


def _verify(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {"key": entry.key, "state": entry.state(), "damaged": [], "set_aside": None}
    if row["state"] in ("ok", "damaged"):
        row["damaged"] = entry.damaged()
    if row["damaged"]:
        row |= {"state": "damaged", "set_aside": entry.set_aside().name}
    return row


# --- remove -----------------------------------------------------------------------------------------------------------


def chosen(store: Store, keys: Sequence[str], unused: bool) -> list[Cache]:
    """Return the caches that `rm` would remove: those named, or those that no suite's plan names and nobody uses.

    Raises:
        ConfigError: a key that is no cache of this store.
        StoreError: a named cache is in use.
    """
    found = {cache.key: cache for cache in known(store)}
    if unused:
        return [cache for cache in found.values() if not cache.suites and cache.state != "in use"]
    for key in keys:
        if key not in found:
            raise ConfigError(f"{store.root / KIND} has no cache {key!r:.60}.{did_you_mean(key, found)}")
    busy = [key for key in keys if found[key].state == "in use"]
    if busy:
        raise StoreError(f"in use by a running process, so nothing was removed: {', '.join(busy)}; stop the run first")
    return [found[key] for key in dict.fromkeys(keys)]


def remove(store: Store, cache: Cache) -> None:
    """Delete one cache.

    Raises:
        Busy: it has come into use since it was chosen.
    """
    folder = store.root / KIND / cache.key
    if not NAME.fullmatch(cache.key) or folder.is_symlink() or not folder.is_dir():
        raise StoreError(f"{folder} is no cache, so it is left alone")
    for left_over in folder.parent.iterdir():  # of a removal that was killed
        if GONE_NAME.fullmatch(left_over.name) and not left_over.is_symlink():
            shutil.rmtree(left_over, ignore_errors=True)
    if _busy(store, cache.key, _uses(store).get(cache.key, [])):
        raise Busy(f"{folder} is in use by a running process; stop the run first")
    with Entry(folder).locked(), suppress(FileNotFoundError):  # another clean-up was faster
        drop(folder)
