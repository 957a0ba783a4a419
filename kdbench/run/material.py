"""What a suite is read from, plain text or instruction records: for the planner before it is made, for makers after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.distill import data, instructions, records, templates
from kdbench.errors import ConfigError
from kdbench.files import digest, sha256_file
from kdbench.run import origins
from kdbench.run.work import Work
from kdbench.suite.materials import Data


@dataclass(frozen=True)
class Material:
    """What is known of a suite's text before anything is made.

    Attributes:
        documents: the text; empty where it is on the Hub, so that planning needs no network.
        fingerprint: a sha256 of it, or of the Hub's commit.
        train_bytes: of the train split, which bounds the tokens that can be cut from it; None where that is not known.
    """

    documents: list[data.Document]
    fingerprint: str
    train_bytes: int | None


def look(about: Data, base: Path) -> Material:
    """Read what lies on this machine.

    Raises:
        ConfigError: as for `data.read_corpus`, `data.split` and `records.load`.
    """
    if about.instructions is None:
        documents = data.read_corpus(_plain(about)["corpus"], base)
        train = data.split(documents)["train"]
        return Material(documents, data.fingerprint(documents), sum(len(one.text.encode()) for one in train))
    spec = about.instructions.model_dump()
    if about.instructions.hub:
        return Material([], records.fingerprint(spec, None), None)
    found = _load(spec, base)
    return Material([record.document for record in found.all], records.fingerprint(spec, found), None)


def _load(spec: dict[str, Any], base: Path) -> records.Records:
    """Load instruction records from what ends: a pipe would be waited for. (The source of `records` stands in keys.)"""
    if spec["file"] is not None and (path := (base / spec["file"]).resolve()).exists() and not path.is_file():
        raise ConfigError(f"data.instructions.file: expected a file of records at {path}, found something else")
    return records.load(spec, base)


def absent(about: Data, base: Path) -> Path | None:
    """Return where the suite's records should lie, if it names a file and there is none."""
    if about.instructions is None or about.instructions.file is None:
        return None
    path = (base / about.instructions.file).resolve()
    return None if path.exists() else path


def context(about: Data, base: Path) -> dict[str, Any]:
    """Return what makers find the text by; it stays out of keys."""
    return _plain(about) | {"base": str(base)}


def _plain(about: Data) -> dict[str, Any]:
    if about.instructions is not None:
        return {"instructions": about.instructions.model_dump()}
    assert about.corpus is not None
    return {"corpus": about.corpus.model_dump()}


def text_inputs(about: Data) -> dict[str, Any]:
    """Return what decides, beside text and tokenizer, which rows result; nothing for plain text."""
    if about.instructions is None:
        return {}
    sources = (records, templates, instructions)
    code = digest([sha256_file(Path(str(module.__file__))) for module in sources])
    return {"instructions": about.instructions.model_dump()["template"], "source": code}


def reach(about: Data, base: Path) -> None:
    """Load what is on the Hub, so that a network that is not there is said once, before any work starts."""
    if about.instructions is not None and about.instructions.hub:
        records.load(about.instructions.model_dump(), base)


def splits(work: Work) -> dict[str, list[data.Document]]:
    """Return the documents of each split; an instruction record counts as one.

    Raises:
        ConfigError: when the text is not what the job was planned for.
    """
    base = Path(work.context["base"])
    if "instructions" in work.context:
        found = _records(work).splits
        return {name: [record.document for record in members] for name, members in found.items()}
    documents = data.read_corpus(work.context["corpus"], base)
    _check(data.fingerprint(documents), work, "corpus")
    return data.split(documents)


def _records(work: Work) -> records.Records:
    spec = work.context["instructions"]
    found = _load(spec, Path(work.context["base"]))
    _check(records.fingerprint(spec, found), work, "instructions")
    return found


def _check(found: str, work: Work, name: str) -> None:
    if found != work.inputs["corpus"]:
        raise ConfigError(origins.changed(f"data.{name}: the text", found, work.inputs["corpus"]))


def rows(work: Work, tokenizer: Any) -> tuple[dict[str, data.Blocks], dict[str, Any]]:
    """Tokenise every split; return the rows, and facts: of instructions, how many records were read, cut and dropped.

    Raises:
        ConfigError: when a split has no record that can be tokenised.
    """
    length, pack = work.inputs["length"], work.inputs.get("pack", False)
    blocks: dict[str, data.Blocks] = {}
    if "instructions" not in work.context:
        for name, documents in splits(work).items():
            work.hooks.stage(f"tokenising {name}")
            blocks[name] = data.tokenise(documents, tokenizer, length, pack)
        return blocks, {}
    found = _records(work)
    facts: dict[str, Any] = {"records": found.counts}
    for name, members in found.splits.items():
        work.hooks.stage(f"tokenising {name}")
        blocks[name], facts[f"records_{name}"] = instructions.tokenise(
            members, tokenizer, work.inputs["instructions"], length, pack
        )
        if not len(blocks[name]):
            raise ConfigError(f"{records.WHERE}: no record of {name} can be tokenised: {facts[f'records_{name}']}")
    return blocks, facts
