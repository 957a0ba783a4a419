"""Skewed reverse KL: the teacher is mixed with the student before it is compared."""

from kdbench.api import Divergence, Field, Source, Split
from kdbench.divergences import kl, log_mixture, skew_parts


class SkewReverseKL(Divergence):
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

    detach_mixture: bool = Field(False, description="hold the mixture constant, as DistiLLM-2 does")

    def compare(self, student, teacher, tokens):
        q = student.log_probs
        mixture = log_mixture(q.detach() if self.detach_mixture else q, teacher.log_probs, self.alpha)
        return {"skew_reverse_kl": kl(q, mixture)}

    def decouple(self, student, teacher, tokens):
        return Split(*skew_parts(student, teacher, self.alpha))

    @property
    def can_split(self):
        return not self.detach_mixture
