"""A place on the Hugging Face Hub, pinned: what a suite names instead of a folder."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from kdbench.suite.part import Part

_COMMIT = re.compile(r"[0-9a-f]{40}")


class Pinned(Part):
    """A repository of the Hub at one commit."""

    id: str = Field(
        pattern=r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$", description="owner/name on the Hugging Face Hub"
    )
    revision: str = Field(description="commit of the repository, 40 hexadecimal digits; not a branch")
    license: str | None = Field(None, description="name of the licence, for whoever reads the suite")

    @field_validator("revision")
    @classmethod
    def _commit(cls, value: str) -> str:
        if not _COMMIT.fullmatch(value):
            raise ValueError(
                f"expected a commit of 40 hexadecimal digits, found {value!r:.60}; a branch or tag may move, and the "
                "same suite would then mean other weights (the page `Files`, `History` shows the commits)"
            )
        return value


class PinnedModel(Pinned):
    """A model of the Hub."""

    convert: bool = Field(
        False, description="where it has pickles alone: read them as tensors only and keep safetensors"
    )

    @property
    def identity(self) -> dict[str, str]:
        """What decides the weights: repository and commit; the licence's name and the file format do not."""
        return {"id": self.id, "revision": self.revision}
