"""On-policy distillation: the sampled-token reverse KL as the advantage of a policy gradient."""

from typing import Literal

from kdbench.api import Field, Objective, Sampling, Source, Trajectories


class OPD(Objective):
    """Policy gradient: the advantage is log p − log q of the student's token.

    L = −(1/N) Σ_t A_t · q(y_t)/q_old(y_t),   A_t = −κ (log q_old(y_t) − log p(y_t)) + b,   y ~ student

    On fresh text the expected gradient is that of κ · KL(q‖p) at each step. `baseline: value` adds
    b = κ · KL(q_old‖p), the closed-form value, which leaves the expectation alone and lowers the variance (vOPD).
    """

    name = "opd"
    source = Source(
        title="On-Policy Distillation (Thinking Machines Lab)",
        year=2025,
        url="https://thinkingmachines.ai/blog/on-policy-distillation",
        equation="code tinker-cookbook@9dfcc3a, distillation/train_on_policy.py; baseline: vOPD, arXiv 2605.07865",
        bibtex="@misc{lu2025onpolicy, title={On-Policy Distillation}, author={Lu, Kevin and {Thinking Machines Lab}}, "
        "year={2025}}",
        differs="The cookbook adds the advantage to a task reward of 0 and may discount; TRL's IW-OPD weighs A_t by "
        "the share of the trajectory still to come.",
    )

    kappa: float = Field(1.0, gt=0, description="κ, scale of the advantage")
    baseline: Literal["none", "value"] = Field("none", description="subtract the expected advantage")
    reuse: int = Field(1, ge=1, description="optimiser steps that one batch of text serves")

    @property
    def exempt(self):
        found = {"never_negative": "a policy gradient's surrogate has no sign"}
        if self.baseline == "value":
            found["a_class_that_one_model_excludes_gives_no_nan"] = (
                "the baseline is reverse KL, which is infinite there"
            )
        return found

    @property
    def trajectories(self):
        return Trajectories(rollout=Sampling("student"), reuse=self.reuse)

    def probe(self, student, teacher, tokens):
        log_q = student.log_prob_target
        advantage = -self.kappa * (log_q - teacher.log_prob_target)
        if self.baseline == "value":
            log_ratio = (student.log_probs - teacher.log_probs).nan_to_num(nan=0.0)
            advantage = advantage + self.kappa * (student.probs * log_ratio).sum(-1)
        return {"log_q": log_q, "advantage": advantage}

    def terms(self, student, teacher, tokens):
        ratio = (student.log_prob_target - tokens.known["log_q"]).exp()
        return {"policy": -tokens.known["advantage"] * ratio, "watch/advantage": tokens.known["advantage"]}
