"""GKD: the generalised Jensen-Shannon divergence on a mixture of the data's and the student's text."""

from typing import Literal

from pydantic import model_validator

from kdbench.api import Divergence, Field, Sampling, Source, Split, Trajectories
from kdbench.divergences import jsd_factor, jsd_of, jsd_parts, kl_of, kl_parts


class GKD(Divergence):
    """Generalised JSD on student text with chance λ, else on the data.

    L = (1/N) Σ_t D_β(p_t, q_t),   m = β p + (1 − β) q,   D_β = β KL(p‖m) + (1 − β) KL(q‖m)

    λ is drawn once for a global batch; no gradient flows through the sampling. D_0 is forward and D_1 reverse KL by
    definition, though D_β → 0 at both ends: see `jsd`. The paper tries β of 0.1, 0.5, 0.9 and λ of 0, 0.5, 1.

    `gkd@atkd_release` is the baseline that ATKD's released code calls jsd on a mixture of texts: no mixture of
    distributions, but 0.9 KL(p‖q) + 0.1 KL(q‖p) (`form: weighted_kl`).
    """

    name = "gkd"
    source = Source(
        title="On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
        year=2024,
        url="https://arxiv.org/abs/2306.13649",
        equation="Eq. 1, Algorithm 1",
        bibtex="@inproceedings{agarwal2024onpolicy, title={On-Policy Distillation of Language Models: Learning from "
        "Self-Generated Mistakes}, author={Agarwal, Rishabh and Vieillard, Nino and Zhou, Yongchao and Stanczyk, Piotr "
        "and Ramos, Sabela and Geist, Matthieu and Bachem, Olivier}, booktitle={ICLR}, year={2024}}",
        differs="TRL draws λ per micro-batch and rank and samples at temperature 0.9; DistiLLM's and TAID's 'GKD' is "
        "D_0.1, ABKD's and DistiLLM-2's D_0.9; ATKD's released baseline is 0.9 KL + 0.1 reverse KL, no JSD.",
    )

    variants = {"atkd_release": {"form": "weighted_kl", "beta": 0.9}}
    exempt = {"split_gradient_agrees_with_finite_differences": "the inner weight w holds the student constant"}

    beta: float = Field(
        0.5,
        ge=0,
        le=1,
        description="weight of the teacher in the mixture; 0: forward KL, 1: reverse; weighted_kl: of KL",
    )
    form: Literal["jsd", "weighted_kl"] = Field("jsd", description="the JSD, or β KL(p‖q) + (1 − β) KL(q‖p)")
    lam: float = Field(0.5, ge=0, le=1, description="λ, chance that a global batch is the student's text")
    normalised: bool = Field(False, description="divide by β(1 − β), so that the scale does not change with β")
    temperature: float = Field(1.0, gt=0, description="of the student's sampling; the loss does not see it")
    off_policy: Literal["corpus", "teacher"] = Field("corpus", description="the other text")

    @model_validator(mode="after")
    def _only_a_jsd_has_a_factor(self) -> "GKD":
        if self.normalised and self.form != "jsd":
            raise ValueError("`normalised` goes with the JSD; weighted_kl has the same scale for every beta")
        return self

    @property
    def trajectories(self):
        return Trajectories(
            fixed=self.off_policy, rollout=Sampling("student", self.temperature) if self.lam else None, chance=self.lam
        )

    def compare(self, student, teacher, tokens):
        if self.form == "weighted_kl":
            return {
                "forward": self.beta * kl_of(teacher, student),
                "reverse": (1 - self.beta) * kl_of(student, teacher),
            }
        return {"jsd": jsd_factor(self.beta, self.normalised) * jsd_of(teacher, student, self.beta)}

    def decouple(self, student, teacher, tokens):
        if self.form == "weighted_kl":  # the parts of both directions; no product form, as in `jeffreys`
            both = zip(kl_parts(teacher, student), kl_parts(student, teacher), strict=True)
            return Split(*(self.beta * a + (1 - self.beta) * b for a, b in both))
        return Split(*jsd_parts(teacher, student, self.beta)).times(jsd_factor(self.beta, self.normalised))
