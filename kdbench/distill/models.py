"""Models: load one safely, make one, and take it apart into a body (hidden states) and an output head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.distill import bounds
from kdbench.errors import ConfigError, did_you_mean, one_line
from kdbench.files import digest, sha256_file
from kdbench.seeding import fenced

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Runtime:
    """Where and in what precision numbers are made."""

    device: str
    precision: str
    threads: int


def allow_tf32(inputs: Mapping[str, Any]) -> None:
    """Let a GPU's fp32 products, those of the output heads, take TF32 where a job asks for bf16: it has more bits.

    In full fp32 they would take a dozen times as long as all others of the step.
    """
    import torch

    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if inputs.get("precision") == "bfloat16" else "highest")


def resolve_runtime(device: str, precision: str, threads: int) -> Runtime:
    """Turn `auto` into what this machine has: bf16 on a GPU that has it, else fp32; CUDA before MPS before CPU.

    Raises:
        ConfigError: when a device is asked for that is not there.
    """
    import torch

    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if present[name])
    if not present[device]:
        raise ConfigError(
            f"device: expected one that is here, found {device!r}. Here: {[d for d, ok in present.items() if ok]}"
        )
    if precision == "auto":
        precision = "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return Runtime(device, precision, threads)


def architecture_config(init: dict[str, Any], vocabulary: int, length: int, ids: tuple[int, int], dropout: bool) -> Any:
    """Return the transformers config of a model to be made.

    Args:
        init: `architecture` and any config field of it.
        vocabulary, length: size of the tokenizer, and of a block.
        ids: EOS (= BOS) and PAD.

    Raises:
        ConfigError: unknown architecture or field, with a did-you-mean.
    """
    from transformers import AutoConfig

    settings = {key: value for key, value in init.items() if key not in ("architecture", "seed")}
    name = init["architecture"]
    plain = plain_config("init", name, settings)
    defaults = {
        "vocab_size": vocabulary,
        "max_position_embeddings": max(length, 512),
        "bos_token_id": ids[0],
        "eos_token_id": ids[0],
        "pad_token_id": ids[1],
    }
    defaults |= {
        key: settings["hidden_size"] for key in ("word_embed_proj_dim",) if key in plain and "hidden_size" in settings
    }
    if not dropout:
        defaults |= {key: 0.0 for key in plain if "dropout" in key or key == "layerdrop"}
    try:
        return AutoConfig.for_model(name, **(defaults | settings))
    except Exception as error:  # the config classes validate in ways of their own
        raise ConfigError(f"init: {name} refuses these fields: {one_line(error)}") from None


def plain_config(where: str, architecture: str, settings: Iterable[str]) -> dict[str, Any]:
    """Return an architecture's config as transformers has it by default, if it has all these fields.

    Raises:
        ConfigError: unknown architecture or field, with a did-you-mean; `where` names the suite's section.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    if architecture not in CONFIG_MAPPING:
        hint = did_you_mean(architecture, CONFIG_MAPPING.keys())
        raise ConfigError(f"{where}.architecture: unknown model type {architecture!r}.{hint}")
    plain = AutoConfig.for_model(architecture).to_dict()
    unknown = [
        f"unknown field {key!r} of {architecture}.{did_you_mean(key, plain)}" for key in settings if key not in plain
    ]
    if unknown:
        raise ConfigError(f"{where}: {'; '.join(unknown)}")
    return plain


def make(config: Any, seed: int) -> nn.Module:
    """Make a causal language model with random weights drawn from `seed`; the global RNG is left alone."""
    with fenced(seed, "init"):
        return _of(config)


def _of(config: Any, refusals: tuple[type[Exception], ...] = (ValueError, KeyError, ZeroDivisionError)) -> nn.Module:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_config(config)
    except refusals as error:
        raise ConfigError(f"init: {config.model_type} cannot be made: {one_line(error)}") from None


