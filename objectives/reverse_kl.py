"""Word-level distillation with the reverse Kullback-Leibler divergence."""

from kdbench.api import Field, Objective, Source, Split
from kdbench.divergences import kl


class ReverseKL(Objective):
    """Reverse KL on the data's text: the student keeps to what the teacher finds likely.

    L = (1/N) Σ_t KL(q_t ‖ p_t),  p teacher, q student, both at temperature tau; times tau² with `tau_sq`.
    """

    name = "reverse_kl"
    source = Source(
        title="MiniLLM: Knowledge Distillation of Large Language Models (token-level form, on fixed text)",
        year=2024,
        url="https://arxiv.org/abs/2306.08543",
        equation="the single-step part of Eq. 5; the baseline 'Reverse KD' of the ATKD paper",
        bibtex="@inproceedings{gu2024minillm, title={MiniLLM: Knowledge Distillation of Large Language Models}, "
        "author={Gu, Yuxian and Dong, Li and Wei, Furu and Huang, Minlie}, booktitle={ICLR}, year={2024}}",
        differs="MiniLLM itself is a policy gradient on the student's text; this is its per-token part on the data.",
    )

    tau: float = Field(1.0, gt=0, description="temperature of both distributions")
    tau_sq: bool = Field(False, description="multiply by tau², which keeps the gradient's scale")

    def terms(self, student, teacher, target):
        student, teacher = student.tempered(self.tau), teacher.tempered(self.tau)
        return {"reverse_kl": self._scale() * kl(student.log_probs, teacher.log_probs)}

    def split(self, student, teacher, target):
        """KL(q‖p) = KL(q_b‖p_b) + (1−q_g) · KL(q̂‖p̂), exactly."""
        p, q = teacher.tempered(self.tau), student.tempered(self.tau)
        return Split(
            target=self._scale() * kl(q.log_binary, p.log_binary),
            diversity=self._scale() * kl(q.log_probs_others, p.log_probs_others),
            coefficient=q.log_binary[:, 1].exp(),
        )

    def _scale(self):
        return self.tau**2 if self.tau_sq else 1.0
