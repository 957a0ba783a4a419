"""SE-KD: distil only where the student is uncertain."""

import math

import torch

from kdbench.api import Field, Source, Wrapper


class SEKD(Wrapper):
    """The base on the tokens of each sequence where the student is most uncertain.

    L = the base's weighted sum over the ⌈keep · n⌉ most uncertain tokens of each sequence, at the scale of the whole
    """

    name = "sekd"
    source = Source(
        title="SE-KD: student-entropy position selection",
        year=2026,
        url="https://arxiv.org/abs/2602.01395",
        equation="code almogtavor/SE-KD3x",
        bibtex="@article{tavor2026sekd, title={SE-KD: Student-Entropy Selective Knowledge Distillation}, "
        "journal={arXiv:2602.01395}, year={2026}}",
        differs="TIP keeps half of the tokens by the same measure (keep=0.5) and adds confident tokens where both "
        "disagree, which is not built here.",
    )

    keep: float = Field(0.2, gt=0, le=1, description="share of each sequence's tokens that are learnt from")

    def probe(self, student, teacher, tokens):
        return {**super().probe(student, teacher, tokens), "student_entropy": student.entropy}

    def terms(self, student, teacher, tokens):
        return self.base.terms(student, teacher, tokens)

    def weights(self, tokens):
        chosen = torch.zeros_like(tokens.sequence, dtype=torch.bool)
        for sequence in tokens.sequence.unique():
            members = (tokens.sequence == sequence).nonzero()[:, 0]
            size = math.ceil(round(self.keep * len(members), 9))
            chosen[members[tokens.known["student_entropy"][members].topk(size).indices]] = True
        uniform = torch.full(chosen.shape, 1 / len(tokens), dtype=torch.float64, device=chosen.device)
        scale = len(tokens) / chosen.sum()
        return {name: row * chosen * scale for name, row in ({"*": uniform} | dict(self.base.weights(tokens))).items()}
