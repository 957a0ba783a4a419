"""ToDi: forward or reverse KL, chosen class by class."""

import torch

from kdbench.api import Divergence, Source


class ToDi(Divergence):
    """Forward KL where a class has too little mass, reverse KL where too much.

    L = (1/N) Σ_t Σ_i w_i p_i log(p_i/q_i) + (1 − w_i) q_i log(q_i/p_i),   w_i = p_i/(p_i + q_i), held constant

    The value is KL(p‖q) + KL(q‖p) exactly; only the gradient tells it from that sum.
    """

    name = "todi"
    source = Source(
        title="ToDi: Token-wise Distillation via Fine-Grained Divergence Control",
        year=2025,
        url="https://arxiv.org/abs/2505.16297",
        equation="code jungseongryong/ToDi@37e9bec",
        bibtex="@inproceedings{jung2025todi, title={ToDi: Token-wise Distillation via Fine-Grained Divergence "
        "Control}, author={Jung, Seongryong and others}, booktitle={EMNLP}, year={2025}}",
        differs="The scripts mix in half cross-entropy (kd_rate 0.5): ce=0.5 here.",
    )
    exempt = {"gradient_agrees_with_finite_differences": "the weights w hold the student constant, as published"}

    def compare(self, student, teacher, tokens):
        p, q = teacher.log_probs, student.log_probs
        ratio = (p - q).nan_to_num(nan=0.0, posinf=float("inf"), neginf=float("-inf"))
        forward = torch.sigmoid(ratio.detach())
        gap = ratio.clamp(-1e30, 1e30)
        return {"todi": (forward * teacher.probs * gap - (1 - forward) * student.probs * gap).sum(-1)}
