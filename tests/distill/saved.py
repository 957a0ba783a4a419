"""Tiny models with the quirks of the published families, saved as their files are."""

from __future__ import annotations

from pathlib import Path

from kdbench.distill import facts, models

VOCABULARY = 61
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 4, "vocab_size": 64}
LLAMA = SIZES | {"intermediate_size": 32, "num_key_value_heads": 2}
FAMILIES = {
    "opt": {"architecture": "opt", "ffn_dim": 32, "word_embed_proj_dim": 16} | SIZES,
    # OPT-350m: embeddings narrower than the body, projected in and out, and norms after the sublayers
    "opt-350m": {"architecture": "opt", "ffn_dim": 32, "word_embed_proj_dim": 8, "do_layer_norm_before": False} | SIZES,
    "pythia": {"architecture": "gpt_neox", "intermediate_size": 32} | SIZES,  # an untied head, parallel residuals
    "llama": {"architecture": "llama"} | LLAMA,
    "llama-tied": {"architecture": "llama", "tie_word_embeddings": True} | LLAMA,
    "qwen3": {"architecture": "qwen3", "head_dim": 8} | LLAMA,
    "gpt2": {"architecture": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 4, "vocab_size": 64},
}


def made(family: str, seed: int = 0, **changes):
    """Return a small random model of a family."""
    return models.make(facts.declared(FAMILIES[family] | changes), seed).eval()


def save_pickled(model, folder: Path) -> Path:
    """Save a model as its family's older files are: config.json and pytorch_model.bin."""
    import torch

    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder
