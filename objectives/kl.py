"""Word-level distillation with the forward Kullback-Leibler divergence."""

from kdbench.api import ForwardForm, Source, Split
from kdbench.divergences import kl_parts


class KL(ForwardForm):
    """Forward KL on the data's text: the student covers all that the teacher may say.

    L = (1/N) Σ_t KL(p_t ‖ q_t),  p teacher, q student.
    """

    name = "kl"
    source = Source(
        title="Distilling the Knowledge in a Neural Network",
        year=2015,
        url="https://arxiv.org/abs/1503.02531",
        equation="§2; word-level form: Kim & Rush 2016, Eq. 4",
        bibtex="@article{hinton2015distilling, title={Distilling the Knowledge in a Neural Network}, "
        "author={Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff}, journal={arXiv:1503.02531}, year={2015}}",
        differs="DistiLLM, TAID, torchtune and MiniPLM report CE(p,q) = KL + H(p): same gradient, other value. "
        "torchdistill and ModelOpt multiply by tau².",
    )

    def compare(self, student, teacher, tokens):
        return self.forward_terms(student, teacher, tokens)

    def decouple(self, student, teacher, tokens):
        return Split(*kl_parts(teacher, student))
