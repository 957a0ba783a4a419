"""What is odd about the published families, on tiny saved models of theirs.

python -m pytest tests/distill/test_quirks.py
"""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as vocabularies
from transformers import PreTrainedTokenizerFast

from kdbench.distill import data, models
from kdbench.errors import ConfigError
from tests.distill.saved import FAMILIES, VOCABULARY, made

IDS = torch.arange(3, 11)[None]
RUNTIME = models.Runtime("cpu", "float32", 1)


def loaded(model, folder):
    model.save_pretrained(folder)
    return models.load(folder, RUNTIME)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_a_body_and_a_head_that_give_its_own_logits(family, tmp_path):
    model = loaded(made(family), tmp_path)
    with torch.no_grad():
        ours = models.body(model, IDS) @ models.head(model, VOCABULARY).t()
        assert torch.allclose(ours, model(IDS).logits[..., :VOCABULARY], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_learning_through_body_and_head_gives_the_models_own_gradients(family):
    """OPT-350m's projections, tied and untied heads: nothing is left out of the graph."""

    def gradients(logits_of):
        model = made(family)
        loss = torch.nn.functional.cross_entropy(logits_of(model)[0, :-1, :VOCABULARY], IDS[0, 1:])
        loss.backward()
        return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}

    ours = gradients(lambda model: models.body(model, IDS) @ model.get_output_embeddings().weight.t())
    theirs = gradients(lambda model: model(IDS).logits)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


def test_what_enters_the_head_of_opt_350m_is_narrower_than_its_body():
    model = made("opt-350m")
    assert models.hidden_size(model.config) == 8 == models.body(model, IDS).shape[-1]
    assert model.config.hidden_size == 16


def test_two_paddings_of_one_vocabulary_give_one_distribution():
    """Pythia-6.9B has 50,432 rows, the smaller ones 50,304, and their tokenizer 50,277 entries."""
    narrow, wide = made("pythia"), made("pythia", vocab_size=80)
    state = narrow.state_dict()
    rows = narrow.config.vocab_size
    padded = [name for name, one in state.items() if one.ndim == 2 and len(one) == rows]
    assert len(padded) == 2, "the embeddings and the head"
    for name in padded:
        state[name] = torch.cat([state[name], torch.randn(16, 16, generator=torch.Generator().manual_seed(1))])
    wide.load_state_dict(state)
    logits = [models.body(one, IDS) @ models.head(one, VOCABULARY).t() for one in (narrow, wide)]
    assert logits[0].shape == logits[1].shape == (1, 8, VOCABULARY)
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("gemma2", {"final_logit_softcapping": 0.5, "head_dim": 8, "query_pre_attn_scalar": 8}),
        ("granite", {"logits_scaling": 4.0}),
        ("cohere", {"logit_scale": 0.0625}),
    ],
)
def test_logits_that_are_scaled_or_capped_after_the_head_are_refused_when_the_model_is_loaded(
    architecture, fields, tmp_path
):
    size = FAMILIES["llama"] | {"architecture": architecture} | fields
    from kdbench.distill import facts

    model = models.make(facts.declared(size), 0)
    with torch.no_grad():  # weights of a real model's size, so that capping and scaling show
        model.get_output_embeddings().weight.mul_(40)
    with pytest.raises(ConfigError, match=f"{architecture} changes its logits after the output head"):
        loaded(model, tmp_path)


@pytest.fixture
def llama_tokenizer():
    """BOS 1 and EOS 2 differ, there is no padding token, and encoding adds BOS by itself unless told not to."""
    words = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", "the", "nation", "has", "peace"])}
    tokenizer = Tokenizer(vocabularies.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_text_of_a_llama_starts_with_bos_ends_with_eos_and_is_filled_up_unseen(llama_tokenizer):
    documents = [data.Document("one", "the nation has peace\n\nthe peace")]
    blocks = data.tokenise(documents, llama_tokenizer, 12)
    assert blocks.ids.tolist() == [[1, 3, 4, 5, 6, 1, 3, 6, 2, 2, 2, 2]]
    assert blocks.mask.tolist() == [[False] + [True] * 8 + [False] * 3]
