"""Total variation distance on fixed text."""

from kdbench.api import Objective, Source, Split


class TVD(Objective):
    """Total variation distance: symmetric, at most 1, with a kink where the distributions agree.

    L = (1/N) Σ_t ½ Σ_i |p_i − q_i|
    """

    name = "tvd"
    source = Source(
        title="f-Divergence Minimization for Sequence-Level Knowledge Distillation",
        year=2023,
        url="https://aclanthology.org/2023.acl-long.605",
        equation="the step-wise TVD, on fixed text",
        bibtex="@inproceedings{wen2023fdivergence, title={f-Divergence Minimization for Sequence-Level Knowledge "
        "Distillation}, author={Wen, Yuqiao and Li, Zichao and Du, Wenyu and Mou, Lili}, booktitle={ACL}, year={2023}}",
        differs="f-distill takes half of it on the student's and half on the teacher's text. ATKD's released code "
        "computes it on the prompt and padding positions.",
    )

    def terms(self, student, teacher, target):
        return {"tvd": 0.5 * (student.probs - teacher.probs).abs().sum(-1)}

    def split(self, student, teacher, target):
        """By definition, not an identity: |p_g − q_g| and TVD(p̂, q̂). Their sum bounds TVD from above."""
        p, q = teacher, student
        others = 0.5 * (p.log_probs_others.exp() - q.log_probs_others.exp()).abs().sum(-1)
        least = p.log_binary[:, 1].minimum(q.log_binary[:, 1]).exp()
        return Split((p.log_binary[:, 0].exp() - q.log_binary[:, 0].exp()).abs(), others, least)
