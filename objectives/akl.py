"""Adaptive KL: both directions of KL, weighted by where student and teacher disagree."""

from kdbench.api import Divergence, Field, Source
from kdbench.divergences import kl


class AKL(Divergence):
    """Both directions of KL, weighted by the gap in the teacher's head and tail.

    L = (1/N) Σ_t g_h/(g_h+g_t) · KL(p‖q) + g_t/(g_h+g_t) · KL(q‖p),   g = Σ |p − q| over head or tail, q held constant

    The head are the likeliest classes of the teacher whose cumulative mass stays within `mu`, at least one of them.
    """

    name = "akl"
    source = Source(
        title="Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language Models",
        year=2024,
        url="https://arxiv.org/abs/2404.02657",
        equation="AKL; code wutaiqiang/LLM_KD_AKL",
        bibtex="@article{wu2024rethinking, title={Rethinking Kullback-Leibler Divergence in Knowledge Distillation for "
        "Large Language Models}, author={Wu, Taiqiang and Tao, Chaofan and Wang, Jiahao and Yang, Runming and Zhao, "
        "Zhe and Wong, Ngai}, journal={arXiv:2404.02657}, year={2024}}",
        differs="DSKD and ToDi sort ascending, so the class at the boundary falls on the other side; TAID's version "
        "applies a mask in sorted order to unsorted gaps.",
    )
    exempt = {"gradient_agrees_with_finite_differences": "the weights g hold the student constant, as published"}

    mu: float = Field(0.5, ge=0, le=1, description="mass of the head")

    def compare(self, student, teacher, tokens):
        head = self._head_share(student, teacher)
        p, q = teacher.log_probs, student.log_probs
        return {"forward": head * kl(p, q), "reverse": (1 - head) * kl(q, p)}

    def _head_share(self, student, teacher):
        ordered, index = teacher.probs.sort(-1, descending=True)
        gaps = (ordered - student.probs.detach().gather(-1, index)).abs()
        head = ordered.cumsum(-1) <= self.mu
        head[:, 0] = True
        in_head = (gaps * head).sum(-1)
        total = gaps.sum(-1)
        return (in_head / total.clamp(min=1e-30)).where(total > 0, 0.5)
