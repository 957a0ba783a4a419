"""What a suite is made from: text, tokenizer, models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from kdbench.errors import did_you_mean
from kdbench.suite.gguf import Gguf
from kdbench.suite.hub import Pinned, PinnedModel
from kdbench.suite.instructions import Instructions
from kdbench.suite.part import NAME, Glob, Package, Part


class Corpus(Part):
    """Where the text comes from: data files of an installed package, or a folder beside the suite file."""

    package: Package | None = Field(
        None, description="installed Python package that holds the files; it is not imported"
    )
    folder: str | None = Field(None, description="folder of text files, relative to the suite file")
    files: Glob = Field("*.txt", description="glob of the files inside it")

    @model_validator(mode="after")
    def _one_place(self) -> Corpus:
        if (self.package is None) == (self.folder is None):
            raise ValueError("expected either `package` or `folder`")
        return self


class TokenizerSpec(Part):
    """The tokenizer that all models of the suite share: trained here, saved, of the Hub, or of a model's GGUF file."""

    bpe: int | None = Field(
        None, ge=300, le=200_000, description="entries of a byte-level BPE trained on the train split"
    )
    path: str | None = Field(None, description="folder of a saved tokenizer, relative to the suite file")
    hub: Pinned | None = Field(None, description="a repository of the Hugging Face Hub that holds one")
    model: str | None = Field(None, pattern=NAME, description="a `gguf` model of this suite, whose file holds one")
    vocabulary: int | None = Field(
        None,
        ge=2,
        le=10_000_000,
        description="entries of a `hub` tokenizer or a `model`'s, so that a plan needs neither download nor file",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> TokenizerSpec:
        if sum(one is not None for one in (self.bpe, self.path, self.hub, self.model)) != 1:
            raise ValueError(
                "expected one of `bpe` (entries), `path` (a saved tokenizer), `hub` (id and revision) and `model` (a "
                "`gguf` model)"
            )
        if self.vocabulary is not None and self.hub is None and self.model is None:
            raise ValueError("`vocabulary` goes with `hub` or `model`; the size of another tokenizer is known")
        return self


class Data(Part):
    """The text and how it is cut."""

    corpus: Corpus | None = Field(None, description="plain text; all of it is learnt")
    instructions: Instructions | None = Field(None, description="prompts with responses; these alone are learnt")
    tokenizer: TokenizerSpec
    length: int = Field(128, ge=8, le=65_536, description="tokens in a block; of instructions, in a record's row")
    pack: bool = Field(False, description="fill blocks with several documents, which do not see each other")
    tokens: int | None = Field(
        None,
        gt=0,
        description="size of the distillation set, padding included; default: as much as the training reads; of "
        "instructions at most so much",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        if (self.corpus is None) == (self.instructions is None):
            raise ValueError("expected either `corpus` (plain text) or `instructions` (prompts with responses)")
        return self


class Init(Part):
    """A model made from scratch: an architecture of transformers and any of its config fields."""

    model_config = ConfigDict(extra="allow", frozen=True)

    architecture: str = Field(description="model type of transformers, such as opt, gpt_neox, llama")
    seed: int | Literal["run"] | None = Field(
        None, description="of the random weights; `run`: another draw for each seed. Default: run, or 0 with `pretrain`"
    )

    @model_validator(mode="after")
    def _plain_values(self) -> Init:
        _check_plain(self.model_extra)
        return self


def _check_plain(fields: Mapping[str, Any] | None) -> None:
    for key, value in (fields or {}).items():
        if not isinstance(value, int | float | str | bool | None):
            raise ValueError(f"{key}: expected a number, a string or true/false, found {value!r:.60}")


class Kept(Part):
    """A model made from another one: its embeddings, head and final norm, and some of its layers."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True)

    source: str = Field(alias="from", pattern=NAME, description="name of a model of this suite, as it is when trained")
    layers: tuple[int, ...] = Field(min_length=1, description="its layers that are kept, counted from 0, growing")

    @model_validator(mode="after")
    def _growing(self) -> Kept:
        if list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise ValueError(f"layers: expected growing numbers from 0, such as [0, 3, 6], found {list(self.layers)}")
        return self


class Facts(Part):
    """The config of a model that is not here: enough to plan by. Checked against the files once they are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    architecture: str = Field(description="model type of transformers, such as opt, gpt_neox, llama")

    @model_validator(mode="after")
    def _plain_values(self) -> Facts:
        _check_plain(self.model_extra)
        return self


class Pretrain(Part):
    """Training of a model made here, before anything is distilled."""

    tokens: int = Field(gt=0, description="tokens to train on; more than the text has: it is read several times")
    text: Literal["train", "distillation"] = Field(
        "train", description="the whole train split, or only what students are distilled on, which makes a teacher sure"
    )
    lr: float = Field(gt=0, lt=10, description="peak learning rate")
    batch_tokens: int = Field(2048, gt=0)
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps")
    seed: int = Field(0, ge=0)


class Finetune(Pretrain):
    """Training of a model on the suite's data before it teaches or learns; made once, for all cells."""

    micro_batch: int | None = Field(None, gt=0, description="rows in one forward pass; default: the whole batch")
    fsdp: int | None = Field(None, ge=2, le=64, description="processes that train it together; as `train.fsdp`")


def _start(value: Any) -> str:
    """Tell the two forms of `init:` apart, so that an error speaks of the one that was meant."""
    cut = isinstance(value, Kept) or (isinstance(value, dict) and not {"from", "source"}.isdisjoint(value))
    return "kept" if cut else "made"


Start = Annotated[Annotated[Init, Tag("made")] | Annotated[Kept, Tag("kept")], Discriminator(_start)]


class Model(Part):
    """A model: a Hugging Face folder, one of the Hub, a GGUF file, or one made here."""

    path: str | None = Field(None, description="folder with config.json and safetensors, relative to the suite file")
    hub: PinnedModel | None = Field(None, description="a repository of the Hugging Face Hub, at a commit")
    gguf: Gguf | None = Field(None, description="a GGUF file, dequantised to fp32 once")
    config: Facts | None = Field(
        None, description="of a `hub` or `gguf` model: its config, so that a plan needs neither download nor file"
    )
    init: Start | None = None
    pretrain: Pretrain | None = None
    finetune: Finetune | None = Field(None, description="training on the suite's data first, wherever it comes from")

    @model_validator(mode="after")
    def _one_origin(self) -> Model:
        if sum(origin is not None for origin in (self.path, self.hub, self.gguf, self.init)) != 1:
            raise ValueError(
                "expected one of `path` (a saved model), `hub` (id and revision), `gguf` (a file) and `init` (an "
                "architecture to make, or layers of another model)"
            )
        if self.pretrain and not isinstance(self.init, Init):
            raise ValueError("`pretrain` goes with `init` and an architecture; a model with weights takes `finetune`")
        if self.config and not (self.hub or self.gguf):
            raise ValueError("`config` goes with `hub` or `gguf`; of other models the config is known")
        return self

    @property
    def kept(self) -> Kept | None:
        """How it is made from another model; None where it is not."""
        return self.init if isinstance(self.init, Kept) else None

    @property
    def trainings(self) -> list[Pretrain]:
        """What it is trained on before the suite's objectives are."""
        return [training for training in (self.pretrain, self.finetune) if training]

    @property
    def init_seed(self) -> int | Literal["run"] | None:
        """The seed of the random weights; None for weights that exist: saved, of the Hub, or another model's."""
        if not isinstance(self.init, Init):
            return None
        return self.init.seed if self.init.seed is not None else (0 if self.pretrain else "run")


def tokenizer_problems(spec: TokenizerSpec, models: Mapping[str, Model]) -> list[str]:
    """Return a sentence if the tokenizer is said to be in the file of a model that has none."""
    if spec.model is None:
        return []
    if spec.model not in models:
        return [f"data.tokenizer.model: unknown model {spec.model!r}.{did_you_mean(spec.model, models)}"]
    if models[spec.model].gguf is None:
        return [f"data.tokenizer.model: expected a model with `gguf`, found {spec.model!r}; name its folder in `path`"]
    return []


def lineage_problems(models: Mapping[str, Model]) -> list[str]:
    """Return a sentence for each model whose `from` leads nowhere, in a circle, or to weights drawn for each run."""
    found = []
    for name, model in models.items():
        if model.kept is None:
            continue
        seen, at = [name], model.kept.source
        while at in models and at not in seen and (kept := models[at].kept):
            seen.append(at)
            at = kept.source
        if at in seen:
            found.append(f"models.{name}.init.from: {' ← '.join([*seen, at])} leads in a circle")
        elif at not in models:
            found.append(f"models.{seen[-1]}.init.from: unknown model {at!r}.{did_you_mean(at, models)}")
        elif models[at].init_seed == "run":
            found.append(
                f"models.{name}.init.from: {at!r} has random weights, drawn anew for each seed; give it a seed"
            )
    return list(dict.fromkeys(found))
