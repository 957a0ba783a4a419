"""A weighted sum of both directions of the KL divergence."""

from kdbench.api import Divergence, Field, Source, Split
from kdbench.divergences import kl_of, kl_parts


class Jeffreys(Divergence):
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
        "'jsd' is lam 0.9 (`jeffreys@atkd_release`); AdaKD adds both with weight 1.",
    )
    variants = {"atkd_release": {"lam": 0.9}}

    lam: float = Field(0.5, ge=0, le=1, description="weight of the forward direction")

    def compare(self, student, teacher, tokens):
        return {"forward": self.lam * kl_of(teacher, student), "reverse": (1 - self.lam) * kl_of(student, teacher)}

    def decouple(self, student, teacher, tokens):
        """The parts of both directions, without their coefficients; not one product form unless lam is 0 or 1."""
        forward, reverse = kl_parts(teacher, student), kl_parts(student, teacher)
        return Split(*(self.lam * a + (1 - self.lam) * b for a, b in zip(forward, reverse, strict=True)))
