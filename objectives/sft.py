"""Plain fine-tuning on the data: the arm without a teacher."""

from kdbench.api import Objective, Source


class SFT(Objective):
    """Cross-entropy on the data, without a teacher.

    L = (1/N) Σ_t −log q(y_t)
    """

    name = "sft"
    needs_teacher = False
    source = Source(
        title="Improving Language Understanding by Generative Pre-Training",
        year=2018,
        equation="Eq. 1, on the data of the distillation",
        bibtex="@techreport{radford2018improving, title={Improving Language Understanding by Generative Pre-Training}, "
        "author={Radford, Alec and Narasimhan, Karthik and Salimans, Tim and Sutskever, Ilya}, "
        "institution={OpenAI}, year={2018}}",
        differs="Trainers that average per micro-batch instead of per global token weight short batches more.",
    )

    def terms(self, student, teacher, tokens):
        return {"ce": -student.log_prob_target}
