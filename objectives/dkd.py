"""Decoupled knowledge distillation: the two parts of forward KL with weights of their own."""

from kdbench.api import Divergence, Field, Source, Split
from kdbench.divergences import kl_parts


class DKD(Divergence):
    """The target part and the diversity part of forward KL, each with a fixed weight.

    L = (1/N) Σ_t α · KL(p_b‖q_b) + β · KL(p̂‖q̂)

    Unlike in forward KL the diversity part does not shrink as the teacher grows sure. Published for images with
    α = 1, β = 8, τ = 4 and τ² (`dkd@images`); ports to language models use α = 1, β = 0.5 (TAID; the default) or
    α = 0.2, β = 1 (`dkd@atkd`, the arguments in ATKD's code), both at τ = 1.
    """

    name = "dkd"
    source = Source(
        title="Decoupled Knowledge Distillation",
        year=2022,
        url="https://arxiv.org/abs/2203.08679",
        equation="Eq. 7; code megvii-research/mdistiller",
        bibtex="@inproceedings{zhao2022decoupled, title={Decoupled Knowledge Distillation}, author={Zhao, Borui and "
        "Cui, Quan and Song, Renjie and Qiu, Yiyu and Liang, Jiajun}, booktitle={CVPR}, year={2022}}",
        differs="mdistiller adds cross-entropy with weight 1 (ce=0.5 here: the same at half the scale) and masks by "
        "−1000, which breaks in fp16; ATKD's released call of it raises a TypeError; TAID's port divides by all "
        "tokens, padding too.",
    )
    variants = {
        "images": {"alpha": 1.0, "beta": 8.0, "tau": 4.0, "tau_sq": True, "ce": 0.5, "warmup": 1 / 12},
        "atkd": {"alpha": 0.2, "beta": 1.0},
    }

    alpha: float = Field(1.0, ge=0, le=100, description="weight of the target part (TCKD)")
    beta: float = Field(0.5, ge=0, le=100, description="weight of the diversity part (NCKD)")
    warmup: float = Field(0.0, ge=0, le=1, description="share of training in which both weights grow from 0")

    def compare(self, student, teacher, tokens):
        target, diversity, _ = kl_parts(teacher, student)
        return {"tckd": self.alpha * target, "nckd": self.beta * diversity}

    def decouple(self, student, teacher, tokens):
        """Its own parts: ATKD round DKD regroups α · TCKD and β · NCKD."""
        target, diversity, _ = kl_parts(teacher, student)
        return Split(self.alpha * target, self.beta * diversity, diversity.new_ones(diversity.shape))

    def at(self, step):
        share = 1.0 if not self.warmup else min(1.0, (step.index + 1) / (self.warmup * step.total))
        return self.model_copy(update={"alpha": share * self.alpha, "beta": share * self.beta})
