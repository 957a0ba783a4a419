"""A model in a GGUF file: what a suite names in place of a folder or a repository."""

from __future__ import annotations

from pydantic import Field, model_validator

from kdbench.suite.part import Package, Part, inside


class Gguf(Part):
    """A GGUF file, which holds weights, config and tokenizer. What is quantised in it becomes fp32 once."""

    package: Package | None = Field(
        None, description="installed Python package that holds the file; it is not imported"
    )
    file: str = Field(
        min_length=1,
        description="with `package`: a glob inside it that one file fits; else the file, relative to the suite file",
    )
    license: str | None = Field(None, description="name of the licence, for whoever reads the suite")

    @model_validator(mode="after")
    def _inside(self) -> Gguf:
        if self.package is not None:
            inside(self.file)
        return self
