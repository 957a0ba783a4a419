"""Sequence-level distillation: fine-tuning on text that the teacher wrote."""

from kdbench.api import Field, Objective, Sampling, Source, Trajectories


class SeqKD(Objective):
    """Cross-entropy on text that the teacher wrote after the corpus' prompts.

    L = (1/N) Σ_t −log q(y_t),   y ~ teacher

    The text is made once per teacher and decoding, before training, and stored under a content key.
    """

    name = "seqkd"
    needs_signal = False
    source = Source(
        title="Sequence-Level Knowledge Distillation",
        year=2016,
        url="https://aclanthology.org/D16-1139",
        equation="§3.2",
        bibtex="@inproceedings{kim2016sequence, title={Sequence-Level Knowledge Distillation}, author={Kim, Yoon and "
        "Rush, Alexander M.}, booktitle={EMNLP}, year={2016}}",
        differs="Kim & Rush decode by beam search (beams=5), DistiLLM samples at temperature 1; TRL's seq_kd=True "
        "generates with the teacher but then takes the JSD on logits, which is gkd with off_policy=teacher.",
    )

    temperature: float = Field(1.0, gt=0, description="of the teacher's sampling")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus of the teacher's sampling")
    greedy: bool = Field(False, description="the likeliest token instead of a draw")
    beams: int = Field(1, ge=1, le=64, description="width of a beam search instead of sampling; 1 is none")

    @property
    def trajectories(self):
        decoding = Sampling("teacher", self.temperature, top_p=self.top_p, greedy=self.greedy, beams=self.beams)
        return Trajectories(fixed="teacher", decoding=decoding)

    def terms(self, student, teacher, tokens):
        return {"ce": -student.log_prob_target}
