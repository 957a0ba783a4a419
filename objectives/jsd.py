"""The generalised Jensen-Shannon divergence on fixed text."""

import math

from kdbench.api import Field, Objective, Source, Split
from kdbench.divergences import kl, log_mixture


class JSD(Objective):
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

    beta: float = Field(0.5, ge=0, le=1, description="weight of the teacher in the mixture; 0: forward KL, 1: reverse")
    normalised: bool = Field(False, description="divide by β(1 − β), so that the scale does not change with β")

    def terms(self, student, teacher, target):
        return {"jsd": self._divergence(teacher.log_probs, student.log_probs, self.beta)}

    def split(self, student, teacher, target):
        """D_β(p, q) = D_β(p_b, q_b) + ū · D_w(p̂, q̂), ū = β u_p + (1−β) u_q, w = β u_p / ū (held constant), exactly."""
        if self.beta in (0.0, 1.0):
            a, b = (teacher, student) if self.beta == 0 else (student, teacher)
            diversity, coefficient = kl(a.log_probs_others, b.log_probs_others), a.log_binary[:, 1].exp()
        else:
            log_u = log_mixture(teacher.log_binary[:, 1], student.log_binary[:, 1], self.beta)
            share = (math.log(self.beta) + teacher.log_binary[:, 1] - log_u).exp().detach()[:, None]
            diversity = self._scale() * _jsd(teacher.log_probs_others, student.log_probs_others, share)
            coefficient = log_u.exp()
        return Split(self._divergence(teacher.log_binary, student.log_binary, self.beta), diversity, coefficient)

    def _divergence(self, log_p, log_q, beta):
        if beta in (0.0, 1.0):
            return kl(log_p, log_q) if beta == 0 else kl(log_q, log_p)
        return self._scale() * _jsd(log_p, log_q, beta)

    def _scale(self):
        return 1 / (self.beta * (1 - self.beta)) if self.normalised else 1.0


def _jsd(log_p, log_q, beta):
    mixture = log_mixture(log_p, log_q, beta)
    weight = beta if isinstance(beta, float) else beta[:, 0]
    return weight * kl(log_p, mixture) + (1 - weight) * kl(log_q, mixture)
