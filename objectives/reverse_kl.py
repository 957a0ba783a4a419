"""Word-level distillation with the reverse Kullback-Leibler divergence."""

from kdbench.api import Divergence, Source, Split
from kdbench.divergences import kl_of, kl_parts


class ReverseKL(Divergence):
    """Reverse KL on the data's text: the student keeps to what the teacher finds likely.

    L = (1/N) Σ_t KL(q_t ‖ p_t),  p teacher, q student.
    """

    name = "reverse_kl"
    source = Source(
        title="MiniLLM: Knowledge Distillation of Large Language Models (token-level form, on fixed text)",
        year=2024,
        url="https://arxiv.org/abs/2306.08543",
        equation="the single-step part of Eq. 5; the baseline 'Reverse KD' of the ATKD paper",
        bibtex="@inproceedings{gu2024minillm, title={MiniLLM: Knowledge Distillation of Large Language Models}, "
        "author={Gu, Yuxian and Dong, Li and Wei, Furu and Huang, Minlie}, booktitle={ICLR}, year={2024}}",
        differs="MiniLLM itself is a policy gradient on the student's text; this is its per-token part on the data.",
    )

    def compare(self, student, teacher, tokens):
        return {"reverse_kl": kl_of(student, teacher)}

    def decouple(self, student, teacher, tokens):
        return Split(*kl_parts(student, teacher))
