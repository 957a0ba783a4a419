"""Libraries of losses and their trainers: what their objectives are in kdbench.

A rule states only what was read in the version it names. Settings carry the peer's own names and defaults.
"""

from __future__ import annotations

from kdbench.conventions.entries import (
    BOTH,
    CALL,
    DRAWN,
    FACTOR,
    GLOBAL,
    GRADIENT,
    JUMP,
    NO_HEAT,
    NO_SQUARE,
    NO_SUPPORT,
    SHARED_TOP_K,
    SOFT_CE,
    SQUARE,
    TEACHER_BETA,
    Entry,
    choice,
    count,
    flag,
    none,
    positive,
    recorder,
    rest,
    same,
    share,
    spec,
    top,
    weight,
    weighted,
)

LIBRARIES: dict[str, Entry] = {}
_peer = recorder(LIBRARIES)


@_peer(
    "trl:gkd",
    "TRL 1.16.0, experimental GKDTrainer",
    beta=share(0.5),
    lmbda=share(0.5),
    temperature=positive(0.9),
    seq_kd=flag(False),
)
def _trl_gkd(s):
    return same(
        "gkd",
        TEACHER_BETA,
        JUMP,
        "Temperature: only the sampling of student text sees it; the loss is taken at τ = 1.",
        f"{GLOBAL} The bare function generalized_jsd_loss divides by the batch size if called without labels.",
        DRAWN,
        s.seq_kd and "Data: seq_kd takes this divergence on the teacher's text; cross-entropy on it is `seqkd` here.",
        beta=s.beta,
        lam=s.lmbda,
        temperature=s.temperature if s.lmbda else None,
        off_policy="teacher" if s.seq_kd else "corpus",
    )


@_peer("trl:distillation", "TRL 1.16.0, DistillationTrainer", beta=share(1.0), temperature=positive(1.0))
def _trl_distillation(s):
    text = "Data: student text only, sampled at the same temperature; the trainer has no lmbda any more."
    heat = {"tau": s.temperature, "temperature": s.temperature}
    return same("gkd", TEACHER_BETA, JUMP, NO_SQUARE, GLOBAL, text, beta=s.beta, lam=1.0, **heat)


@_peer(
    "trl:iw_opd",
    "TRL 1.16.0, experimental IWOPDTrainer, local teacher",
    distillation_objective=choice("iw_opd", "jsd"),
    beta=share(1.0),
    lmbda=share(1.0),
    temperature=positive(1.0),
    loss_top_k=count(1, low=0),
    loss_add_tail=flag(True),
    iw_opd_gamma=weight(0.5),
)
def _trl_iw_opd(s):
    heat = {"tau": s.temperature, "temperature": s.temperature if s.lmbda else 1.0}
    if s.distillation_objective == "iw_opd":
        why = "A policy gradient on sampled tokens: the advantage of `opd`, times 1 + γ (1 − the share of Σ|A| passed)."
        return none(why, nearest={"name": "opd"})
    if not s.loss_top_k:
        return same("gkd", TEACHER_BETA, JUMP, NO_SQUARE, DRAWN, beta=s.beta, lam=s.lmbda, **heat)
    if s.beta:
        which = "the student's top-k" if s.beta == 1 else "the student's top-k united with the teacher's"
        why = f"Support: at this beta it is {which}. {NO_SUPPORT}"
        return none(why, nearest=spec("gkd", beta=s.beta, lam=s.lmbda, **heat))
    tail = "all other classes are one more, on both sides", "over which both sides are renormalised"
    return same(
        "imitkd" if s.lmbda else "kl",
        f"Support: the teacher's top-k, {tail[0 if s.loss_add_tail else 1]}.",
        s.loss_add_tail and "Value: the mass of the other classes is at least 1e-7 there.",
        NO_SQUARE,
        s.lmbda and f"{DRAWN} Sampling at another temperature than 1 has no setting in `imitkd`.",
        support="topk+tail" if s.loss_add_tail else "topk_both",
        support_size=s.loss_top_k,
        student_share=s.lmbda or None,
        tau=s.temperature,
    )


@_peer("trl:minillm", "TRL 1.10 (not in 1.16.0), experimental MiniLLMTrainer")
def _trl_minillm(s):
    why = "A policy gradient with discount and length normalisation, plus the single-step reverse KL: no function of "
    return none(
        why + "the logits alone. Its settings were not compared with those of `minillm`.", nearest={"name": "minillm"}
    )


@_peer("liger:jsd", "Liger 0.8.5, LigerJSD and fused_linear_jsd (Triton)", beta=share(0.5), temperature=positive(1.0))
def _liger_jsd(s):
    plain = "LigerJSD takes log-probabilities and no temperature; the fused one calls beta `jsd_beta`."
    return same("jsd", TEACHER_BETA, JUMP, NO_SQUARE, plain, CALL, beta=s.beta, tau=s.temperature)


