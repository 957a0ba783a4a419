"""Walk a GGUF file's header before the package `gguf` reads it, which believes every count that a file claims.

It stands beside `gguf.py`, whose source is part of keys. Layout: github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from kdbench.errors import ConfigError

MAGIC, VERSIONS = b"GGUF", (2, 3)
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a number, by its kind
STRING, ARRAY = 8, 9


def check(path: Path) -> None:
    """Refuse a header that claims more than the file holds, or arrays of arrays, which llama.cpp has none of.

    A file that is no GGUF of a known version passes: the package says so at once.

    Raises:
        ConfigError: it does; or the file cannot be read.
    """
    try:
        about = path.stat()
        _check(path, about.st_size, about.st_mtime_ns)
    except (OSError, ValueError) as error:
        raise ConfigError(f"gguf: {path} cannot be read as a GGUF file: {error}") from None


@lru_cache(maxsize=8)  # a plan asks for every model; a large vocabulary takes a moment
def _check(path: Path, size: int, _: int) -> None:
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            return
        for order in "<>":
            file.seek(4)
            header = _Header(file, size, order)
            if header.number("I") in VERSIONS:
                return header.walk()


class _Header:
    """What is left to read of a header; in no step beyond the file's end."""

    def __init__(self, file: BinaryIO, size: int, order: str):
        self.file, self.size, self.order = file, size, order

    def walk(self) -> None:
        tensors, values = self.number("Q"), self.number("Q")
        for _ in range(values):
            self.string()
            self.value(self.number("I"))
        for _ in range(tensors):
            self.string()
            self.skip(8 * self.number("I") + 4 + 8)  # dimensions; kind, place

    def value(self, kind: int) -> None:
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            inner, count = self.number("I"), self.number("Q")
            if inner == ARRAY:
                raise ValueError("expected arrays of numbers or texts, found an array of arrays")
            if inner == STRING:
                for _ in range(count):
                    self.string()
            else:
                self.skip(self.width(inner) * count)
        else:
            self.skip(self.width(kind))

    def width(self, kind: int) -> int:
        if kind not in SIZES:
            raise ValueError(f"unknown kind of value {kind}")
        return SIZES[kind]

    def number(self, form: str) -> int:
        found = self.file.read(struct.calcsize(form))
        if len(found) != struct.calcsize(form):
            raise ValueError("its header goes beyond its end")
        return int(struct.unpack(self.order + form, found)[0])

    def string(self) -> None:
        self.skip(self.number("Q"))

    def skip(self, count: int) -> None:
        if count > self.size - self.file.tell():
            raise ValueError(f"its header claims {count:,} more bytes where {self.size - self.file.tell():,} are left")
        self.file.seek(count, 1)
