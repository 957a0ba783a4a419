"""lm-eval tasks made from held-out documents: minimal pairs, last-word prediction and word perplexity.

Everything is a pure function of the documents: the only randomness comes from `seeding.derive(0, "task/<name>")`.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from kdbench.errors import ConfigError, did_you_mean
from kdbench.files import atomic_write
from kdbench.seeding import derive

Row = dict[str, Any]
PAIRS = ("swap", "replace", "agreement")
NAMES = (*PAIRS, "last_word", "perplexity")
FLOOR = 20  # with fewer items a score says more about the items than about the model
CAPS = {"last_word": 300, "perplexity": 40}
SENTENCE_WORDS = range(6, 19)
PASSAGE_WORDS = range(80, 121)
LIKE_FREQUENCY = 1.25  # a replacement's corpus count is within this factor of the replaced word's
REPEATED = 3  # how often the documents hold a phrase that they repeat

_WORD = re.compile(r"[A-Za-z'’-]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"“])")
_PLAIN_SENTENCE = re.compile(r"[A-Z][A-Za-z'’-]*[,;:]?( [A-Za-z][A-Za-z'’-]*[,;:]?)* [A-Za-z][A-Za-z'’-]*[.!?]")
_ABBREVIATIONS = {"mr.", "mrs.", "ms.", "dr.", "st.", "gen.", "col.", "hon.", "messrs.", "no.", "jr.", "sr."}

# Patterns for the neighbour of a word, chosen so that the broken sentence has no grammatical reading.
_PLURAL = r"[a-z]{2,}[^aius\W]s"
_MANY = rf"we|they|you|these|those|people|men|{_PLURAL}"
_ONE = r"(?!(who|which|what|all|none|any|some|most|more|number|people|men|women|children|and|or|that)$)[a-z]*[^s\W]"
_VERB = "am|is|are|was|were|has|have|had|will|would|can|could|shall|should|must|may|might|do|did|need|want|know|ask"
_MODAL = "will|would|can|could|shall|should|must|may|might|to"
_BEFORE_OBJECT = "of|to|for|with|by|from|upon|among|between|against"
_SINGULAR = "is|was|has|nation|country|government|congress|year|century|war|world|way|time|bill|policy|program|subject"
# (word, what breaks it, pattern for the word before, pattern for the word after); "" matches any neighbour
_AGREEMENT = (
    ("is", "are", _ONE, ""), ("was", "were", _ONE, ""), ("has", "have", _ONE, ""), ("does", "do", _ONE, "not"),
    ("are", "is", _MANY, ""), ("were", "was", _MANY, ""), ("have", "has", f"i|{_MODAL}|{_MANY}", ""),
    ("do", "does", "i|we|they|you", ""), ("be", "been", f"{_MODAL}|not", ""), ("been", "be", "has|have|had|not", ""),
    ("a", "an", "", r"[bcdfgjklmnpqrstvwyz]\w+"), ("an", "a", "", r"(a|i|e(?!u)|o(?!n[ce]))\w+"),
    ("i", "me", "", _VERB), ("we", "us", "", _VERB), ("he", "him", "", _VERB), ("they", "them", "", _VERB),
    ("me", "I", _BEFORE_OBJECT, ""), ("us", "we", _BEFORE_OBJECT, ""), ("him", "he", _BEFORE_OBJECT, ""),
    ("them", "they", _BEFORE_OBJECT, ""), ("this", "these", "", _SINGULAR), ("these", "this", "", _PLURAL),
)  # fmt: skip
_NUMBER = {"is", "was", "has", "does", "are", "were", "have", "do", "this", "these"}
_RULES = {rule[0]: (rule[1], re.compile(rule[2] or ".*"), re.compile(rule[3] or ".*")) for rule in _AGREEMENT}


class Document(Protocol):
    """A held-out text under the name by which results refer to it."""

    @property
    def name(self) -> str: ...
    @property
    def text(self) -> str: ...


@dataclass(frozen=True)
class Sentence:
    """One plain sentence (words and simple punctuation only) and the document that holds it."""

    words: tuple[str, ...]
    source: str
    doc: int


class Edit(NamedTuple):
    """One way to break a sentence: which kind, at which word (from 0), and the words that result."""

    kind: str
    position: int
    words: tuple[str, ...]


def build(documents: Sequence[Document], names: Sequence[str], items: int = 750) -> dict[str, list[Row]]:
    """Return the rows of each named task: up to `items` per task (`CAPS` bounds the dearer tasks further).

    Rows come in random order, so that the first n of them are a sample of all documents.

    Raises:
        ConfigError: when a name is unknown, or the documents yield too few items for a task.
    """
    for name in names:
        _check_name(name)
    if items < 1:
        raise ConfigError(f"tasks: items must be at least 1, found {items}")
    sentences = list(_plain_sentences(documents))
    counts = Counter(word for document in documents for word in _WORD.findall(document.text))
    tasks = {}
    for name in names:
        wanted = min(items, CAPS.get(name, items))
        rows = _rows(name, documents, sentences, counts, wanted)
        if len(rows) < min(FLOOR, wanted):
            raise ConfigError(
                f"task {name!r}: expected at least {min(FLOOR, wanted)} items, found {len(rows)} in {len(documents)} "
                f"held-out documents ({counts.total():,} words, {len(sentences):,} plain sentences of "
                f"{SENTENCE_WORDS.start} to {SENTENCE_WORDS.stop - 1} words); give more held-out text or drop the task"
            )
        tasks[name] = rows
    return tasks


def write(rows: Mapping[str, Sequence[Row]], folder: Path) -> dict[str, Path]:
    """Write each task as `<folder>/<name>.jsonl` and return the paths by task name.

    Raises:
        StoreError: when a file cannot be written.
    """
    paths = {name: folder / f"{name}.jsonl" for name in rows}
    for name, path in paths.items():
        atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[name]))
    return paths


def lm_eval_config(name: str, data_file: Path) -> dict[str, Any]:
    """Return the lm-eval task configuration, named `kdbench_<name>`, that reads its rows from `data_file`.

    Raises:
        ConfigError: when the name is unknown.
    """
    _check_name(name)
    # Targets and choices name columns instead of templates: the same strings, without a Jinja render for each row.
    asked: dict[str, Any] = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "label"}
    metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    if name == "last_word":
        asked = {"output_type": "loglikelihood", "doc_to_target": "target"}
    elif name == "perplexity":
        asked = {"output_type": "loglikelihood_rolling", "doc_to_target": "text"}
        metric = {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
    return {
        "task": f"kdbench_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data_file.resolve())}},
        "test_split": "test",
        "doc_to_text": "context",
        **asked,
        "num_fewshot": 0,
        "metric_list": [metric],
        "metadata": {"version": 1.0},
    }


def write_lm_eval_folder(task_data_folder: Path, names: Sequence[str], folder: Path) -> None:
    """Write `kdbench_<name>.yaml` for each task, so that plain `lm_eval --include_path <folder>` runs it.

    Raises:
        ConfigError: when a name is unknown or its `.jsonl` is not in `task_data_folder`.
        StoreError: when a file cannot be written.
    """
    import yaml

    for name in names:
        data_file = task_data_folder / f"{name}.jsonl"
        config = lm_eval_config(name, data_file)
        if not data_file.is_file():
            raise ConfigError(f"task {name!r}: expected its rows in {data_file}, found no such file; build it first")
        atomic_write(folder / f"{config['task']}.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _check_name(name: str) -> None:
    if name not in NAMES:
        raise ConfigError(f"unknown task {name!r}.{did_you_mean(name, NAMES)}")


def _rows(
    name: str, documents: Sequence[Document], sentences: list[Sentence], counts: Counter[str], wanted: int
) -> list[Row]:
    rng = random.Random(derive(0, f"task/{name}"))
    if name == "perplexity":
        passages = [row for index, document in enumerate(documents) for row in _passages(document, index)]
        return rng.sample(passages, min(wanted, len(passages)))
    shuffled = rng.sample(sentences, len(sentences))
    if name == "last_word":
        # A small model can guess the end of a phrase that the documents repeat; of other words it knows too little.
        phrases = Counter(pair for document in documents for pair in pairwise(_WORD.findall(document.text)))
        shuffled.sort(key=lambda sentence: phrases[sentence.words[-2], sentence.words[-1][:-1]] < REPEATED)
        return [_last_word(sentence) for sentence in shuffled[:wanted]]
    simple = {"swap": _swaps, "agreement": _disagreements}
    return _pairs(shuffled, simple.get(name) or _Replacements(counts, rng), wanted, rng)


def _pairs(
    sentences: Sequence[Sentence], edits: Callable[[Sequence[str]], list[Edit]], wanted: int, rng: random.Random
) -> list[Row]:
    """Return up to `wanted` minimal pairs, one per sentence that can be broken."""
    chosen: list[tuple[Sentence, Edit]] = []
    for sentence in sentences:
        if len(chosen) == wanted:
            break
        if possible := edits(sentence.words):
            chosen.append((sentence, rng.choice(possible)))
    # The true sentence is first in half of the rows, exactly: a model that ties or always says 0 scores 50 %.
    labels = rng.sample([index % 2 for index in range(len(chosen))], len(chosen))
    return [
        {
            "context": "", "choices": [" ".join(words) for words in (sentence.words, edit.words)][:: 1 - 2 * label],
            "label": label, "edit": edit.kind, "position": edit.position, "source": sentence.source,
            "doc": sentence.doc,
        }
        for (sentence, edit), label in zip(chosen, labels, strict=True)
    ]  # fmt: skip


def _swaps(words: Sequence[str]) -> list[Edit]:
    """Every swap of two neighbouring words that moves neither the capital letter nor the punctuation."""
    return [
        Edit("swap", at, (*words[:at], words[at + 1], words[at], *words[at + 2 :]))
        for at in range(1, len(words) - 2)
        if words[at].isalpha() and words[at + 1].isalpha() and words[at].lower() != words[at + 1].lower()
    ]


class _Replacements:
    """Replaces one lower-case word by another one of like corpus frequency."""

    def __init__(self, counts: Counter[str], rng: random.Random) -> None:
        self._counts, self._rng = counts, rng
        # Words met once are mostly misprints and names; as replacements they would be told by rarity alone.
        known = sorted((n, word) for word, n in counts.items() if n > 1 and word.isalpha() and word.islower())
        self._alike = {
            count: [word for n, word in known if count / LIKE_FREQUENCY <= n <= count * LIKE_FREQUENCY]
            for count in {n for n, _ in known}
        }

    def __call__(self, words: Sequence[str]) -> list[Edit]:
        edits = []
        for at in range(1, len(words) - 1):
            alike = self._alike.get(self._counts[words[at]], []) if words[at].islower() else []
            if words[at].isalpha() and len(alike) > 1:
                # The word itself is among them: drawing from the others needs no copy of the list.
                other = alike[(alike.index(words[at]) + self._rng.randrange(1, len(alike))) % len(alike)]
                edits.append(Edit("replace", at, (*words[:at], other, *words[at + 1 :])))
        return edits


def _disagreements(words: Sequence[str]) -> list[Edit]:
    """Every break of number agreement that the rules know in this sentence; failing that, of case, article or form."""
    bare = ["", *(word.rstrip(".,;:!?").lower() for word in words), ""]
    edits = []
    for at, (before, word, after) in enumerate(zip(bare, bare[1:], bare[2:], strict=False)):
        if word in _RULES:
            broken, left, right = _RULES[word]
            if left.fullmatch(before) and right.fullmatch(after):
                broken = (broken.capitalize() if at == 0 else broken) + words[at][len(word) :]
                edits.append(Edit(word, at, (*words[:at], broken, *words[at + 1 :])))
    # The others are told by two neighbouring words alone, which makes them easy.
    return [edit for edit in edits if edit.kind in _NUMBER] or edits


def _last_word(sentence: Sentence) -> Row:
    """The sentence's beginning as the context, its last word (space before, no full stop) as the target."""
    *beginning, last = sentence.words
    return {
        "context": " ".join(beginning), "target": " " + last[:-1],
        "source": sentence.source, "doc": sentence.doc,
    }  # fmt: skip


