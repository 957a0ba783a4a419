"""MiniLLM: sequence-level reverse KL by policy gradient."""

import torch

from kdbench.api import Field, Objective, Sampling, Source, Trajectories
from kdbench.divergences import kl, log_mixture


class MiniLLM(Objective):
    """Sequence-level reverse KL by a clipped policy gradient with long-range credit.

    y ~ a · p + (1 − a) · q_old,   w_t = q_old(y_t) / (a p(y_t) + (1 − a) q_old(y_t))
    r_t = clip((log p(y_t) − log q_old(y_t)) / scaling, ±100)
    R_t = Σ_{t' ≥ t} γ^(t'−t) r_t' / (tokens left), whitened over the batch
    L = −mean max-clipped(R_t · w_t q/q_old)  +  mean KL(q‖p) on that text  +  (1−ρ) CE + ρ KL(p‖q) on the data

    One batch of text serves `reuse` optimiser steps, clipped as in PPO.
    """

    name = "minillm"
    source = Source(
        title="MiniLLM: Knowledge Distillation of Large Language Models",
        year=2024,
        url="https://arxiv.org/abs/2306.08543",
        equation="Eq. 2-6, Algorithm 1; code LMOps/minillm",
        bibtex="@inproceedings{gu2024minillm, title={MiniLLM: Knowledge Distillation of Large Language Models}, "
        "author={Gu, Yuxian and Dong, Li and Wei, Furu and Huang, Minlie}, booktitle={ICLR}, year={2024}}",
        differs="The released code collects 256 rollouts and passes over them four times in mini-batches; here each "
        "batch serves four steps. Its pre-training term reads a second corpus; here it reads the data. TRL's MiniLLM "
        "has no teacher-mixed sampling by default.",
    )
    exempt = {
        "never_negative": "a policy gradient's surrogate has no sign",
        "zero_when_student_equals_teacher": "the language-modelling term holds cross-entropy on the data",
        "token_order_does_not_matter": "a token is paid for what comes after it",
    }

    teacher_share: float = Field(0.2, ge=0, lt=1, description="a, the teacher's share in the sampling")
    gamma: float = Field(0.95, ge=0, le=1, description="γ, discount of later rewards")
    scaling: float = Field(0.5, gt=0, description="what rewards are divided by")
    clip: float = Field(0.2, gt=0, description="PPO's clip of the ratio")
    reuse: int = Field(4, ge=1, description="optimiser steps that one batch of text serves")
    lm_weight: float = Field(1.0, ge=0, description="weight of the language-modelling term on the data")
    lm_kd: float = Field(0.5, ge=0, le=1, description="ρ, the share of forward KL in it; the rest is cross-entropy")

    @property
    def trajectories(self):
        rollout = Sampling("mixed", teacher_share=self.teacher_share)
        return Trajectories(rollout=rollout, paired=bool(self.lm_weight), reuse=self.reuse)

    def probe(self, student, teacher, tokens):
        log_q, log_p = student.log_prob_target, teacher.log_prob_target
        log_mixed = log_mixture(log_p[:, None], log_q[:, None], self.teacher_share)[:, 0]
        reward = ((log_p - log_q) / self.scaling).clamp(-100, 100)
        return {"log_q": log_q, "importance": (log_q - log_mixed).exp(), "reward": reward}

    def derive(self, tokens):
        mine = tokens.from_student
        advantage = torch.zeros_like(tokens.known["reward"])
        for sequence in tokens.sequence[mine].unique():
            members = mine & (tokens.sequence == sequence)
            advantage[members] = _long_range(tokens.known["reward"][members], self.gamma)
        if int(mine.sum()) > 1:
            chosen = advantage[mine]
            advantage[mine] = (chosen - chosen.mean()) * (chosen.var(correction=0) + 1e-8).rsqrt()
        return {"advantage": advantage}

    def terms(self, student, teacher, tokens):
        advantage = tokens.known["advantage"].to(student.log_probs.dtype)
        ratio = tokens.known["importance"] * (student.log_prob_target - tokens.known["log_q"]).exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        forward = kl(teacher.log_probs, student.log_probs)
        return {
            "policy": torch.maximum(-advantage * ratio, -advantage * clipped),
            "single_step": kl(student.log_probs, teacher.log_probs),
            "language_modelling": self.lm_kd * forward - (1 - self.lm_kd) * student.log_prob_target,
        }

    def weights(self, tokens):
        mine = tokens.from_student
        on_text = mine / mine.sum().clamp(min=1).double()
        on_data = ~mine / (~mine).sum().clamp(min=1).double()
        return {"policy": on_text, "single_step": on_text, "language_modelling": self.lm_weight * on_data}


def _long_range(reward, gamma):
    """Σ_{t' ≥ t} γ^(t'−t) r_t' / (tokens left from t), `[T]`."""
    total, sums = reward.new_zeros(()), []
    for value in reward.flip(0):
        total = value + gamma * total
        sums.append(total)
    left = torch.arange(len(reward), 0, -1, device=reward.device)
    return torch.stack(sums).flip(0) / left
