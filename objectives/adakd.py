"""AdaKD: learn from the harder tokens, each at a temperature of its own."""

from typing import Literal

import torch
from pydantic import model_validator

from kdbench.api import Field, Source, Wrapper


class AdaKD(Wrapper):
    """The base on the batch's hardest tokens, each at a temperature of its own.

    s_t: how far student and teacher are apart; kept are the ⌊r N⌋ largest
    τ_t = τ₀ · exp(∓ c · tanh(log(s_t / median s))),   L = mean over kept tokens of τ_t² · D(p, q at τ_t)

    r starts at 1: it falls by 10 % where the loss's moving average fell by more than 10 % since the last change, and
    grows by 10 % where it rose by as much; never below 0.1. r and the average are part of the checkpoint.
    """

    name = "adakd"
    default_base = "reverse_kl"
    source = Source(
        title="LLM-Oriented Token-Adaptive Knowledge Distillation",
        year=2025,
        url="https://arxiv.org/abs/2510.11615",
        equation="LATF and IDTS; code SassyRong/AdaKD@66363ca, loss/losses.py and distillation.py",
        bibtex="@article{xie2025llm, title={LLM-Oriented Token-Adaptive Knowledge Distillation}, "
        "author={Xie, Xurong and Xue, Zhucun and Wu, Jiafu and Li, Jian and Wang, Yabiao and Hu, Xiaobin and Liu, Yong "
        "and Zhang, Jiangning}, journal={arXiv:2510.11615}, year={2025}}",
        differs="The paper measures difficulty by the Hellinger distance (the default here), the released code by "
        "reverse KL; the code ranks within a micro-batch, this over the global batch, and it lets the "
        "average settle during the warm-up before r may move.",
    )

    difficulty: Literal["hellinger", "reverse_kl"] = Field("hellinger", description="s, by which tokens are ranked")
    ratio: float = Field(1.0, gt=0, le=1, description="r at the first step")
    tau_base: float = Field(1.0, gt=0, description="τ₀")
    spread: float = Field(0.6, ge=0, le=5, description="c; 0: one temperature for all")
    direction: Literal["sharpen", "soften"] = Field("sharpen", description="lower or higher τ where tokens are hard")
    tolerance: float = Field(0.1, ge=0, description="relative change of the loss's average that moves r")
    pace: float = Field(0.1, ge=0, lt=1, description="by what share r moves")
    decay: float = Field(0.99, ge=0, lt=1, description="of the loss's moving average")

    @model_validator(mode="after")
    def _base_compares(self):
        if not self.base.reads_teacher or getattr(self.base, "tau", 1.0) != 1.0:
            raise ValueError(f"{self.base.label!r}: the base must compare with the teacher, at its own tau of 1")
        return self

    def probe(self, student, teacher, tokens):
        if self.difficulty == "hellinger":
            gaps = student.probs.sqrt() - teacher.probs.sqrt()
            found = (0.5 * gaps.square().sum(-1)).sqrt()
        else:
            log_ratio = (student.log_probs - teacher.log_probs).nan_to_num(nan=0.0)
            found = (student.probs * log_ratio).sum(-1)
        return {**super().probe(student, teacher, tokens), "difficulty": found}

    def derive(self, tokens):
        score = tokens.known["difficulty"]
        kept = torch.zeros_like(tokens.sequence, dtype=torch.bool)
        kept[score.topk(max(1, int(self.ratio * len(tokens)))).indices] = True
        relative = (score / score[kept].median().clamp(min=1e-30)).clamp(min=1e-8)
        sign = -1 if self.direction == "sharpen" else 1
        tau = self.tau_base * (sign * self.spread * relative.log().tanh()).exp()
        return {**super().derive(tokens), "kept": kept, "tau": tau}

    def terms(self, student, teacher, tokens):
        tau = tokens.known["tau"]
        measured = self.base.terms(student.tempered(tau), teacher.tempered(tau), tokens)
        return measured | {"watch/kept": tokens.known["kept"].to(tau.dtype), "watch/tau": tau}

    def weights(self, tokens):
        kept, tau = tokens.known["kept"], tokens.known["tau"].double()
        return self.scaled_weights(tokens, kept * tau.square() * (len(tokens) / kept.sum()))

    def at(self, step):
        moved = super().at(step)
        return moved.model_copy(update={"ratio": step.state.get("ratio", self.ratio)})

    def observe(self, step, measured):
        state = {**step.state, **super().observe(step, measured)}
        ratio, average = state.get("ratio", self.ratio), state.get("average", measured.loss)
        average = self.decay * average + (1 - self.decay) * measured.loss
        last = state.get("last", average)
        if average > last * (1 + self.tolerance):
            ratio, last = min(1.0, ratio * (1 + self.pace)), average
        elif average < last * (1 - self.tolerance):
            ratio, last = max(0.1, ratio * (1 - self.pace)), average
        return {**state, "ratio": ratio, "average": average, "last": last}