def _passages(document: Document, index: int) -> Iterator[Row]:
    """Yield runs of whole sentences of `PASSAGE_WORDS` words, with the document's own paragraph breaks."""
    text, words = "", 0
    for paragraph in _paragraphs(document.text):
        separator = "\n\n"
        for sentence in _SENTENCE_END.split(paragraph):
            text += (separator if text else "") + sentence
            words, separator = len(text.split()), " "
            if words in PASSAGE_WORDS:
                yield {"context": "", "text": text, "words": words, "source": document.name, "doc": index}
            if words >= PASSAGE_WORDS.start:
                text = ""


def _paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs, which blank lines part, with all white space inside them made one space."""
    return (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip())


def _plain_sentences(documents: Iterable[Document]) -> Iterator[Sentence]:
    """Yield each different sentence of `SENTENCE_WORDS` words that has no numbers, quotes, dashes or abbreviations."""
    seen = set()
    for index, document in enumerate(documents):
        for paragraph in _paragraphs(document.text):
            for text in _SENTENCE_END.split(paragraph):
                words = tuple(text.split(" "))
                if len(words) not in SENTENCE_WORDS or not _PLAIN_SENTENCE.fullmatch(text):
                    continue
                if words[-1].lower() in _ABBREVIATIONS or len(words[-1]) < 3 or text.lower() in seen:
                    continue
                seen.add(text.lower())
                yield Sentence(words, document.name, index)