def check_folder(folder: Path) -> None:
    """Refuse a model folder that is missing, or whose weights are pickles or remote code.

    Raises:
        ConfigError: saying which file was expected.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"expected a model folder with config.json, found none at {folder}")
    if not list(folder.glob("*.safetensors")):
        pickles = [path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"))]
        found = f"pickles {pickles}, which may run code" if pickles else "no weights"
        raise ConfigError(f"expected safetensors in {folder}, found {found}")


def folder_fingerprint(folder: Path) -> str:
    """Return one sha256 over a model folder's config and weights."""
    check_folder(folder)
    return digest(
        {path.name: sha256_file(path) for path in sorted([folder / "config.json", *folder.glob("*.safetensors")])}
    )


def load(
    folder: Path, runtime: Runtime, dtype: torch.dtype | None = None, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Load a causal language model from a folder: safetensors only, no remote code, no network.

    Args:
        options: for `from_pretrained`, where the model is not simply put on the runtime's device.

    Raises:
        ConfigError: when the folder is not such a model, or its head cannot be told from its body.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from kdbench.distill.memory import is_out_of_memory

    check_folder(folder)
    bounds.check(load_config(folder), str(folder))
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
            **(options or {}),
        )
    except Exception as error:  # of the architecture, of safetensors, of whoever spreads or quantises
        if is_out_of_memory(error):
            raise
        raise ConfigError(f"the model in {folder} cannot be loaded: {one_line(error)}") from None
    _check_whole(folder, told)
    model = model.eval() if options else model.to(runtime.device).eval()
    if options:
        _bring_head(model, torch.device(runtime.device))
    check_head(model)
    return model


def _check_whole(folder: Path, told: Mapping[str, Any]) -> None:
    """Refuse weights that are not those of the config: transformers would draw the others at random."""
    for name, saved, wanted in sorted(told["mismatched_keys"]):
        raise ConfigError(
            f"the model in {folder} cannot be loaded: its config.json asks for {name} of {tuple(wanted)}, its "
            f"safetensors hold one of {tuple(saved)}; they are not of one model"
        )
    if absent := sorted(told["missing_keys"]):
        raise ConfigError(
            f"the model in {folder} cannot be loaded: its config.json asks for {len(absent):,} tensors that its "
            f"safetensors lack, such as {absent[0]}; they are not of one model"
        )


def _bring_head(model: Any, device: torch.device) -> None:
    """Put the head of a spread model on the device where its hidden states are read, if it lies elsewhere."""
    import torch

    output = model.get_output_embeddings()
    if output is None or (output.weight.device.type == device.type and output.weight.device.index in (None, 0)):
        return
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
    from accelerate.utils import align_module_device

    with align_module_device(output, device):
        weight = output.weight.detach().clone()
    remove_hook_from_module(output)
    output.weight = torch.nn.Parameter(weight, requires_grad=False)
    add_hook_to_module(output, AlignDevicesHook(device))  # what comes to it is moved there


def load_tokenizer(folder: Path) -> Any:
    """Load a saved tokenizer; no network, no remote code."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers package raises plain ones
        raise ConfigError(f"expected a saved tokenizer in {folder}: {error}") from None


def check_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Refuse a model that came with another tokenizer than the suite's; a folder without one passes.

    Raises:
        ConfigError: naming the first entry that differs.
    """
    theirs = entries(folder)
    if theirs is not None:
        check_entries(folder, theirs, tokenizer.get_vocab())


def entries(folder: Path) -> dict[str, int] | None:
    """Return the entries of the tokenizer that lies beside a model; None where there is none."""
    return load_tokenizer(folder).get_vocab() if list(folder.glob("tokenizer*")) else None


def check_entries(folder: Path, theirs: Mapping[str, int], ours: Mapping[str, int]) -> None:
    """Refuse the tokenizer of the model in a folder if it has other entries than the suite's.

    Raises:
        ConfigError: naming the first that differs.
    """
    differ = sorted(token for token in {*theirs, *ours} if theirs.get(token) != ours.get(token))
    if differ:
        first = differ[0]
        raise ConfigError(
            f"the model in {folder} has another tokenizer than the suite: {len(differ):,} entries differ, the first "
            f"{first!r} is {theirs.get(first)} there and {ours.get(first)} here (None: not there at all). Teacher and "
            "student must share one tokenizer; data.tokenizer.path may name it"
        )


