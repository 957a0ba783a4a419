"""What a suite is made from: text, tokenizer, models."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from kdbench.suite.instructions import Instructions
from kdbench.suite.part import Part


class Corpus(Part):
    """Where the text comes from: data files of an installed package, or a folder beside the suite file."""

    package: str | None = Field(None, description="installed Python package that holds the files; it is not imported")
    folder: str | None = Field(None, description="folder of text files, relative to the suite file")
    files: str = Field("*.txt", description="glob of the files inside it")

    @model_validator(mode="after")
    def _one_place(self) -> Corpus:
        if (self.package is None) == (self.folder is None):
            raise ValueError("expected either `package` or `folder`")
        if ".." in self.files.split("/") or self.files.startswith("/"):
            raise ValueError("`files` is a glob inside the folder: no '..' and no leading '/'")
        return self


class TokenizerSpec(Part):
    """The tokenizer that all models of the suite share: trained here, or a Hugging Face folder."""

    bpe: int | None = Field(
        None, ge=300, le=200_000, description="entries of a byte-level BPE trained on the train split"
    )
    path: str | None = Field(None, description="folder of a saved tokenizer, relative to the suite file")

    @model_validator(mode="after")
    def _one_kind(self) -> TokenizerSpec:
        if (self.bpe is None) == (self.path is None):
            raise ValueError("expected either `bpe` (entries) or `path` (a saved tokenizer)")
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
        for key, value in (self.model_extra or {}).items():
            if not isinstance(value, int | float | str | bool | None):
                raise ValueError(f"{key}: expected a number, a string or true/false, found {value!r:.60}")
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


class Model(Part):
    """A model: a Hugging Face folder, or one made here."""

    path: str | None = Field(None, description="folder with config.json and safetensors, relative to the suite file")
    init: Init | None = None
    pretrain: Pretrain | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Model:
        if (self.path is None) == (self.init is None):
            raise ValueError("expected either `path` (a saved model) or `init` (an architecture to make)")
        if self.pretrain and not self.init:
            raise ValueError("`pretrain` goes with `init`")
        return self

    @property
    def init_seed(self) -> int | Literal["run"] | None:
        """The seed of the random weights; None for a saved model."""
        if self.init is None:
            return None
        return self.init.seed if self.init.seed is not None else (0 if self.pretrain else "run")
