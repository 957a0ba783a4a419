"""ATKD: teach hard and easy tokens differently, and do not let a sure teacher mute the diversity term."""

import math
from typing import Literal

import torch
from pydantic import model_validator

from kdbench.api import Field, Objective, Source, Wrapper


class ATKD(Wrapper):
    """Adaptive teaching wrapped round any divergence that can be split (default: forward KL).

    D = TKD + UNC · DKD is decoupled, the factor UNC is dropped, and tokens are ranked by the teacher's
    uncertainty UNC = 1 − p(target) over the global batch (or within each sequence):

    L = λ · mean_easy DKD + (1 − λ) · mean_hard (TKD + DKD)

    Easy tokens (UNC below the threshold) skip TKD. UNC and the ranking are the teacher's also for reverse KL. With
    `hard_fraction` 0.5 the threshold is the lower median, as published; ties at the threshold are hard. If a group
    is empty the other one takes its share of the loss (the released code gives NaN there).
    """

    name = "atkd"
    source = Source(
        title="Revisiting Knowledge Distillation for Autoregressive Language Models",
        year=2024,
        url="https://aclanthology.org/2024.acl-long.587",
        equation="Eq. 4-6; code WHU-ZQH/ATKD@71802dc",
        bibtex="@inproceedings{zhong2024revisiting, title={Revisiting Knowledge Distillation for Autoregressive "
        "Language Models}, author={Zhong, Qihuang and Ding, Liang and Shen, Li and Liu, Juhua and Du, Bo and "
        "Tao, Dacheng}, booktitle={ACL}, year={2024}}",
        differs="The released code ranks within one forward micro-batch on one device (often one sequence) and gives "
        "NaN on an empty group; SE-KD's re-implementation divides both groups by N, half the scale.",
    )

    hard_fraction: float = Field(0.5, ge=0, le=1, description="share of tokens, the most uncertain, that are hard")
    lam: float = Field(0.2, ge=0, le=1, description="weight λ of the easy tokens")
    scope: Literal["batch", "sequence"] = Field("batch", description="within what tokens are ranked")
    grouping: Literal["group_mean", "token_mean"] = Field(
        "group_mean", description="divide each group by its own size (published) or by all tokens"
    )

    @model_validator(mode="after")
    def _base_can_be_split(self) -> "ATKD":
        if type(self.base).split is Objective.split:
            raise ValueError(f"{self.base.name!r} cannot be decoupled (it has no split), so ATKD cannot wrap it")
        return self

    def terms(self, student, teacher, target):
        split = self.base.split(student, teacher, target)
        return {"tkd": split.target, "dkd": split.diversity}

    def weights(self, tokens):
        hard = self._hard(tokens)
        easy_weight, hard_weight = self._group_weights(len(tokens), int(hard.sum()))
        ones = torch.ones_like(tokens.uncertainty)
        return {
            "tkd": torch.where(hard, hard_weight * ones, 0.0),
            "dkd": torch.where(hard, hard_weight * ones, easy_weight * ones),
        }

    def _hard(self, tokens):
        """Return `[N]` bool: UNC at or above the threshold of its scope."""
        uncertainty = tokens.uncertainty
        if self.scope == "batch":
            return self._at_or_above_threshold(uncertainty)
        hard = torch.zeros_like(uncertainty, dtype=torch.bool)
        for sequence in tokens.sequence.unique():
            members = tokens.sequence == sequence
            hard[members] = self._at_or_above_threshold(uncertainty[members])
        return hard

    def _at_or_above_threshold(self, uncertainty):
        n = uncertainty.numel()
        easy = _easy_count(n, self.hard_fraction)
        if easy >= n:
            return torch.zeros_like(uncertainty, dtype=torch.bool)
        return uncertainty >= uncertainty.sort().values[easy]

    def _group_weights(self, n, n_hard):
        """Return the weight of one easy and of one hard token."""
        if self.grouping == "token_mean":
            return self.lam / n, (1 - self.lam) / n
        n_easy = n - n_hard
        lam = 1.0 if not n_hard else 0.0 if not n_easy else self.lam
        return lam / max(n_easy, 1), (1 - lam) / max(n_hard, 1)


def _easy_count(n: int, hard_fraction: float) -> int:
    """How many of `n` tokens lie below the threshold; at ½ this is (n−1)//2, as below torch.median's lower median."""
    if hard_fraction == 0:
        return n
    return max(0, math.ceil(round((1 - hard_fraction) * n, 9)) - 1)
