"""A tiny Llama with a tokenizer of its own, written to a GGUF file as llama.cpp's converter writes one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
import torch

CHAT = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def train_bpe(texts: Iterable[str], size: int) -> Any:
    """Return a byte-level BPE in which each digit stands alone, as SmolLM's does."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bare.train_from_iterator(texts, trainer)
    return bare


def tiny_llama(vocabulary: int, seed: int = 0, tied: bool = True) -> Any:
    """Return a Llama of three layers with grouped queries, four heads on two."""
    from transformers import LlamaConfig

    from kdbench.distill import models

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, rms_norm_eps=1e-5, tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0}, bos_token_id=1, eos_token_id=2,
        pad_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    return models.make(config, seed).eval()


def write_gguf(path: Path, model: Any, bpe: Any, kind: str = "F32", **changes: Any) -> Path:
    """Write a model and its tokenizer.

    Args:
        kind: of the matrices, a name of `gguf.GGMLQuantizationType`; norms stay F32.
        changes: values of the header in place of the usual ones: `pre`, `tokenizer`, `architecture`, `partial` (numbers
            of a head that are turned); and `tensor`, a name under which one more tensor is written.
    """
    import gguf

    config = model.config
    name = changes.get("architecture", "llama")
    writer = gguf.GGUFWriter(path, name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(changes.get("partial", config.head_dim))
    _write_tokenizer(writer, bpe, changes)
    for full, values in model.state_dict().items():
        if full != "lm_head.weight" or not config.tie_word_embeddings:
            _add(writer, _name(full), _ordered(full, values, config), kind)
    if "tensor" in changes:
        _add(writer, changes["tensor"], numpy.ones(4, dtype=numpy.float32), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_tokenizer(writer: Any, bpe: Any, changes: dict[str, Any]) -> None:
    told = json.loads(bpe.to_str())["model"]
    pieces = sorted(told["vocab"], key=told["vocab"].get)
    writer.add_tokenizer_model(changes.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(changes.get("pre", "smollm"))
    writer.add_token_list(pieces)
    writer.add_token_types([3 if piece in SPECIAL else 1 for piece in pieces])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in told["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)


def _name(full: str) -> str:
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem = full.removesuffix(".weight")
    if stem in outer:
        return f"{outer[stem]}.weight"
    _, _, number, inner = stem.split(".", 3)
    return f"blk.{number}.{NAMES[inner]}.weight"


def _ordered(full: str, values: torch.Tensor, config: Any) -> numpy.ndarray:
    """Bring queries and keys into llama.cpp's order, as its `LlamaModel.permute` does."""
    array = values.detach().float().numpy()
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(full.split(".")[-2])
    if heads is None:
        return array
    rows, width = array.shape
    return array.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def _add(writer: Any, name: str, values: numpy.ndarray, kind: str) -> None:
    import gguf

    chosen = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
    writer.add_tensor(name, gguf.quantize(numpy.ascontiguousarray(values), chosen), raw_dtype=chosen)
