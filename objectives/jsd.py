"""The generalised Jensen-Shannon divergence on fixed text."""

from kdbench.api import Divergence, Field, Source, Split
from kdbench.divergences import jsd_factor, jsd_of, jsd_parts


class JSD(Divergence):
    """Generalised Jensen-Shannon divergence; β is the teacher's weight in the mixture.

    m = β p + (1 − β) q,   D_β = β KL(p‖m) + (1 − β) KL(q‖m),   L = (1/N) Σ_t D_β

    D_0 is forward KL and D_1 reverse KL by definition, as in GKD and TRL, though D_β → 0 as β → 0 or 1: the value
    jumps there, and the gradient's scale changes with β. With `normalised` the divergence is divided by β(1 − β), which
    tends to forward KL as β → 0 and to reverse KL as β → 1.
    """

    name = "jsd"
    source = Source(
        title="On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes (GKD)",
        year=2024,
        url="https://arxiv.org/abs/2306.13649",
        equation="Eq. 1",
        bibtex="@inproceedings{agarwal2024onpolicy, title={On-Policy Distillation of Language Models: Learning from "
        "Self-Generated Mistakes}, author={Agarwal, Rishabh and Vieillard, Nino and Zhou, Yongchao and Stanczyk, Piotr "
        "and Ramos, Sabela and Geist, Matthieu and Bachem, Olivier}, booktitle={ICLR}, year={2024}}",
        differs="TRL and Liger weigh the teacher by beta, as here; DistiLLM's mixed-jsd and TAID's GKD use D_0.1, "
        "ABKD's and DistiLLM-2's D_0.9. ATKD's released 'jsd' is 0.9 KL + 0.1 reverse KL, which is no JSD.",
    )

    exempt = {"split_gradient_agrees_with_finite_differences": "the inner weight w holds the student constant"}

    beta: float = Field(0.5, ge=0, le=1, description="weight of the teacher in the mixture; 0: forward KL, 1: reverse")
    normalised: bool = Field(False, description="divide by β(1 − β), so that the scale does not change with β")

    def compare(self, student, teacher, tokens):
        return {"jsd": jsd_factor(self.beta, self.normalised) * jsd_of(teacher, student, self.beta)}

    def decouple(self, student, teacher, tokens):
        return Split(*jsd_parts(teacher, student, self.beta)).times(jsd_factor(self.beta, self.normalised))
