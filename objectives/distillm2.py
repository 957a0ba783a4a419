"""DistiLLM-2: raise the likelihood of the teacher's text, lower that of the student's."""

import torch

from kdbench.api import Divergence, Field, Sampling, Source, Trajectories
from kdbench.divergences import kl, log_mixture, skew_kl


class DistiLLM2(Divergence):
    """Skewed KL on the teacher's text, skewed reverse KL on the student's.

    L = (2 − β) · mean over teacher sequences of KL(p‖αp + (1−α)q)
        + β · mean over student sequences of KL(q‖(1−α')p + α'q), mixture held constant

    A sequence's value is the mean over its tokens.
    """

    name = "distillm2"
    source = Source(
        title="DistiLLM-2: A Contrastive Approach Boosts the Distillation of LLMs",
        year=2025,
        url="https://arxiv.org/abs/2503.07067",
        equation="Eq. 6; code jongwooko/distillm-2@fe4cf9b",
        bibtex="@inproceedings{ko2025distillm2, title={DistiLLM-2: A Contrastive Approach Boosts the Distillation of "
        "LLMs}, author={Ko, Jongwoo and Chen, Tianyi and Kim, Sungnyun and Ding, Tianyu and Liang, Luming and Zharkov, "
        "Ilya and Yun, Se-Young}, booktitle={ICML}, year={2025}}",
        differs="The released code generates once an epoch, one pair a prompt, at temperature 0.8; here the student's "
        "half is fresh. Its curriculum of α (off by default) is not built; that of β is `gradual`.",
    )
    exempt = {"gradient_agrees_with_finite_differences": "the mixture of the student's half is held constant"}

    alpha: float = Field(0.1, ge=0, lt=1, description="the teacher's share in the mixture on teacher text")
    alpha_student: float = Field(0.1, ge=0, lt=1, description="the student's share in the mixture on student text")
    beta: float = Field(1.0, ge=0, le=2, description="weight of the student's half; the other weighs 2 − β")
    gradual: bool = Field(False, description="let β grow from β to 1.5 β over the first half of training")
    temperature: float = Field(0.8, gt=0, description="of both samplings")

    @property
    def trajectories(self):
        return Trajectories(
            fixed="teacher",
            decoding=Sampling("teacher", self.temperature),
            rollout=Sampling("student", self.temperature),
            paired=True,
        )

    def at(self, step):
        if not self.gradual:
            return self
        beta = min(2.0, self.beta * (1 + 0.5 * min(1.0, 2 * step.done)))
        return self.model_copy(update={"beta": beta, "gradual": False})

    def compare(self, student, teacher, tokens):
        p, q = teacher.log_probs, student.log_probs
        return {
            "teacher_text": skew_kl(p, q, self.alpha),
            "student_text": kl(q, log_mixture(q.detach(), p, self.alpha_student)),
        }

    def weights(self, tokens):
        mine = tokens.from_student
        each = _mean_of_sequence_means(tokens.sequence, mine), _mean_of_sequence_means(tokens.sequence, ~mine)
        return {"student_text": self.beta * each[0], "teacher_text": (2 - self.beta) * each[1]}


def _mean_of_sequence_means(sequence, chosen):
    """Return `[N]` weights under which Σ weight · value is the mean over sequences of their mean over chosen tokens."""
    lengths = torch.zeros(int(sequence.max()) + 1, dtype=torch.float64, device=sequence.device)
    lengths.index_add_(0, sequence, chosen.double())
    return chosen / (lengths[sequence].clamp(min=1) * (lengths > 0).sum().clamp(min=1))
