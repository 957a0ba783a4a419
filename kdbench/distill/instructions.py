"""Instruction records as rows of tokens: prompt, response, EOS. Targets are the response and its EOS, nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.distill.data import Blocks, padding_id
from kdbench.distill.records import Record
from kdbench.distill.rollout import Limits
from kdbench.distill.rollout import prompts as first_tokens
from kdbench.distill.templates import Form

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 1000  # records given to the tokenizer at a time


@dataclass(frozen=True)
class Tokenised:
    """One record's ids. The first `special` of the prompt are the tokenizer's own; `answer` ends with EOS if whole."""

    prompt: list[int]
    answer: list[int]
    special: int

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def tokenise(
    records: Sequence[Record], tokenizer: Any, template: Any, length: int, pack: bool = False
) -> tuple[Blocks, dict[str, int]]:
    """Turn records into rows of `length` tokens, one record a row, padded on the right; with `pack` several.

    The prompt's ids are those that the tokenizer gives to the prompt alone, as when the model is asked. The response's
    are what follows them where prompt and response are tokenised together; where the two would share a token, the
    response's own (`boundary` counts these). A record that does not fit loses the beginning of its prompt, down to half
    a row, and only then the end of its response and with it EOS.

    Returns:
        The rows, and counts: `boundary`, `prompts_cut`, `responses_cut`, and what was dropped: `special_tokens` (a
        field spells one, such as `</s>`, which the tokenizer would take for the real one) and `no_response`.

    Raises:
        ConfigError: as for `Form`.
    """
    form, counts = Form(template, tokenizer), Counter[str]()
    found: list[Tokenised] = []
    for begin in range(0, len(records), BATCH):
        found += _encode(records[begin : begin + BATCH], form, length, counts)
    pad = padding_id(tokenizer)
    return (_packed(found, pad, length) if pack else _padded(found, pad, length)), dict(counts)


def _encode(records: Sequence[Record], form: Form, length: int, counts: Counter[str]) -> list[Tokenised]:
    special = [token for token in form.tokenizer.all_special_tokens if token.strip()]
    clean = [one for one in records if not any(token in _text(one) for token in special)]
    counts["special_tokens"] += len(records) - len(clean)
    if not clean:
        return []
    asked = [form.prompt(record) for record in clean]
    answers = [form.gap + record.response for record in clean]
    prompts = _ids(form, asked)
    wholes = _ids(form, [prompt + answer for prompt, answer in zip(asked, answers, strict=True)])
    found = []
    for prompt, whole, answer in zip(prompts, wholes, answers, strict=True):
        if whole[: len(prompt)] == prompt:
            ids = whole[len(prompt) :]
        else:
            counts["boundary"] += 1
            ids = form.tokenizer.encode(answer, add_special_tokens=False)
        if not ids:
            counts["no_response"] += 1
            continue
        one = Tokenised(form.prefix + prompt, [*ids, form.tokenizer.eos_token_id], len(form.prefix))
        found.append(_fitted(one, length, counts))
    return found


def _text(record: Record) -> str:
    return "\n".join((record.instruction, record.input, record.response))


def _ids(form: Form, texts: list[str]) -> list[list[int]]:
    return form.tokenizer(texts, add_special_tokens=False)["input_ids"]


def _fitted(one: Tokenised, length: int, counts: Counter[str]) -> Tokenised:
    room = max(length - len(one.answer), length // 2)
    prompt = cut_left(one.prompt, room, one.special)
    answer = one.answer[: length - len(prompt)]
    counts["prompts_cut"] += len(prompt) < len(one.prompt)
    counts["responses_cut"] += len(answer) < len(one.answer)
    return Tokenised(prompt, answer, min(one.special, len(prompt)))


def cut_left(ids: Any, most: int, special: int) -> Any:
    """Return the last `most` ids of a prompt, its `special` first ones always among them; a list or a tensor."""
    if len(ids) <= most:
        return ids
    if special >= most:
        return ids[len(ids) - most :]
    kept = ids[len(ids) - (most - special) :]
    if isinstance(ids, list):
        return ids[:special] + kept
    import torch

    return torch.cat([ids[:special], kept])


def _padded(records: list[Tokenised], pad: int, length: int) -> Blocks:
    return _rows([[one] for one in records], pad, length, packed=False)


def _packed(records: list[Tokenised], pad: int, length: int) -> Blocks:
    """Put whole records into rows, the longest first, each into the fullest row that has room for it."""
    spaces: dict[int, list[int]] = {}  # free tokens → rows that have them
    rows: list[list[Tokenised]] = []
    for one in sorted(records, key=len, reverse=True):
        free = min((space for space, have in spaces.items() if have and space >= len(one)), default=None)
        row = len(rows) if free is None else spaces[free].pop()
        if free is None:
            rows.append([])
        rows[row].append(one)
        spaces.setdefault((length if free is None else free) - len(one), []).append(row)
    return _rows(rows, pad, length, packed=True)


def _rows(rows: list[list[Tokenised]], pad: int, length: int, packed: bool) -> Blocks:
    import numpy
    import torch

    ids = numpy.full((len(rows), length), pad, dtype=numpy.int32)
    mask = numpy.zeros((len(rows), length), dtype=bool)
    positions = numpy.zeros((len(rows), length), dtype=numpy.int32)
    prompt = numpy.zeros((len(rows), 2), dtype=numpy.int32)
    for number, members in enumerate(rows):
        at = 0
        for one in members:
            end = at + len(one)
            ids[number, at:end] = one.prompt + one.answer
            mask[number, at + len(one.prompt) : end] = True
            positions[number, at:end] = numpy.arange(len(one))
            at = end
        positions[number, at:] = numpy.arange(length - at)  # padding is a piece of its own
        prompt[number] = len(members[0].prompt), members[0].special
    places = torch.from_numpy(positions) if packed else None
    return Blocks(torch.from_numpy(ids), torch.from_numpy(mask), places, torch.from_numpy(prompt))


def prompts(blocks: Blocks, limits: Limits) -> list[Tensor]:
    """Return what a model writes after, a row each: a record's own prompt, or the first tokens of plain text.

    A prompt longer than `limits.prompt_tokens` loses its beginning, but not the tokenizer's special tokens.
    """
    if blocks.prompt is None:
        return first_tokens(blocks, limits)
    return [
        cut_left(ids[:count].long(), limits.prompt_tokens, special)
        for ids, (count, special) in zip(blocks.ids, blocks.prompt.tolist(), strict=True)
    ]
