"""Speculative KD: the student writes, and the teacher replaces what it would hardly have written."""

from kdbench.api import Divergence, Field, Sampling, Source, Split, Trajectories
from kdbench.divergences import jsd_of, jsd_parts


class SKD(Divergence):
    """JSD on text where the teacher redraws the student's unlikely tokens.

    L = (1/N) Σ_t D_β(p_t, q_t);   y_t ~ q, kept if among the teacher's `accepted` likeliest tokens, else y_t ~ p

    With every token accepted it is the student's text, with few nearly the teacher's. The share kept is logged.
    """

    name = "skd"
    source = Source(
        title="Speculative Knowledge Distillation: Bridging the Teacher-Student Gap Through Interleaved Sampling",
        year=2025,
        url="https://arxiv.org/abs/2410.11325",
        equation="Algorithm 1",
        bibtex="@inproceedings{xu2025speculative, title={Speculative Knowledge Distillation: Bridging the "
        "Teacher-Student Gap Through Interleaved Sampling}, author={Xu, Wenda and others}, booktitle={ICLR}, "
        "year={2025}}",
        differs="DistiLLM-2's speculative_kd generates off-line, between epochs.",
    )

    exempt = {"split_gradient_agrees_with_finite_differences": "the inner weight w holds the student constant"}

    accepted: int = Field(25, ge=1, description="K: a proposal among the teacher's K likeliest tokens is kept")
    beta: float = Field(0.0, ge=0, le=1, description="β of the divergence; 0: forward KL, 1: reverse KL")

    @property
    def trajectories(self):
        return Trajectories(rollout=Sampling("interleaved", accepted=self.accepted))

    def compare(self, student, teacher, tokens):
        return {"jsd": jsd_of(teacher, student, self.beta)}

    def decouple(self, student, teacher, tokens):
        return Split(*jsd_parts(teacher, student, self.beta))
