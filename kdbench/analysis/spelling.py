"""Held-out tokens as words: what stands before and after one, by the suite's tokenizer, from the store."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from kdbench.files import read_json, read_text
from kdbench.run.store import INPUTS, Store

BEFORE, AFTER = 10, 4  # tokens
TOKENIZER = "tokenizer/tokenizer.json"
PARAGRAPH = " ¶ "  # each paragraph starts with EOS


class Speller:
    """Decodes tokens of one text of the store.

    Args:
        text: key of the tokenised text.
        split: `test`, or `dev` for what was examined while tuning.
    """

    def __init__(self, store: Store, text: str, split: str = "test"):
        self._store, self._text, self._split = store, text, split
        self.notes: list[str] = []

    def around(self, place: Mapping[str, Any]) -> dict[str, str]:
        """Return `before`, `token` and `after` of the token at `row` and `position`; its id where no text is left."""
        row, position = int(place["row"]), int(place["position"])
        if self._parts is None or not 0 <= row < len(self._parts[0]):
            return {"before": "", "token": f"id {int(place['target'])}", "after": ""}
        ids = self._parts[0][row].tolist()
        pieces = {
            "before": ids[max(0, position - BEFORE) : position],
            "token": ids[position : position + 1],
            "after": ids[position + 1 : position + 1 + AFTER],
        }
        return {name: self._decode(some) for name, some in pieces.items()}

    def _decode(self, ids: list[int]) -> str:
        assert self._parts is not None
        _, tokenizer, special = self._parts
        text = "".join(
            PARAGRAPH if some[0] in special else tokenizer.decode(some, skip_special_tokens=False)
            for some in _runs(ids, special)
        )
        return re.sub(r"\s*\n\s*", PARAGRAPH, text)

    @cached_property
    def _parts(self) -> tuple[Any, Any, set[int]] | None:
        """Token ids `[rows, length]`, the tokenizer, and its special ids: read without torch and transformers."""
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        text, tokens = self._store.entry("texts", self._text), f"{self._split}.safetensors"
        try:
            text.verified(INPUTS, tokens)
            entry = self._store.entry("tokenizers", read_json(text.path / INPUTS)["tokenizer"])
            entry.verified(TOKENIZER)
            tokenizer = Tokenizer.from_str(read_text(entry.path / TOKENIZER))
            ids = load_file(text.path / tokens)["ids"]
        except Exception as error:  # those of safetensors and tokenizers are of many kinds
            self.notes.append(f"tokens are shown as ids: {error}")
            return None
        special = {number for number, added in tokenizer.get_added_tokens_decoder().items() if added.special}
        return ids, tokenizer, special


def _runs(ids: list[int], special: set[int]) -> list[list[int]]:
    """Cut ids into pieces that are one special id, or none of them."""
    found: list[list[int]] = []
    for one in ids:
        if found and one not in special and found[-1][0] not in special:
            found[-1].append(one)
        else:
            found.append([one])
    return found
