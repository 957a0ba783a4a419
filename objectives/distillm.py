"""DistiLLM: skewed KL on data, on fresh student text and on a replay buffer, whose share adapts."""

from typing import Literal

from kdbench.api import Divergence, Field, Sampling, Source, Split, Trajectories
from kdbench.divergences import skew_kl, skew_parts


class DistiLLM(Divergence):
    """Skewed KL with adaptive off-policy use of the student's text.

    L = (1/N) Σ_t KL(p‖αp + (1−α)q)  (forward)  or  KL(q‖(1−α)p + αq)  (reverse)

    A batch is the student's with chance φ, and then fresh with chance 1 − step/total, else from the replay buffer. φ
    starts at 0 and grows by 0.1 at each validation where the held-out loss lies by ε or more above its value at the
    start, or where φ last grew. φ and the buffer are part of the checkpoint.
    """

    name = "distillm"
    source = Source(
        title="DistiLLM: Towards Streamlined Distillation for Large Language Models",
        year=2024,
        url="https://arxiv.org/abs/2402.03898",
        equation="Eq. 2-3, Algorithm 1; code jongwooko/distillm@d47e77f",
        bibtex="@inproceedings{ko2024distillm, title={DistiLLM: Towards Streamlined Distillation for Large Language "
        "Models}, author={Ko, Jongwoo and Kim, Sungnyun and Chen, Tianyi and Yun, Se-Young}, booktitle={ICML}, "
        "year={2024}}",
        differs="The released code first measures the held-out loss before the first step, not after it; it adds "
        "cross-entropy on OpenWebText (lm_coef 1), which needs a second corpus and is left out here; and it reports "
        "CE(p, M), not the divergence.",
    )

    alpha: float = Field(0.1, ge=0, lt=1, description="skew: the share of the first distribution in the mixture")
    direction: Literal["forward", "reverse"] = Field("forward", description="skewed forward or reverse KL")
    phi: float = Field(0.0, ge=0, le=1, description="first chance of student text")
    tolerance: float = Field(0.1, ge=0, description="ε: by how much the held-out loss must rise for φ to grow")
    validations: int = Field(10, ge=1, description="how often it is measured over the whole training")
    capacity: int = Field(1000, ge=1, description="sequences in the replay buffer")
    fresh: float = Field(1.0, ge=0, le=1, description="share of the student's batches that are fresh; falls to 0")

    @property
    def trajectories(self):
        return Trajectories(
            rollout=Sampling("student"), chance=self.phi, adapts=True, replay=self.capacity, fresh=self.fresh
        )

    def at(self, step):
        return self.model_copy(update={"phi": step.state.get("phi", self.phi), "fresh": self.fresh * (1 - step.done)})

    def observe(self, step, measured):
        if not step.state:
            return {"phi": self.phi, "held_out": measured.validate()}
        if (step.index + 1) % max(1, step.total // self.validations):
            return step.state
        loss = measured.validate()
        if loss < step.state["held_out"] + self.tolerance:
            return step.state
        return {"phi": min(1.0, step.state["phi"] + 0.1), "held_out": loss}

    def compare(self, student, teacher, tokens):
        p, q = teacher.log_probs, student.log_probs
        return {"skew": skew_kl(p, q, self.alpha) if self.direction == "forward" else skew_kl(q, p, self.alpha)}

    def decouple(self, student, teacher, tokens):
        a, b = (teacher, student) if self.direction == "forward" else (student, teacher)
        return Split(*skew_parts(a, b, self.alpha))
