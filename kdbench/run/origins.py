"""Where a model of a suite comes from, beside a folder and a fresh start: the Hub, a GGUF file, or another's layers.

Planning needs no weights: a model of the Hub is known by repository and commit, its config by what the suite declares.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdbench.distill import convert, facts, gguf, gguf_header, hub, models, warm
from kdbench.errors import ConfigError, one_line
from kdbench.files import digest, sha256_file
from kdbench.suite.hub import Pinned
from kdbench.suite.materials import Kept, Model, TokenizerSpec
from kdbench.suite.schema import Suite


def used(suite: Suite) -> list[str]:
    """Return the models that a suite trains, asks or takes layers from."""
    found = list(dict.fromkeys((*suite.students, *suite.teachers)))
    for name in found:
        kept = suite.models[name].kept
        if kept is not None and kept.source not in found:
            found.append(kept.source)  # the loop goes on over what it adds
    return found


def _place(pinned: Pinned) -> hub.Place:
    return hub.Place(pinned.id, pinned.revision, getattr(pinned, "convert", False))


def vocabulary(spec: TokenizerSpec) -> int:
    """Return the entries of a tokenizer of the Hub: counted if it is in the cache, else as the suite declares.

    Raises:
        ConfigError: it is in the cache and has another number, or neither is known and the Hub does not answer.
    """
    assert spec.hub is not None
    place = _place(spec.hub)
    folder = hub.cached(place, "tokenizer_config.json")
    if folder is None:
        if spec.vocabulary is not None:
            return spec.vocabulary
        try:
            folder = hub.tokenizer(place)
        except ConfigError as error:
            raise ConfigError(
                f"data.tokenizer: {error}. To plan without it, declare its size: `vocabulary: N`"
            ) from None
    found = len(models.load_tokenizer(folder))
    if spec.vocabulary not in (None, found):
        raise ConfigError(
            f"data.tokenizer.vocabulary: expected the {found:,} entries of {place}, found {spec.vocabulary:,}"
        )
    return found


def hub_config(spec: Model, fitting: Callable[[Any, Path | None], Any]) -> Any:
    """Return the config of a model of the Hub: its own if its files are in the cache, else as declared, else asked for.

    Args:
        fitting: refuses a config (and the tokenizer in its folder, if there is one) that does not fit the suite.

    Raises:
        ConfigError: declared and own config differ, or neither is known and the Hub does not answer.
    """
    assert spec.hub is not None
    place = _place(spec.hub)
    folder = hub.cached(place)
    if folder is None and spec.config is not None:
        return fitting(facts.declared(spec.config.model_dump()), None)
    if folder is None:
        try:
            folder = hub.config(place)
        except ConfigError as error:
            raise ConfigError(
                f"{error}. To plan without it, declare its config: `config: {{architecture: …}}`"
            ) from None
    found = models.load_config(folder)
    if spec.config is not None:
        facts.check(spec.config.model_dump(), found)
    return fitting(found, folder)


def kept_config(kept: Kept, source: Any) -> Any:
    """Return the config of a model that keeps some of another one's layers."""
    return warm.shortened(source, kept.layers)


def hub_context(spec: Model) -> dict[str, Any]:
    """Return what the maker of a Hub model must know."""
    assert spec.hub is not None
    declared = spec.config.model_dump() if spec.config else None
    return {"hub": spec.hub.model_dump(exclude={"license"}), "config": declared}


def gguf_file(spec: Model, base: Path) -> Path:
    """Return the file that a model's `gguf:` names.

    Raises:
        ConfigError: it is missing, or its header claims what it does not hold.
    """
    assert spec.gguf is not None
    path = gguf.locate(spec.gguf.model_dump(), base)
    gguf_header.check(path)
    return path


def gguf_config(spec: Model, base: Path) -> Any:
    """Return the config of a model in a GGUF file: as declared, or the file's own.

    Raises:
        ConfigError: it is not declared and the file is missing or not read.
    """
    if spec.config is not None:
        return facts.declared(spec.config.model_dump())
    return gguf.config(gguf_file(spec, base))


