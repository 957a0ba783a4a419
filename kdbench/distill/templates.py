"""Prompts: the words round an instruction, in a template of the field's or in the tokenizer's own chat template."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from kdbench.distill.records import WHERE, Record
from kdbench.errors import ConfigError

_ALPACA = (  # Taori et al. 2023, Stanford Alpaca, train.py
    "Below is an instruction that describes a task{}. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{{instruction}}\n\n{}### Response:"
)
_VICUNA = (  # Chiang et al. 2023, FastChat's vicuna_v1.1
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: {instruction} ASSISTANT:"
)
# name: (prompt, prompt with an input, what stands between prompt and response)
TEMPLATES = {
    "alpaca": (
        _ALPACA.format("", ""),
        _ALPACA.format(", paired with an input that provides further context", "### Input:\n{input}\n\n"),
        "",
    ),
    "vicuna": (_VICUNA, _VICUNA.replace("{instruction}", "{instruction}\n{input}"), " "),
}
CHAT = "chat"
_PLACE = re.compile(r"\{(instruction|input)\}")


def prompt_in(template: Any, record: Record) -> str:
    """Return a record's prompt in a template that needs no tokenizer: a name of `TEMPLATES`, or the suite's own."""
    if isinstance(template, str):
        plain, full, _ = TEMPLATES[template]
    else:
        plain, full = template["prompt"], template["prompt_with_input"] or template["prompt"]
    values = {"instruction": record.instruction, "input": record.input}
    return _PLACE.sub(lambda found: values[found[1]], full if record.input else plain)


def said(record: Record) -> str:
    """Return what the user says in a chat."""
    return record.instruction + (f"\n\n{record.input}" if record.input else "")


@dataclass(frozen=True)
class Form:
    """A template in the hands of one tokenizer.

    Args:
        template: `alpaca`, `vicuna`, `chat`, or `{"prompt": …, "prompt_with_input": …}`.

    Attributes:
        prefix: ids of the special tokens that the tokenizer puts before every text (BOS, or none).

    Raises:
        ConfigError: the tokenizer has no EOS, or its chat template is missing or does not end a turn with EOS.
    """

    template: Any
    tokenizer: Any
    prefix: list[int] = field(init=False)

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise ConfigError(f"{WHERE}: expected a tokenizer with an EOS token, by which a response ends; found none")
        if self.template == CHAT:
            self._check_chat()
        object.__setattr__(self, "prefix", [] if self.template == CHAT else special_prefix(self.tokenizer))

    @property
    def gap(self) -> str:
        """What stands between prompt and response."""
        return TEMPLATES[self.template][2] if isinstance(self.template, str) and self.template != CHAT else ""

    def prompt(self, record: Record) -> str:
        """Return all that stands before the response, without the `prefix`."""
        if self.template == CHAT:
            return self._render([{"role": "user", "content": said(record)}], add_generation_prompt=True)
        return prompt_in(self.template, record)

    def _render(self, turns: list[dict[str, str]], **options: Any) -> str:
        return self.tokenizer.apply_chat_template(turns, tokenize=False, **options)

    def _check_chat(self) -> None:
        """Prove on one turn that the prompt begins the whole conversation, and that EOS ends it."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise ConfigError(f"{WHERE}.template: chat: the tokenizer has no chat template; choose another, or set one")
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        try:
            begun, whole = self._render(turns[:1], add_generation_prompt=True), self._render(turns)
        except Exception as error:  # a template is a program of its own and may raise anything
            raise ConfigError(f"{WHERE}.template: the tokenizer's chat template fails: {error}") from None
        end = whole.removeprefix(begun + "answer").strip()
        if not whole.startswith(begun + "answer") or not end.startswith(self.tokenizer.eos_token):
            raise ConfigError(
                f"{WHERE}.template: expected a chat template whose prompt {begun[-40:]!r} begins the conversation and "
                f"whose turn ends with EOS ({self.tokenizer.eos_token!r}, by which generation stops), found "
                f"{whole[-60:]!r}; set the tokenizer's eos_token to the token that ends a turn"
            )


def special_prefix(tokenizer: Any) -> list[int]:
    """Return the ids that a tokenizer puts before every text, as it will when the model is examined."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a")
    places = [at for at in range(len(whole)) if plain and whole[at : at + len(plain)] == plain]
    return whole[: places[0]] if places else []
