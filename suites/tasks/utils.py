"""What the instruction-following tasks share: prompts in the very templates of training, and ROUGE-L an item."""

from __future__ import annotations

from functools import cache
from typing import Any

from kdbench.distill.records import Record
from kdbench.distill.templates import prompt_in, said


def _record(doc: dict[str, Any]) -> Record:
    return Record(doc["instruction"].strip(), (doc.get("input") or "").strip(), "")


def alpaca(doc: dict[str, Any]) -> str:
    """Return the prompt of `data.instructions.template: alpaca`."""
    return prompt_in("alpaca", _record(doc))


def vicuna(doc: dict[str, Any]) -> str:
    """Return the prompt of `data.instructions.template: vicuna`."""
    return prompt_in("vicuna", _record(doc))


def chat(doc: dict[str, Any]) -> str:
    """Return what the user says under `template: chat`; lm-eval puts the chat template round it (`chat: true`)."""
    return said(_record(doc))


def references(doc: dict[str, Any]) -> list[str]:
    """Return the reference responses: one string, or a list of them."""
    output = doc["output"]
    return [output] if isinstance(output, str) else list(output)


def first_reference(doc: dict[str, Any]) -> str:
    """Return the reference that is shown as the target."""
    return references(doc)[0]


@cache
def _scorer() -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return ROUGE-L F1 (Lin 2004) from 0 to 1, stemmed as Self-Instruct has it; the best reference counts."""
    found = [_scorer().score(reference, results[0])["rougeL"] for reference in references(doc)]
    return {"rougeL": max(one.fmeasure for one in found)}
