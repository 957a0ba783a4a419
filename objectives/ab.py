"""The α-β divergence, which moves continuously between forward KL, reverse KL and Hellinger distance."""

from pydantic import model_validator

from kdbench.api import Divergence, Field, Source, Split
from kdbench.divergences import alpha_beta, alpha_beta_parts


class AB(Divergence):
    """The α-β divergence: α weighs the teacher's sure classes, β the student's.

    L = (1/N) Σ_t −1/(αβ) Σ_i [p^α q^β − α/(α+β) p^(α+β) − β/(α+β) q^(α+β)]

    (1, 0) is forward KL, (0, 1) reverse KL, (½, ½) is 4 (1 − Σ √pq), (1, 1) is ½ Σ (p − q)². Where one exponent is 0
    the limit is taken: Σ [p^α log(p^α/q^α) − p^α + q^α] / α² for β = 0.
    """

    name = "ab"
    source = Source(
        title="ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via α-β-Divergence",
        year=2025,
        url="https://arxiv.org/abs/2505.04560",
        equation="the α-β divergence of Cichocki et al. 2011; code ghwang-s/abkd",
        bibtex="@inproceedings{wang2025abkd, title={ABKD: Pursuing a Proper Allocation of the Probability Mass in "
        "Knowledge Distillation via α-β-Divergence}, author={Wang, Guanghui and others}, booktitle={ICML}, "
        "year={2025}}",
        differs="The released code has 1/α and 1/β in the limits, right only where the other exponent is 1.",
    )

    alpha: float = Field(0.2, ge=0, le=2, description="exponent of the teacher")
    beta: float = Field(0.7, ge=0, le=2, description="exponent of the student")

    @model_validator(mode="after")
    def _not_both_zero(self):
        if not self.alpha + self.beta:
            raise ValueError("alpha and beta cannot both be 0")
        return self

    def compare(self, student, teacher, tokens):
        return {"ab": alpha_beta(teacher.log_probs, student.log_probs, self.alpha, self.beta)}

    def decouple(self, student, teacher, tokens):
        return Split(*alpha_beta_parts(teacher, student, self.alpha, self.beta))
