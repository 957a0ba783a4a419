"""CSD: matching the differences of logits instead of probabilities."""

from typing import Literal

import torch

from kdbench.api import Divergence, Field, Source


class CSD(Divergence):
    """Concrete score matching: weighted squared differences of logit gaps.

    L = (1/N) Σ_t ¼ Σ_ij w_i v_j (Δ_i − Δ_j)²,   Δ = z_student − z_teacher, weights w and v held constant

    With both weights the student's this is ½ Var_q(Δ), whose gradient is exactly that of reverse KL.
    """

    name = "csd"
    source = Source(
        title="Distillation of Large Language Models via Concrete Score Matching",
        year=2025,
        url="https://arxiv.org/abs/2509.25837",
        equation="code aailab-kaist/CSD@c77a3a7",
        bibtex="@article{kim2025csd, title={Distillation of Large Language Models via Concrete Score Matching}, "
        "author={Kim, Yeongmin and Shin, Donghyeok and Kang, Mina and Na, Byeonghu and Moon, Il-Chul}, "
        "journal={arXiv:2509.25837}, year={2025}}",
        differs="The released code returns a surrogate whose printed value means nothing; the gradient is the same.",
    )
    exempt = {
        "gradient_agrees_with_finite_differences": "the weights hold the student constant, as published",
        "a_class_that_one_model_excludes_gives_no_nan": "there the gap of logits is infinite, and so is its variance",
    }

    first: Literal["student", "teacher", "uniform"] = Field("student", description="weights w")
    second: Literal["student", "teacher", "uniform"] = Field("student", description="weights v")

    def compare(self, student, teacher, tokens):
        p, q = teacher.log_probs, student.log_probs
        known = q > float("-inf")
        gap = torch.where(known, q - p, 0.0)
        w, v = (self._weights(name, student, teacher, known) for name in (self.first, self.second))
        mean_w, mean_v = (w * gap).sum(-1), (v * gap).sum(-1)
        return {"csd": 0.25 * (((w + v) * gap.square()).sum(-1) - 2 * mean_w * mean_v)}

    def _weights(self, name, student, teacher, known):
        if name == "uniform":
            return known / known.sum(-1, keepdim=True)
        return (student if name == "student" else teacher).probs.detach()
