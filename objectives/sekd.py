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
        title="Rethinking Selective Knowledge Distillation",
        year=2026,
        url="https://arxiv.org/abs/2602.01395",
        equation="SE-KD, position selection by student entropy; code almogtavor/SE-KD3x",
        bibtex="@article{tavor2026rethinking, title={Rethinking Selective Knowledge Distillation}, author={Tavor, "
        "Almog and Ebenspanger, Itay and Cnaan, Neil and Geva, Mor}, journal={arXiv:2602.01395}, year={2026}}",
        differs="SE-KD3X also selects samples and draws classes (support: sampled). TIP keeps half of the tokens by "
        "the same measure (keep=0.5) and adds confident tokens where both disagree, which is not built here.",
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
        return self.scaled_weights(tokens, chosen.double() * (len(tokens) / chosen.sum()))
