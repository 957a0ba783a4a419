"""f-distill: sequence-level f-divergences, each side on its own text."""

from typing import Literal

import torch

from kdbench.api import Field, ForwardForm, Sampling, Source, Split, Trajectories
from kdbench.divergences import kl_of, kl_parts, skew_kl, skew_parts, tvd, tvd_parts


class FDistill(ForwardForm):
    """A sequence-level f-divergence, each half of it on its own text.

    kl:   mean over teacher text of KL(p‖q)
    rkl:  mean over student text of KL(q‖p)
    js:   (1−β) · mean over teacher text of KL(p‖m) + β · mean over student text of KL(q‖m),  m = (1−β) p + β q
    tvd:  ½ · mean over teacher text of TVD(p, q) + ½ · mean over student text of TVD(p, q)

    `js` and `tvd` take each half on its own source; both halves of a batch follow the same prompts.
    """

    name = "f_distill"
    source = Source(
        title="f-Divergence Minimization for Sequence-Level Knowledge Distillation",
        year=2023,
        url="https://aclanthology.org/2023.acl-long.605",
        equation="Eq. 6-13; code MANGA-UOFA/fdistill@8e2ff7c",
        bibtex="@inproceedings{wen2023fdivergence, title={f-Divergence Minimization for Sequence-Level Knowledge "
        "Distillation}, author={Wen, Yuqiao and Li, Zichao and Du, Wenyu and Mou, Lili}, booktitle={ACL}, year={2023}}",
        differs="The released scripts generate with top-k 30 and six beams after a pre-distilled student, and one of "
        "them weighs js by 0.85; ATKD's released baseline takes the TVD on prompt and padding positions.",
    )

    variant: Literal["kl", "rkl", "js", "tvd"] = Field("tvd", description="the f-divergence")
    beta: float = Field(0.5, gt=0, lt=1, description="js: weight of the student's half and share in the mixture")
    top_k: int = Field(0, ge=0, description="of the student's and teacher's sampling; 0: all classes")

    @property
    def trajectories(self):
        student, teacher = Sampling("student", top_k=self.top_k), Sampling("teacher", top_k=self.top_k)
        if self.variant == "kl":
            return Trajectories(fixed="teacher", decoding=teacher)
        if self.variant == "rkl":
            return Trajectories(rollout=student)
        return Trajectories(fixed="teacher", decoding=teacher, rollout=student, paired=True)

    def compare(self, student, teacher, tokens):
        if self.variant == "kl":
            return self.forward_terms(student, teacher, tokens)
        if self.variant == "rkl":
            return {"reverse_kl": kl_of(student, teacher)}
        p, q = teacher.log_probs, student.log_probs
        if self.variant == "tvd":
            return {"tvd": tvd(p, q)}
        return {"js": torch.where(tokens.from_student, skew_kl(q, p, self.beta), skew_kl(p, q, 1 - self.beta))}

    def decouple(self, student, teacher, tokens):
        if self.variant == "kl":
            return Split(*kl_parts(teacher, student))
        if self.variant == "rkl":
            return Split(*kl_parts(student, teacher))
        if self.variant == "tvd":
            return Split(*tvd_parts(teacher, student))
        mine, theirs = skew_parts(student, teacher, self.beta), skew_parts(teacher, student, 1 - self.beta)
        return Split(*(torch.where(tokens.from_student, a, b) for a, b in zip(mine, theirs, strict=True)))

    def weights(self, tokens):
        """Each half is the mean over its own source, times its weight; a missing source leaves the other alone."""
        if self.variant in ("kl", "rkl"):
            return {}
        mine = tokens.from_student.double()
        share = self.beta if self.variant == "js" else 0.5
        theirs = 1 - mine
        halves = share * mine / mine.sum().clamp(min=1) + (1 - share) * theirs / theirs.sum().clamp(min=1)
        return {self.variant: halves}