def body(model: nn.Module, ids: Tensor, precision: str = "float32", positions: Tensor | None = None) -> Tensor:
    """Return the final hidden states `[B, T, H]`: what enters the output head.

    Args:
        positions: `[B, T]`, where a row holds several documents: a token's place in its own, which alone it sees.
    """
    import torch

    packed = {}
    if positions is not None:
        document = (positions == 0).cumsum(1)
        seen = (document[:, :, None] == document[:, None, :]).tril()
        packed = {"position_ids": positions.long(), "attention_mask": seen[:, None]}
    enabled = precision == "bfloat16"
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=enabled):
        return model.base_model(input_ids=ids, use_cache=False, **packed).last_hidden_state.to(ids.device)


def check_packing(model: nn.Module) -> None:
    """Prove on a few tokens that documents packed into one row do not see each other.

    Raises:
        ConfigError: for architectures that take no mask of their own, or count positions in another way.
    """
    import torch

    device = next(model.parameters()).device
    ids = torch.arange(2, 14, device=device)[None] % model.config.vocab_size
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None].to(device)
    with torch.no_grad():
        try:
            together = body(model, ids, positions=positions)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"data.pack: {model.config.model_type} cannot read packed rows: {error}") from None
        apart = torch.cat([body(model, ids[:, :5]), body(model, ids[:, 5:])], 1)
    if not torch.allclose(together, apart, atol=1e-3 * float(apart.abs().max())):
        raise ConfigError(
            f"data.pack: in {model.config.model_type} documents that share a row see each other; set data.pack: false"
        )


def head(model: nn.Module, vocabulary: int) -> Tensor:
    """Return the output head `[V, H]`, cut to the tokenizer's size (some models pad theirs)."""
    weight = model.get_output_embeddings().weight
    if weight.shape[0] < vocabulary:
        raise ConfigError(
            f"expected a vocabulary of at least {vocabulary:,} (the tokenizer's), found {weight.shape[0]:,} in a "
            f"{model.config.model_type} model; teacher and student must share the tokenizer"
        )
    return weight[:vocabulary]


def check_head(model: nn.Module) -> None:
    """Prove on one sequence that body and head give the model's own logits, bit for bit or nearly.

    Raises:
        ConfigError: where they do not (scaled or soft-capped logits, a head with a bias).
    """
    import torch

    output = model.get_output_embeddings()
    if output is None or getattr(output, "bias", None) is not None:
        raise ConfigError(f"{model.config.model_type}: expected an output head without bias, found another")
    ids = torch.arange(4, 12, device=output.weight.device)[None] % model.config.vocab_size
    training = model.training
    model.eval()  # dropout would draw twice
    with torch.no_grad():
        ours = body(model, ids) @ output.weight.t()
        theirs = model(input_ids=ids, use_cache=False).logits
    model.train(training)
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-3):
        raise ConfigError(
            f"{model.config.model_type} changes its logits after the output head (scaling or soft-capping), "
            "which kdbench does not support yet; expected logits = head · hidden"
        )


def load_config(folder: Path) -> Any:
    """Read the config of a saved model; no network, no remote code."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a file may hold anything, and the config classes refuse it in ways of their own
        raise ConfigError(f"the config in {folder} cannot be read: {one_line(error)}") from None


def hidden_size(config: Any) -> int:
    """Return the width of what enters a model's output head; OPT-350m's is narrower than its body."""
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


def without_weights(config: Any) -> nn.Module:
    """Make a model on the `meta` device: its modules and shapes, and no numbers.

    Raises:
        ConfigError: it cannot be made; without numbers no error is one of memory, so all of them are the config's.
    """
    import torch

    with torch.device("meta"):
        return _of(config, (Exception,))


def parameters(config: Any) -> int:
    """Count a model's parameters without making its weights (tied ones once)."""
    return sum(parameter.numel() for parameter in without_weights(config).parameters())
