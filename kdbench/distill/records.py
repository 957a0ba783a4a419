"""Instruction records: read them, drop what cannot be learnt from, and split them so that no prompt is on two sides.

A record's split is a function of its own prompt, so that none moves when others are added, and the same prompt with two
responses never stands in train and test.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.distill.data import SPLITS, Document, package_folder
from kdbench.errors import ConfigError, did_you_mean
from kdbench.files import digest, read_text

WHERE = "data.instructions"
PROBE_S = 10.0
SUFFIXES = (".json", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Record:
    """One instruction with its response; `input` is empty where there is none."""

    instruction: str
    input: str
    response: str

    @property
    def prompt_key(self) -> str:
        """A hash of what is asked, whatever its case and spaces."""
        asked = [" ".join(part.split()).casefold() for part in (self.instruction, self.input)]
        return hashlib.sha256("\0".join(asked).encode()).hexdigest()

    @property
    def document(self) -> Document:
        """The record as plain text, for tokenizers and for tasks made from held-out text."""
        parts = (self.instruction, self.input, self.response)
        return Document(self.prompt_key[:16], "\n\n".join(part for part in parts if part))


@dataclass(frozen=True)
class Records:
    """The records of a source that can be learnt from, by split, and what was left out.

    counts: `read`; dropped: `incomplete` (a column missing, or no text), `no_instruction`, `no_response`, `duplicate`
        (the same prompt and response again); kept: `same_prompt` (a prompt that another record has too).
    """

    splits: dict[str, list[Record]]
    counts: dict[str, int]

    @property
    def all(self) -> list[Record]:
        """Every record, train first."""
        return [record for name in SPLITS for record in self.splits[name]]


def load(spec: Mapping[str, Any], base: Path) -> Records:
    """Read the records that `data.instructions` describes.

    Args:
        spec: the section as plain data.
        base: folder to which `file` is relative.

    Raises:
        ConfigError: the source cannot be reached or read, has other columns, or leaves a split empty.
    """
    return split(*clean(_rows(spec, base), spec["fields"]), spec["dev"], spec["test"])


def fingerprint(spec: Mapping[str, Any], found: Records | None) -> str:
    """Return a sha256 over the records; of a Hub data set over its commit, so that planning needs no network.

    Args:
        found: what `load` returned; not needed for the Hub.
    """
    shares = [spec["dev"], spec["test"]]
    if found is None or spec["hub"]:
        return digest(["hub", spec["hub"], spec["fields"], shares])
    return digest(["records", [[one.instruction, one.input, one.response] for one in found.all], shares])


def clean(rows: Iterable[Any], columns: Mapping[str, str | None]) -> tuple[list[Record], dict[str, int]]:
    """Turn rows into records; drop and count those that cannot be learnt from.

    Raises:
        ConfigError: when a column that the suite names stands in no row.
    """
    rows = list(rows)
    _check_columns(rows, columns)
    counts: Counter[str] = Counter(read=len(rows))
    kept: list[Record] = []
    seen: set[tuple[str, str]] = set()
    prompts: Counter[str] = Counter()
    for row in rows:
        record = _record(row, columns)
        why = "incomplete" if record is None else _unfit(record)
        if why is None and record is not None:
            identity = record.prompt_key, record.response
            why = "duplicate" if identity in seen else None
            seen.add(identity)
        if why is not None or record is None:
            counts[str(why)] += 1
            continue
        prompts[record.prompt_key] += 1
        counts["same_prompt"] += prompts[record.prompt_key] > 1
        kept.append(record)
    return kept, {name: count for name, count in counts.items() if count}


def _record(row: Any, columns: Mapping[str, str | None]) -> Record | None:
    if not isinstance(row, Mapping):
        return None
    extra = row.get(columns["input"]) if columns["input"] else None
    values = (row.get(columns["instruction"]), "" if extra is None else extra, row.get(columns["response"]))
    return Record(*(value.strip() for value in values)) if all(map(_is_text, values)) else None


def _is_text(value: Any) -> bool:
    """Whether a value is text that can be written: JSON may hold half a character (a lone surrogate)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unfit(record: Record) -> str | None:
    if not record.instruction:
        return "no_instruction"
    return None if record.response else "no_response"


