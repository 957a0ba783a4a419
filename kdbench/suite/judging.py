"""A judge of an examination: a language model that says which of two answers to a question is better."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from kdbench.suite.hub import Pinned
from kdbench.suite.part import Part

PLACES = ("question", "answer_a", "answer_b")
LETTERS = ("A", "B")
TEMPLATE = """\
Here are a question and two answers to it. Say which answer is more helpful, correct and to the point.

### Question:
{question}

### Answer A:
{answer_a}

### Answer B:
{answer_b}

### The better answer is Answer"""


class Judge(Part):
    """Holds each answer of a student against the task's reference, in both orders, by the likelihood of two letters.

    An answer scores 1 where the judge prefers it in both orders, 0 where it prefers the reference in both, else 0.5: a
    verdict that changes with the order is a tie.
    """

    path: str | None = Field(
        None, description="folder with config.json, safetensors and a tokenizer, relative to the suite file"
    )
    hub: Pinned | None = Field(None, description="or a repository of the Hugging Face Hub, at a commit")
    template: str = Field(
        TEMPLATE, description="what the judge reads, with {question}, {answer_a} and {answer_b}; then follows A or B"
    )
    chat: bool = Field(False, description="put it through the judge's own chat template, as what the user says")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the judge's weights; bfloat16 takes half the memory and sees more ties"
    )

    @field_validator("template")
    @classmethod
    def _has_places(cls, value: str) -> str:
        for place in PLACES:
            if value.count(f"{{{place}}}") != 1:
                raise ValueError(f"template: expected {{{place}}} once, found it {value.count(f'{{{place}}}')} times")
        if value != value.rstrip():
            raise ValueError("template: expected no space at its end, for the letter follows with a space of its own")
        return value

    @model_validator(mode="after")
    def _one_place(self) -> Judge:
        if (self.path is None) == (self.hub is None):
            raise ValueError("judge: expected either `path` (a saved model) or `hub` (id and revision)")
        return self


def filled(template: str, question: str, answer_a: str, answer_b: str) -> str:
    """Return a judge's prompt; braces in the texts stay what they are."""
    values = dict(zip(PLACES, (question, answer_a, answer_b), strict=True))
    return re.sub(r"\{(question|answer_a|answer_b)\}", lambda place: values[place[1]], template)
