"""Word-level distillation with the forward Kullback-Leibler divergence."""

from kdbench.api import Field, Objective, Source, Split
from kdbench.divergences import kl


class KL(Objective):
    """Forward KL on the data's text: the student covers all that the teacher may say.

    L = (1/N) Σ_t KL(p_t ‖ q_t),  p teacher, q student, both at temperature tau; times tau² with `tau_sq`.
    """

    name = "kl"
    source = Source(
        title="Distilling the Knowledge in a Neural Network",
        year=2015,
        url="https://arxiv.org/abs/1503.02531",
        equation="§2; word-level form: Kim & Rush 2016, Eq. 4",
        bibtex="@article{hinton2015distilling, title={Distilling the Knowledge in a Neural Network}, "
        "author={Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff}, journal={arXiv:1503.02531}, year={2015}}",
        differs="DistiLLM, TAID, torchtune and MiniPLM report CE(p,q) = KL + H(p): same gradient, other value. "
        "torchdistill and ModelOpt multiply by tau².",
    )

    tau: float = Field(1.0, gt=0, description="temperature of both distributions")
    tau_sq: bool = Field(False, description="multiply by tau², which keeps the gradient's scale")

    def terms(self, student, teacher, target):
        student, teacher = student.tempered(self.tau), teacher.tempered(self.tau)
        return {"kl": self._scale() * kl(teacher.log_probs, student.log_probs)}

    def split(self, student, teacher, target):
        """KL(p‖q) = KL(p_b‖q_b) + (1−p_g) · KL(p̂‖q̂), exactly."""
        p, q = teacher.tempered(self.tau), student.tempered(self.tau)
        return Split(
            target=self._scale() * kl(p.log_binary, q.log_binary),
            diversity=self._scale() * kl(p.log_probs_others, q.log_probs_others),
            coefficient=p.log_binary[:, 1].exp(),
        )

    def _scale(self):
        return self.tau**2 if self.tau_sq else 1.0
