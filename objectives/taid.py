"""TAID: a target that moves from the student to the teacher while training."""

import math

from kdbench.api import Divergence, Field, Source
from kdbench.divergences import kl


class TAID(Divergence):
    """Forward KL to a distribution between student and teacher, which moves towards the teacher.

    L = (1/N) Σ_t KL(p_t ‖ q),   p_t = softmax((1 − t) · z_student (held constant) + t · z_teacher)

    t grows with the steps, faster while the loss falls: δ = (L_prev − L)/L_prev, μ ← βμ + (1−β)δ,
    t ← min(t_end, max(t_start + (t_end − t_start) · step/total, t + α σ(μ) (1 − t))). It is part of the checkpoint. At
    t = 1 the gradient is forward KL's, at t = 0 it is zero.
    """

    name = "taid"
    source = Source(
        title="TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in Language Models",
        year=2025,
        url="https://arxiv.org/abs/2501.16937",
        equation="Eq. 3-6; code SakanaAI/TAID@a062892",
        bibtex="@inproceedings{shing2025taid, title={TAID: Temporally Adaptive Interpolated Distillation for Efficient "
        "Knowledge Transfer in Language Models}, author={Shing, Makoto and Misaki, Kou and Bao, Han and Yokoi, Sho and "
        "Akiba, Takuya}, booktitle={ICLR}, year={2025}}",
        differs="TAID reports CE(p_t, q) = KL + H(p_t), and its t follows that value; so does ours, which logs it as "
        "`target_ce` beside the true divergence. Its Pythia script starts at 0.2.",
    )
    exempt = {"gradient_agrees_with_finite_differences": "the target p_t holds the student constant, as published"}

    t_start: float = Field(0.4, ge=0, le=1, description="t at the first step")
    t_end: float = Field(1.0, ge=0, le=1, description="t at the end")
    rate: float = Field(5e-4, ge=0, le=1, description="α, how much t follows the loss")
    momentum: float = Field(0.99, ge=0, lt=1, description="β, of the loss's relative change")

    def compare(self, student, teacher, tokens):
        target = _between(student.log_probs.detach(), teacher.log_probs, self.t_start)
        value = kl(target, student.log_probs)
        return {"taid": value, "watch/target_ce": value - kl(target, target * 0)}

    def at(self, step):
        return self.model_copy(update={"t_start": step.state.get("t", self.t_start)})

    def observe(self, step, measured):
        if "target_ce" not in measured.watched:  # a batch without a token
            return step.state
        t, loss = step.state.get("t", self.t_start), measured.watched["target_ce"]
        previous = step.state.get("previous", loss)
        change = (previous - loss) / (previous + 1e-15)
        momentum = self.momentum * step.state.get("momentum", 0.0) + (1 - self.momentum) * change
        pace = self.t_start + (self.t_end - self.t_start) * step.done
        t = min(self.t_end, max(pace, t + self.rate * (1 - t) / (1 + math.exp(-momentum))))
        return {"t": t, "momentum": momentum, "previous": loss}


def _between(log_q, log_p, t):
    """log softmax((1 − t) · log q + t · log p); a class that either model excludes is excluded."""
    mixed = log_q if t == 0 else log_p if t == 1 else (1 - t) * log_q + t * log_p
    return mixed.log_softmax(-1)
