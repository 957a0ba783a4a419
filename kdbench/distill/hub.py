"""Models and tokenizers of the Hugging Face Hub: a pinned commit, tensors and settings only, one clear error.

Files come into the Hub's own cache (`HF_HOME`), so suites and other programs share them. Code of a repository is never
fetched. `HF_HUB_OFFLINE=1` is honoured: then the cache is all there is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.errors import ConfigError
from kdbench.files import read_text

CONFIG = ("config.json", "generation_config.json")
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja",
)  # fmt: skip
INDEX, PICKLED_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
_SHARD = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_PICKLE = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
TIMEOUT_S = 10.0  # for the first answer of the Hub; none means that it cannot be reached


@dataclass(frozen=True)
class Place:
    """A repository at a commit; `convert`: whether pickles will do where there are no safetensors."""

    id: str
    revision: str
    convert: bool = False

    def __str__(self) -> str:
        return f"{self.id} at {self.revision[:12]}"


def cached(place: Place, name: str = "config.json") -> Path | None:
    """Return the folder of a repository in the Hub's cache, if it holds the named file; asks nobody."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(place.id, name, revision=place.revision)
    return Path(found).parent if isinstance(found, str) else None


def model(place: Place) -> Path:
    """Return a folder with a model's config, tokenizer and weights, downloaded where it is not in the cache yet.

    Raises:
        ConfigError: the Hub is off or cannot be reached, there is no such repository or commit, it is gated, or its
            weights are pickles and `convert` is not set.
    """
    folder = cached(place)
    if folder is not None and (whole(folder) or (place.convert and whole_pickles(folder))):
        return folder
    names = _listed(place)
    return _download(place, [*_named(names, (*CONFIG, *TOKENIZER)), *_weights(place, names)])


def tokenizer(place: Place) -> Path:
    """Return a folder with a repository's tokenizer and config, downloaded where it is not in the cache yet."""
    folder = cached(place, "tokenizer_config.json")
    if folder is not None and cached(place):
        return folder
    wanted = _named(_listed(place), TOKENIZER)
    if not wanted:
        raise ConfigError(f"expected a tokenizer in {place}, found no file of one")
    return _download(place, [*wanted, *CONFIG])


def config(place: Place) -> Path:
    """Return a folder with a repository's config and tokenizer, downloaded where it is not in the cache yet."""
    return cached(place) or _download(place, _named(_listed(place), (*CONFIG, *TOKENIZER)))


def whole(folder: Path) -> bool:
    """Whether a folder holds all shards of its safetensors."""
    return _all_shards(folder, INDEX) if (folder / INDEX).is_file() else any(folder.glob("*.safetensors"))


def whole_pickles(folder: Path) -> bool:
    """Whether a folder holds all shards of a pickled model."""
    indexed = (folder / PICKLED_INDEX).is_file()
    return _all_shards(folder, PICKLED_INDEX) if indexed else (folder / "pytorch_model.bin").is_file()


def _all_shards(folder: Path, index: str) -> bool:
    try:
        shards = set(json.loads(read_text(folder / index))["weight_map"].values())
        return all((folder / Path(shard).name).is_file() for shard in shards)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def _named(names: Collection[str], wanted: Iterable[str]) -> list[str]:
    return [name for name in wanted if name in names]


def _weights(place: Place, names: Collection[str]) -> list[str]:
    """Choose the files of the weights: safetensors, or pickles where that was asked for."""
    shards = [name for name in names if _SHARD.fullmatch(name)]
    if INDEX in names:  # some repositories hold the whole model in one file beside its shards
        return [INDEX, *(name for name in shards if name != "model.safetensors")]
    if shards:
        return shards
    pickles = [name for name in names if _PICKLE.fullmatch(name)]
    if pickles and place.convert:
        return [*pickles, *_named(names, [PICKLED_INDEX])]
    if pickles:
        raise ConfigError(
            f"expected safetensors in {place}, found pickles {pickles}, which may run code. Write `convert: true` "
            "beside the revision to have them read as tensors only, or convert a folder yourself: "
            "`kdbench convert SRC DST`, and name DST with `path:`"
        )
    raise ConfigError(f"expected weights (model*.safetensors) in {place}, found none")


def _listed(place: Place) -> list[str]:
    """Return the names of the files at a repository's top; the first question to the Hub, answered soon or never."""
    from huggingface_hub import HfApi

    with _HubErrors(place):
        found = HfApi().model_info(place.id, revision=place.revision, timeout=TIMEOUT_S)
        return [one.rfilename for one in found.siblings or () if "/" not in one.rfilename]


def _download(place: Place, names: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    with _HubErrors(place):
        return Path(snapshot_download(place.id, revision=place.revision, allow_patterns=names, etag_timeout=TIMEOUT_S))


class _HubErrors:
    """Turn what the Hub's client raises into one sentence that says what to do."""

    def __init__(self, place: Place):
        self.place = place

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, ConfigError):
            raise ConfigError(_explained(self.place, error)) from None


def _explained(place: Place, error: Exception) -> str:
    from huggingface_hub import constants, errors

    online = f"run `hf download {place.id} --revision {place.revision}` where there is a network"
    if constants.is_offline_mode():
        return (
            f"{place} is not whole in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set, so the Hub is not "
            f"asked; unset it, or {online} and bring the cache here"
        )
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{place} is gated: accept its terms on {constants.ENDPOINT}/{place.id}, then log in with `hf auth login` "
            "or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the Hub has no commit {place.revision} of {place.id}; its page shows them under Files, History"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the Hub has no repository {place.id}, or it is private: log in with `hf auth login` or set HF_TOKEN"
    reason = (str(error).strip().splitlines() or [""])[0]
    return (
        f"the Hub at {constants.ENDPOINT} cannot be reached for {place} ({type(error).__name__}: {reason:.200}); "
        f"check the network, or {online}"
    )