@_peer(
    "liger:fused_linear_jsd",
    "Liger 0.8.5, chunked_loss.LigerFusedLinearJSDLoss",
    beta=share(0.5),
    temperature=positive(1.0),
    weight_hard_loss=weight(0.5),
    weight_soft_loss=weight(0.5),
)
def _liger_fused_linear_jsd(s):
    return weighted(
        s.weight_soft_loss,
        s.weight_hard_loss,
        "jsd",
        TEACHER_BETA,
        JUMP,
        NO_SQUARE,
        "Cross-entropy: half of the loss unless weight_hard_loss and weight_soft_loss are set; at temperature 1.",
        "Vocabulary: a student's smaller one is padded with logits of 0; here a mismatch is refused.",
        CALL,
        beta=s.beta,
        tau=s.temperature,
    )


@_peer("liger:kl_div", "Liger 0.8.5, LigerKLDIVLoss (Triton)", reduction=choice("mean", "batchmean"))
def _liger_kl_div(s):
    rows = {
        "mean": "Normaliser: its default divides by tokens × vocabulary: smaller by the vocabulary's size.",
        "batchmean": "Normaliser: all tokens.",
    }
    how = FACTOR if s.reduction == "mean" else BOTH
    return same("kl", rows[s.reduction], "Tokens: none are ignored.", NO_HEAT, how=how)


@_peer("liger:tvd", "Liger 0.8.5, LigerTVDLoss (Triton)")
def _liger_tvd(s):
    return same("tvd", "Input: probabilities, not logits.", CALL)


TUNE = "torchtune 0.6.1, {}"
RECIPE = "Cross-entropy: recipes mix (1 − kd_ratio) · CE + kd_ratio · KD; set kd_ratio to see it in the specification."


@_peer("torchtune:forward_kl", TUNE.format("ForwardKLLoss"), kd_ratio=share(None))
def _torchtune_forward_kl(s):
    return same("kl", SOFT_CE, NO_HEAT, RECIPE, CALL, how=GRADIENT, ce=rest(s.kd_ratio))


@_peer("torchtune:reverse_kl", TUNE.format("ReverseKLLoss"), kd_ratio=share(None))
def _torchtune_reverse_kl(s):
    return same("reverse_kl", NO_HEAT, RECIPE, CALL, ce=rest(s.kd_ratio))


@_peer("torchtune:symmetric_kl", TUNE.format("SymmetricKLLoss"), sym_kd_ratio=share(0.5), kd_ratio=share(None))
def _torchtune_symmetric_kl(s):
    sense = "Weight: sym_kd_ratio is that of forward KL, as lam here."
    how = GRADIENT if s.sym_kd_ratio else BOTH
    soft = s.sym_kd_ratio and SOFT_CE
    return same("jeffreys", sense, soft, NO_HEAT, RECIPE, CALL, how=how, lam=s.sym_kd_ratio, ce=rest(s.kd_ratio))


@_peer(
    "torchdistill:kd",
    "torchdistill 1.1.5, mid_level.KDLoss (it has no default temperature and alpha)",
    temperature=positive(1.0),
    alpha=share(0.0),
    beta=weight(None),
)
def _torchdistill_kd(s):
    trap = "Trap: with alpha = 0, or without targets, it returns the KL alone, without τ² and without beta."
    rows = "Normaliser: all rows of [N, V] logits (classes in dimension 1); only the cross-entropy can ignore some."
    if not s.alpha:
        return same("kl", trap, rows, tau=s.temperature)
    kd = 1 - s.alpha if s.beta is None else s.beta
    return weighted(kd, s.alpha, "kl", SQUARE, trap, rows, tau=s.temperature, tau_sq=True)


@_peer(
    "modelopt:logits",
    "ModelOpt 0.47.0, LogitsDistillationLoss and the Hugging Face trainer",
    temperature=positive(1.0),
    reduction=choice("none", "mean", "batchmean"),
    use_liger_kernel=flag(False),
    liger_jsd_beta=share(0.0),
)
def _modelopt_logits(s):
    if s.use_liger_kernel:
        jump = f"{NO_SQUARE} Without use_liger_kernel there is τ²: one flag changes the scale."
        return same("jsd", TEACHER_BETA, JUMP, jump, CALL, beta=s.liger_jsd_beta, tau=s.temperature)
    how = FACTOR if s.reduction == "mean" else BOTH
    rows = {
        "none": "Normaliser: the trainer averages over the micro-batch's valid tokens (reduction none).",
        "mean": "Normaliser: the class's own default divides by tokens × vocabulary: smaller by the vocabulary's size.",
        "batchmean": "Normaliser: the first dimension, whatever it is.",
    }
    return same("kl", SQUARE, rows[s.reduction], how=how, tau=s.temperature, tau_sq=True)


@_peer(
    "modelopt:megatron",
    "ModelOpt 0.47.0, Megatron LogitsKLLoss and TopKLogitsKLLoss",
    temperature=positive(1.0),
    reverse=flag(False),
    top_k=count(None),
)
def _modelopt_megatron(s):
    split = f"{NO_SQUARE} ModelOpt's Hugging Face loss has τ²."
    if not s.reverse:
        return same("kl", split, s.top_k and SHARED_TOP_K, tau=s.temperature, **top(s.top_k))
    if s.top_k:
        return none(f"{SHARED_TOP_K} {NO_SUPPORT}", nearest=spec("reverse_kl", tau=s.temperature))
    return same("reverse_kl", split, tau=s.temperature)
