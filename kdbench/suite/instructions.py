"""Instruction data of a suite: where the records are, what their columns mean, and how they become a prompt."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdbench.errors import did_you_mean
from kdbench.suite.hub import Pinned
from kdbench.suite.part import Glob, Package, Part

PLACES = ("instruction", "input")
_BRACES = re.compile(r"\{([A-Za-z_]\w*)\}")


class Hub(Pinned):
    """A data set of Hugging Face's Hub at one commit; read by `datasets`, which runs no code of it."""

    id: str = Field(pattern=r"^[\w.-]+(/[\w.-]+)?$", description="such as vicgalle/alpaca-gpt4")
    config: str | None = Field(None, description="configuration of the data set, where it has several")
    split: str = Field("train", description="the Hub's split that is read; kdbench cuts its own from it")


class Columns(Part):
    """Which column of a record is what."""

    instruction: str = "instruction"
    input: str | None = Field("input", description="may be absent or empty in a record; null: there is none")
    response: str = "output"


class OwnTemplate(Part):
    """A prompt in the suite's own words; the response follows its last character."""

    prompt: str = Field(description="with {instruction}, and {input} where no other prompt is given for it")
    prompt_with_input: str | None = Field(None, description="of records that have an input; with both places")

    @model_validator(mode="after")
    def _has_places(self) -> OwnTemplate:
        for name, text in (("prompt", self.prompt), ("prompt_with_input", self.prompt_with_input)):
            found = _BRACES.findall(text or "")
            for place in found:
                if place not in PLACES:
                    raise ValueError(f"{name}: unknown place {{{place}}}.{did_you_mean(place, PLACES)}")
            wanted = PLACES if name == "prompt_with_input" else PLACES[:1]
            if text is not None and (absent := [place for place in wanted if place not in found]):
                raise ValueError(f"{name}: expected {{{absent[0]}}} in it, found none")
        return self


Template = Literal["alpaca", "vicuna", "chat"] | OwnTemplate
Share = Annotated[float, Field(gt=0, lt=0.5)]


class Instructions(Part):
    """Records of an instruction and its response. The loss is on the response alone."""

    hub: Hub | None = None
    file: str | None = Field(
        None, min_length=1, description="records in .json, .jsonl or .parquet, relative to the suite file"
    )
    package: Package | None = Field(
        None, description="installed Python package that holds the files; it is not imported"
    )
    files: Glob | None = Field(None, description="glob of the files inside the package")
    fields: Columns = Columns()
    template: Template = Field("alpaca", description="alpaca, vicuna, chat (the tokenizer's own), or prompts")
    dev: Share = Field(0.02, description="share held out for tuning and steering, by a hash of the prompt")
    test: Share = Field(0.02, description="share held out for examination, by a hash of the prompt")

    @model_validator(mode="after")
    def _one_place(self) -> Instructions:
        given = [name for name in ("hub", "file", "package") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of `hub`, `file` and `package`, found {' and '.join(given) or 'none'}")
        if (self.package is None) != (self.files is None):
            raise ValueError("`package` and `files`, a glob inside it, go together")
        return self
