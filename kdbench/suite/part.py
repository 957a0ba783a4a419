"""The base of every section of a suite file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Part(BaseModel):
    """A section of a suite file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
