"""Skewed forward KL: the student is mixed with the teacher before it is compared."""

from kdbench.api import Field, Objective, Source, Split
from kdbench.divergences import kl, log_mixture


class SkewKL(Objective):
    """Skewed forward KL: bounded by −log α, and smooth where the student gives no mass.

    L = (1/N) Σ_t KL(p_t ‖ M_t),   M = α p + (1 − α) q
    """

    name = "skew_kl"
    source = Source(
        title="DistiLLM: Towards Streamlined Distillation for Large Language Models",
        year=2024,
        url="https://arxiv.org/abs/2402.03898",
        equation="Eq. 2",
        bibtex="@inproceedings{ko2024distillm, title={DistiLLM: Towards Streamlined Distillation for Large Language "
        "Models}, author={Ko, Jongwoo and Kim, Sungnyun and Chen, Tianyi and Yun, Se-Young}, booktitle={ICML}, "
        "year={2024}}",
        differs="DistiLLM reports CE(p, M) = KL + H(p): the same gradient, another value.",
    )

    alpha: float = Field(0.1, ge=0, lt=1, description="the teacher's share in the mixture; 0 is forward KL")

    def terms(self, student, teacher, target):
        return {"skew_kl": kl(teacher.log_probs, log_mixture(teacher.log_probs, student.log_probs, self.alpha))}

    def split(self, student, teacher, target):
        """KL(p‖M) = KL(p_b‖M_b) + u_p · KL(p̂‖M̂), exactly; M̂ is M renormalised over the other classes."""
        p, q, alpha = teacher, student, self.alpha
        binary = log_mixture(p.log_binary, q.log_binary, alpha)
        others = (
            log_mixture(p.log_probs_others + p.log_binary[:, 1:], q.log_probs_others + q.log_binary[:, 1:], alpha)
            - binary[:, 1:]
        )
        return Split(kl(p.log_binary, binary), kl(p.log_probs_others, others), p.log_binary[:, 1].exp())
