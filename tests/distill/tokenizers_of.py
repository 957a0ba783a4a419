"""Small real tokenizers of the kinds that instruction data meets, each trained here on a few sentences."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction:\nName three colours of the rainbow.\n\n### Input:\nred\n\n### Response:Red, green and blue.",
    "A chat between a curious user and an artificial intelligence assistant. USER: What is it? ASSISTANT: It is good.",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KINDS = ("opt", "neox", "llama", "chatml")


def _bytes(special: list[str]) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    return backend


def _pieces(special: list[str]) -> Tokenizer:
    """As Llama's: a dummy space before every text, spaces as ▁, bytes for what is unknown."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fallback = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[*special, *fallback], show_progress=False)
    backend.train_from_iterator(TEXT, trainer)
    return backend


def _begins_with(token: str, backend: Tokenizer) -> None:
    backend.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, backend.token_to_id(token))]
    )


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer: OPT's (BOS = EOS, put before a text), GPT-NeoX's (one token for all), Llama's, ChatML's."""
    if kind == "opt":
        backend = _bytes(["<pad>", "</s>"])
        _begins_with("</s>", backend)
        names = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}
    elif kind == "neox":
        backend = _bytes(["<|endoftext|>"])
        names = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    elif kind == "llama":
        backend = _pieces(["<unk>", "<s>", "</s>"])
        _begins_with("<s>", backend)
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    else:
        backend = _bytes(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
        names |= {"additional_special_tokens": ["<|im_start|>"]}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)
