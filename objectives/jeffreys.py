"""A weighted sum of both directions of the KL divergence."""

from kdbench.api import Field, Objective, Source, Split
from kdbench.divergences import kl


class Jeffreys(Objective):
    """Both directions of KL, weighted: λ KL(p‖q) + (1 − λ) KL(q‖p).

    L = (1/N) Σ_t λ KL(p_t‖q_t) + (1 − λ) KL(q_t‖p_t)
    """

    name = "jeffreys"
    source = Source(
        title="An invariant form for the prior probability in estimation problems",
        year=1946,
        equation="the symmetric divergence; weighted form: torchtune's SymmetricKLLoss",
        bibtex="@article{jeffreys1946invariant, title={An invariant form for the prior probability in estimation "
        "problems}, author={Jeffreys, Harold}, journal={Proceedings of the Royal Society A}, year={1946}}",
        differs="torchtune's sym_kd_ratio is our lam; DistiLLM's symmetric_kl(lam=0.9) is lam 0.1; ATKD's released "
        "'jsd' is lam 0.9; AdaKD adds both with weight 1.",
    )

    lam: float = Field(0.5, ge=0, le=1, description="weight of the forward direction")

    def terms(self, student, teacher, target):
        p, q = teacher.log_probs, student.log_probs
        return {"forward": self.lam * kl(p, q), "reverse": (1 - self.lam) * kl(q, p)}

    def split(self, student, teacher, target):
        """The parts of both directions, without their coefficients; not one product form unless lam is 0 or 1."""
        p, q, lam = teacher, student, self.lam
        both = [
            lam * kl(a, b) + (1 - lam) * kl(b, a)
            for a, b in ((p.log_binary, q.log_binary), (p.log_probs_others, q.log_probs_others))
        ]
        coefficient = lam * p.log_binary[:, 1].exp() + (1 - lam) * q.log_binary[:, 1].exp()
        return Split(both[0], both[1], coefficient)
