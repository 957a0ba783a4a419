"""Total variation distance on fixed text."""

from kdbench.api import Divergence, Source, Split
from kdbench.divergences import tvd, tvd_parts


class TVD(Divergence):
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
        "computes it on the prompt and padding positions; these are no tokens here (a token is a target that is learnt "
        "from), so that cannot be run.",
    )

    def compare(self, student, teacher, tokens):
        return {"tvd": tvd(teacher.log_probs, student.log_probs)}

    def decouple(self, student, teacher, tokens):
        return Split(*tvd_parts(teacher, student))
