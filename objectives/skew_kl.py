"""Skewed forward KL: the student is mixed with the teacher before it is compared."""

from kdbench.api import Field, ForwardForm, Source, Split
from kdbench.divergences import log_mixture, skew_parts


class SkewKL(ForwardForm):
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

    def compare(self, student, teacher, tokens):
        mixture = log_mixture(teacher.log_probs, student.log_probs, self.alpha)
        value, watched = self.forward_kl(teacher.log_probs, mixture, tokens)
        return {"skew_kl": value, **watched}

    def decouple(self, student, teacher, tokens):
        return Split(*skew_parts(teacher, student, self.alpha))