def gguf_tokenizer(path: Path) -> Any:
    """Return the tokenizer of a GGUF file.

    Raises:
        ConfigError: as for `gguf.tokenizer`, or something in it cannot be told.
    """
    try:
        return gguf.tokenizer(path)
    except ConfigError:
        raise
    except Exception as error:  # the tokenizers package raises plain ones, and a header may hold anything
        raise ConfigError(f"gguf: {path} holds no tokenizer that can be read: {one_line(error)}") from None


def gguf_place(spec: Model, base: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what decides the content of a GGUF model, which is the file and how it is read, and where it is found.

    Raises:
        ConfigError: the package or file is missing.
    """
    path = gguf_file(spec, base)
    declared = spec.config.model_dump() if spec.config else None
    inputs = {"gguf": sha256_file(path), "source": sha256_file(Path(gguf.__file__))}
    return inputs, {"gguf": str(path), "config": declared}


# --- making -----------------------------------------------------------------------------------------------------------


def tokenizer_folder(context: Mapping[str, Any]) -> Path:
    """Return the folder of a tokenizer of the Hub, downloaded if need be."""
    return hub.tokenizer(hub.Place(**context["hub"]))


def downloaded(context: Mapping[str, Any], folder: Path) -> Path:
    """Return a folder with a Hub model's safetensors: as downloaded, or converted from its pickles into `folder`.

    Raises:
        ConfigError: what `hub.model` and `convert.convert` refuse, or a config that is not the declared one.
    """
    place = hub.Place(**context["hub"])
    source = hub.model(place)
    if context.get("config"):
        facts.check(context["config"], models.load_config(source))
    if hub.whole(source):
        return source
    shutil.rmtree(folder, ignore_errors=True)  # what a conversion that was killed has left
    return convert.convert(source, folder).folder


def dequantised(context: Mapping[str, Any], expected: str) -> Any:
    """Return the model of a GGUF file in fp32.

    Raises:
        ConfigError: the file is not the one that was planned for, not read, or its config is not the declared one.
    """
    path = Path(context["gguf"])
    check_unchanged(sha256_file(path), expected, path)
    gguf_header.check(path)
    if context["config"]:
        facts.check(context["config"], gguf.config(path))
    return gguf.model(path)


def shorten(source: Path, layers: list[int]) -> Any:
    """Return a model made of a saved one's layers."""
    return warm.keep_layers(models.load(source, models.Runtime("cpu", "float32", 1)), layers)


def take_over(source: Path, folder: Path, link: bool = False) -> None:
    """Copy a model's folder, without what could run code.

    Args:
        link: link the files where the disk allows it; for sources that are never written in place.

    Raises:
        ConfigError: it is not a folder that kdbench reads.
    """
    models.check_folder(source)
    copy = _link_or_copy if link else shutil.copy2
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=_not_the_model, copy_function=copy)


def check_unchanged(found: Any, planned: Any, path: Path) -> None:
    """Refuse files of a user's that are not those whose fingerprint is in the key.

    Raises:
        ConfigError: they are others.
    """
    if found != planned:
        raise ConfigError(changed(str(path), found, planned))


def changed(what: str, found: Any, planned: Any) -> str:
    """Say that something is not what was planned for, with both fingerprints."""
    then, now = (one if isinstance(one, str) else digest(one) for one in (planned, found))
    return f"{what} has changed since this run was planned (planned {then:.12}, found {now:.12}); start the run again"


def tokenizer_files(folder: Path) -> dict[str, str]:
    """Return name → sha256 of the files that make up a saved tokenizer."""
    present = [path for path in sorted(folder.glob("*")) if path.is_file()]
    whole = any(path.name == "tokenizer.json" for path in present)
    return {p.name: sha256_file(p) for p in present if "token" in p.name or (not whole and p.name in hub.TOKENIZER)}


def _not_the_model(folder: str, names: list[str]) -> set[str]:
    """Name what is left behind: pickles, code, and folders, such as a trainer's checkpoints."""
    pickles = shutil.ignore_patterns("*.bin", "*.pt", "*.pth", "*.py")(folder, names)
    return pickles | {name for name in names if (Path(folder) / name).is_dir()}


def _link_or_copy(source: str, target: str) -> None:
    """Take over a file without doubling gigabytes where the disk allows it; sha256 sums guard it either way."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(Path(source).resolve(), target)  # the Hub's cache holds links to blobs
    except OSError:
        shutil.copy2(source, target)
