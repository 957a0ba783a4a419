"""A language model as judge of two answers: the likelihood of one letter against the other, in both orders.

No text of the judge is read. It sees the prompt of `suite/judging.py`, and what counts is P(A) = p(" A") / (p(" A") +
p(" B")) there. Judges prefer a place (Zheng et al. 2023, arXiv:2306.05685, §3.4); so each pair is shown twice, swapped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.distill import models
from kdbench.distill.hub import TOKENIZER
from kdbench.errors import ConfigError, KdbenchError
from kdbench.evaluate import harness
from kdbench.files import digest, sha256_file
from kdbench.seeding import fenced
from kdbench.suite.judging import LETTERS, filled

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

LEAST = 16  # tokens of two answers that must be left beside a question
MARGIN = 8  # tokens by which a text may grow when it is cut and tokenised again


@dataclass(frozen=True)
class Judge:
    """A judge that is on this machine; the rest as in `suite.judging.Judge`."""

    folder: Path
    template: str
    chat: bool = False
    dtype: str = "float32"

    @property
    def where(self) -> str:
        """What errors call it."""
        return f"judge {self.folder}"


@dataclass(frozen=True)
class Pair:
    """A question, the answer to be judged, and the reference that it is held against."""

    question: str
    answer: str
    reference: str


@dataclass(frozen=True)
class Judgement:
    """What a judge makes of a pair.

    Attributes:
        as_a, as_b: probability that the answer is the better one, where it stands first, and where it stands second.
        cut: whether the texts had to be cut to what the judge can read.
    """

    as_a: float
    as_b: float
    cut: bool = False

    @property
    def score(self) -> float:
        """1: better than the reference in both orders; 0: worse in both; 0.5: a tie."""
        if self.as_a > 0.5 and self.as_b > 0.5:
            return 1.0
        return 0.0 if self.as_a < 0.5 and self.as_b < 0.5 else 0.5

    @property
    def flipped(self) -> bool:
        """Whether the verdict changes with the order."""
        return (self.as_a > 0.5) != (self.as_b > 0.5) and self.as_a != 0.5 != self.as_b


def fingerprint(folder: Path) -> str:
    """Return a sha256 over a judge's weights, config and tokenizer.

    Raises:
        ConfigError: it is no model folder, or its weights are pickles.
    """
    words = {name: sha256_file(folder / name) for name in TOKENIZER if (folder / name).is_file()}
    return digest([models.folder_fingerprint(folder), words])


def check(judge: Judge) -> None:
    """Refuse a judge that cannot judge, before any work starts; its weights are not loaded.

    Raises:
        ConfigError: no such folder, no tokenizer, no chat template where one is asked for, or letters that are the same
            to its tokenizer.
    """
    models.check_folder(judge.folder)
    if not any((judge.folder / name).is_file() for name in TOKENIZER):
        raise ConfigError(f"{judge.where}: expected a saved tokenizer beside the weights, found none")
    tokenizer = models.load_tokenizer(judge.folder)
    text = _shown(judge, tokenizer, "?", "one", "two")
    first, second = (tokenizer(text + one)["input_ids"] for one in _letters(judge))
    if first == second:
        raise ConfigError(f"{judge.where}: its tokenizer does not tell {' from '.join(LETTERS)}; take another judge")


def judge_all(judge: Judge, pairs: Sequence[Pair], *, device: str, batch_size: int) -> list[Judgement]:
    """Judge each pair in both orders; print nothing, leave RNGs as they were.

    A pair too long for the judge has the ends of its answers cut, by the same rule in both orders.

    Raises:
        ConfigError: a question leaves no room for answers, or the folder is not such a model.
        KdbenchError: the judge's log-likelihoods are not finite.
    """
    with harness._quiet(), fenced(0, "judge"):
        model, tokenizer = _loaded(judge, device)
        lm = harness._language_model()(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        lm._tokens = None  # each prompt is asked once in a process: nothing to remember
        fitted = [_fitted(judge, tokenizer, pair, lm.max_length) for pair in pairs]
        shown = [
            _shown(judge, tokenizer, pair.question, *order)
            for pair in fitted
            for order in ((pair.answer, pair.reference), (pair.reference, pair.answer))
        ]
        first = _chances(judge, lm, shown)
    return [
        Judgement(as_a, 1.0 - other, cut=short != whole)
        for as_a, other, short, whole in zip(first[::2], first[1::2], fitted, pairs, strict=True)
    ]


def _letters(judge: Judge) -> tuple[str, ...]:
    return LETTERS if judge.chat else tuple(f" {letter}" for letter in LETTERS)


def _chances(judge: Judge, lm: HFLM, prompts: Sequence[str]) -> list[float]:
    """Return P(A) of each prompt, against B."""
    from lm_eval.api.instance import Instance

    asked = [
        Instance("loglikelihood", {}, (prompt, letter), number)
        for number, prompt in enumerate(prompts)
        for letter in _letters(judge)
    ]
    found = [value for value, _ in lm.loglikelihood(asked, disable_tqdm=True)] if asked else []
    if not all(map(math.isfinite, found)):
        raise KdbenchError(f"{judge.where}: expected finite log-likelihoods, found others; its weights may be damaged")
    return [1.0 / (1.0 + math.exp(min(b - a, 700.0))) for a, b in zip(found[::2], found[1::2], strict=True)]


@lru_cache(maxsize=1)
def _loaded(judge: Judge, device: str) -> tuple[Any, PreTrainedTokenizerFast]:
    """Load the judge once for many cells; any causal model will do, whatever it does to its logits."""
    import torch
    from transformers import AutoModelForCausalLM

    models.check_folder(judge.folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            judge.folder, dtype=getattr(torch, judge.dtype), local_files_only=True, use_safetensors=True,
            trust_remote_code=False,
        )  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{judge.where} cannot be loaded: {error}") from None
    return model.to(device).eval().requires_grad_(False), models.load_tokenizer(judge.folder)


def _shown(judge: Judge, tokenizer: Any, question: str, answer_a: str, answer_b: str) -> str:
    text = filled(judge.template, question, answer_a, answer_b)
    if not judge.chat:
        return text
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(f"{judge.where}: chat: its tokenizer has no chat template; leave out `chat`")
    said = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)


def _fitted(judge: Judge, tokenizer: Any, pair: Pair, most: int) -> Pair:
    """Return the pair, the ends of its answers cut where the judge can read no more than `most` tokens."""

    def length(answer: str, reference: str) -> int:
        orders = ((answer, reference), (reference, answer))
        return max(len(tokenizer(_shown(judge, tokenizer, pair.question, *order))["input_ids"]) for order in orders)

    if length(pair.answer, pair.reference) + MARGIN <= most:
        return pair
    room = most - length("", "") - 2 * MARGIN
    if room < LEAST:
        raise ConfigError(
            f"{judge.where} reads {most:,} tokens, and a question leaves no room for two answers: "
            f"{pair.question[:60]!r}…; take a judge that reads more"
        )
    tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (pair.answer, pair.reference)]
    kept = max(room // 2, room - min(map(len, tokens)))
    answer, reference = (
        text if len(ids) <= kept else tokenizer.decode(ids[:kept], skip_special_tokens=True)
        for text, ids in zip((pair.answer, pair.reference), tokens, strict=True)
    )
    return replace(pair, answer=answer, reference=reference)
