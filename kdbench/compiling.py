"""What `torch.compile` needs to see through the mathematics: no look at a tensor's values, and no lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

import torch

T = TypeVar("T")


def compiling() -> bool:
    """Whether this code is being traced: a branch that asks a tensor's values must then take its general way."""
    return torch.compiler.is_compiling()


class once(Generic[T]):
    """A property made when first asked for and then kept, like `functools.cached_property`, whose lock (before
    Python 3.12) cannot be traced."""

    def __init__(self, make: Callable[[Any], T]):
        self.make = make
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, holder: None, owner: type) -> once[T]: ...

    @overload
    def __get__(self, holder: object, owner: type) -> T: ...

    def __get__(self, holder: Any, owner: type) -> Any:
        if holder is None:
            return self
        found = self.make(holder)
        holder.__dict__[self.name] = found
        return found
