"""Skewed reverse KL: the teacher is mixed with the student before it is compared."""

from kdbench.api import Field, Objective, Source, Split
from kdbench.divergences import kl, log_mixture


class SkewReverseKL(Objective):
    """Skewed reverse KL: bounded by −log α, with a tamer gradient where the teacher gives no mass.

    L = (1/N) Σ_t KL(q_t ‖ M_t),   M = (1 − α) p + α q
    """

    name = "skew_reverse_kl"
    source = Source(
        title="DistiLLM: Towards Streamlined Distillation for Large Language Models",
        year=2024,
        url="https://arxiv.org/abs/2402.03898",
        equation="Eq. 3",
        bibtex="@inproceedings{ko2024distillm, title={DistiLLM: Towards Streamlined Distillation for Large Language "
        "Models}, author={Ko, Jongwoo and Kim, Sungnyun and Chen, Tianyi and Yun, Se-Young}, booktitle={ICML}, "
        "year={2024}}",
        differs="DistiLLM-2 holds the mixture constant, which changes the gradient and not the value.",
    )

    alpha: float = Field(0.1, ge=0, lt=1, description="the student's share in the mixture; 0 is reverse KL")

    def terms(self, student, teacher, target):
        return {"skew_reverse_kl": kl(student.log_probs, log_mixture(student.log_probs, teacher.log_probs, self.alpha))}

    def split(self, student, teacher, target):
        """KL(q‖M) = KL(q_b‖M_b) + u_q · KL(q̂‖M̂), exactly; M̂ is M renormalised over the other classes."""
        p, q, alpha = teacher, student, self.alpha
        binary = log_mixture(q.log_binary, p.log_binary, alpha)
        others = (
            log_mixture(q.log_probs_others + q.log_binary[:, 1:], p.log_probs_others + p.log_binary[:, 1:], alpha)
            - binary[:, 1:]
        )
        return Split(kl(q.log_binary, binary), kl(q.log_probs_others, others), q.log_binary[:, 1].exp())