def _check_columns(rows: Sequence[Any], columns: Mapping[str, str | None]) -> None:
    known = {str(name) for row in rows if isinstance(row, Mapping) for name in row}
    for role in ("instruction", "response"):
        if columns[role] not in known:
            raise ConfigError(
                f"{WHERE}.fields.{role}: expected a column {columns[role]!r}, found {sorted(known)[:12] or 'no record'}"
                f".{did_you_mean(str(columns[role]), known)}"
            )


def split(records: Sequence[Record], counts: dict[str, int], dev: float, test: float) -> Records:
    """Hold out shares by a hash of the prompt.

    Raises:
        ConfigError: when nothing is left for a split.
    """
    parts: dict[str, list[Record]] = {name: [] for name in SPLITS}
    for record in records:
        place = int(record.prompt_key[:13], 16) / 16**13
        parts["test" if place < test else "dev" if place < test + dev else "train"].append(record)
    if empty := [name for name, members in parts.items() if not members]:
        raise ConfigError(
            f"{WHERE}: expected enough records for train, dev ({dev:g}) and test ({test:g}), found {len(records):,} "
            f"that can be used (of {counts['read']:,}): nothing is left for {', '.join(empty)}; raise the shares"
        )
    return Records(parts, counts | {name: len(members) for name, members in parts.items()})


def _rows(spec: Mapping[str, Any], base: Path) -> list[Any]:
    if spec["hub"]:
        return _from_hub(spec["hub"])
    if spec["file"]:
        return _from_file((base / spec["file"]).resolve())
    folder = package_folder(spec["package"], WHERE)
    paths = sorted(path for path in folder.glob(spec["files"]) if path.is_file())
    if not paths:
        raise ConfigError(f"{WHERE}.files: expected record files, found none matching {spec['files']!r} in {folder}")
    return [row for path in paths for row in _from_file(path)]


def _from_file(path: Path) -> list[Any]:
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{WHERE}: expected a file ending in {', '.join(SUFFIXES)}, found {path}")
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            return parquet.read_table(path).to_pylist()
        text = read_text(path)
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        found = json.loads(text)
    except FileNotFoundError:
        raise ConfigError(
            f"{WHERE}: expected records at {path}, found no such file (`kdbench plan SUITE --device-name H100` plans "
            "without any text)"
        ) from None
    except Exception as error:  # pyarrow's are of many kinds
        raise ConfigError(f"{WHERE}: {path} cannot be read: {error}") from None
    if not isinstance(found, list):
        raise ConfigError(f"{WHERE}: expected a list of records in {path}, found {type(found).__name__}")
    return found


def _from_hub(hub: Mapping[str, Any]) -> list[Any]:
    """Read a data set at its commit, downloaded once by Hugging Face's own tools into their cache."""
    import datasets

    try:
        folder = _snapshot(hub["id"], hub["revision"])
        return datasets.load_dataset(folder, hub["config"], split=hub["split"]).to_list()
    except Exception as error:  # no network, data set, commit or split: errors of several libraries
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ConfigError(
            f"{WHERE}.hub: {hub['id']} at {hub['revision'][:12]} cannot be loaded: {reason:.300} (is the network "
            "there, and the data set public? Without one, download it before and set HF_HUB_OFFLINE=1, or use `file:`)"
        ) from None


def _snapshot(name: str, revision: str) -> str:
    """Return the folder of a data set's files, without its code.

    The cache alone is trusted only where the user says so: a download that was cut off leaves some of the files there.
    The description is asked for first, since a download tries half a minute before it misses the network.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    if not constants.HF_HUB_OFFLINE:
        HfApi().dataset_info(name, revision=revision, timeout=PROBE_S)
    return snapshot_download(name, repo_type="dataset", revision=revision, ignore_patterns=["*.py"])
