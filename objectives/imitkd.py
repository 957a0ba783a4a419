"""ImitKD: forward KL on the student's own text, so that it learns to recover from its own mistakes."""

from typing import Literal

from kdbench.api import Field, ForwardForm, Sampling, Source, Split, Trajectories
from kdbench.divergences import kl_parts


class ImitKD(ForwardForm):
    """Forward KL, or the teacher's likeliest token, on the student's own text.

    L = (1/N) Σ_t KL(p_t ‖ q_t)  or  (1/N) Σ_t −log q_t(argmax p_t),   y ~ student with chance `student_share`

    With `schedule: exponential` the chance is 1 − 200^(−step/total), as published: first the data, then the student.
    The default is the form that DistiLLM, ATKD and others run as 'ImitKD': forward KL on student text alone.
    """

    name = "imitkd"
    source = Source(
        title="Autoregressive Knowledge Distillation through Imitation Learning",
        year=2020,
        url="https://aclanthology.org/2020.emnlp-main.494",
        equation="Eq. 7, Algorithm 1; code asappresearch/imitkd",
        bibtex="@inproceedings{lin2020autoregressive, title={Autoregressive Knowledge Distillation through Imitation "
        "Learning}, author={Lin, Alexander and Wohlwend, Jeremy and Chen, Howard and Lei, Tao}, booktitle={EMNLP}, "
        "year={2020}}",
        differs="The paper decodes greedily and, in its plain form, learns the teacher's argmax on student contexts "
        "(imitkd@paper); DistiLLM and ATKD take the full forward KL on samples.",
    )
    variants = {"paper": {"schedule": "exponential", "targets": "argmax", "greedy": True}}

    student_share: float = Field(1.0, ge=0, le=1, description="chance that a batch is the student's text")
    schedule: Literal["fixed", "exponential"] = Field("fixed", description="of that chance")
    targets: Literal["full", "argmax"] = Field("full", description="the teacher's distribution or its likeliest token")
    greedy: bool = Field(False, description="the student's likeliest token instead of a draw")

    @property
    def trajectories(self):
        rollout = Sampling("student", greedy=self.greedy)
        return Trajectories(rollout=rollout, chance=self.student_share, adapts=self.schedule != "fixed")

    def at(self, step):
        if self.schedule == "fixed":
            return self
        share = min(self.student_share, 1 - 200**-step.done)
        return self.model_copy(update={"student_share": share, "schedule": "fixed"})

    def compare(self, student, teacher, tokens):
        if self.targets == "argmax":
            likeliest = teacher.log_probs.argmax(-1, keepdim=True)
            return {"ce": -student.log_probs.gather(-1, likeliest)[:, 0]}
        return self.forward_terms(student, teacher, tokens)

    def decouple(self, student, teacher, tokens):
        return Split(*kl_parts(teacher, student))

    @property
    def can_split(self):
        return super().can_split and self.targets == "full"
