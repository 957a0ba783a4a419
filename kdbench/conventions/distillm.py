"""DistiLLM and DistiLLM-2: what their objectives are in kdbench. The same authors use 0.9 with opposite meanings.

A rule states only what was read in the version it names. Settings carry the code's own names and defaults.
"""

from __future__ import annotations

from kdbench.conventions.entries import (
    BOTH,
    GRADIENT,
    MICRO,
    NO_HEAT,
    SEQUENCE,
    SKEW_CE,
    SOFT_CE,
    STUDENT_BETA,
    TEACHER_BETA,
    Entry,
    Knob,
    choice,
    count,
    flag,
    inner,
    none,
    positive,
    recorder,
    rest,
    same,
    share,
    spec,
    weight,
)

DISTILLM: dict[str, Entry] = {}
_peer = recorder(DISTILLM)

# DistiLLM -------------------------------------------------------------------------------------------------------------

V1 = "DistiLLM d47e77f, {}"
RATIO = "Cross-entropy: (1 − kd_ratio) · CE + kd_ratio · KD; the scripts say kd_ratio 1, no cross-entropy."
PRETRAIN = "Data: with lm_data it adds lm_coef times the cross-entropy on a second corpus, which kdbench has not."
V1_NOTES = (NO_HEAT, RATIO, PRETRAIN, MICRO)


@_peer("distillm:fkl", V1.format("forward_kl"), kd_ratio=share(None))
def _v1_fkl(s):
    return same("kl", SOFT_CE, *V1_NOTES, how=GRADIENT, ce=rest(s.kd_ratio))


@_peer("distillm:rkl", V1.format("reverse_kl"), kd_ratio=share(None))
def _v1_rkl(s):
    return same("reverse_kl", *V1_NOTES, ce=rest(s.kd_ratio))


@_peer("distillm:jsd", V1.format("js_distance"), lam=inner(0.9), kd_ratio=share(None))
def _v1_jsd(s):
    return same("jsd", STUDENT_BETA, *V1_NOTES, beta=1 - s.lam, ce=rest(s.kd_ratio))


@_peer("distillm:mixed_jsd", V1.format("its GKD, --type mixed-jsd"), lam=inner(0.9), mixed_alpha=share(0.5))
def _v1_gkd(s):
    once = "Data: mixed_alpha is the chance of student text, lam here."
    return same("gkd", STUDENT_BETA, once, *V1_NOTES, beta=1 - s.lam, lam=s.mixed_alpha)


@_peer("distillm:mixed_fkl", V1.format("its ImitKD, --type mixed-fkl"), mixed_alpha=share(0.5))
def _v1_imitkd(s):
    text = "Data: mixed_alpha is the chance of student text, student_share here; its ImitKD is run with 1."
    return same("imitkd", SOFT_CE, text, *V1_NOTES, how=GRADIENT, student_share=s.mixed_alpha)


@_peer("distillm:sfkl", V1.format("skewed_forward_kl"), skew_alpha=inner(0.1), kd_ratio=share(None))
def _v1_sfkl(s):
    return same("skew_kl", SKEW_CE, *V1_NOTES, how=GRADIENT, alpha=s.skew_alpha, ce=rest(s.kd_ratio))


@_peer("distillm:srkl", V1.format("skewed_reverse_kl"), skew_alpha=inner(0.1), kd_ratio=share(None))
def _v1_srkl(s):
    return same("skew_reverse_kl", *V1_NOTES, alpha=s.skew_alpha, ce=rest(s.kd_ratio))


@_peer("distillm:tvd", V1.format("tv_distance"), kd_ratio=share(None))
def _v1_tvd(s):
    return same("tvd", *V1_NOTES, ce=rest(s.kd_ratio))


@_peer("distillm:symmetric_kl", V1.format("symmetric_kl"), lam=share(0.9), kd_ratio=share(None))
def _v1_symmetric(s):
    sense = "Weight: their lam is that of reverse KL; lam here is that of forward KL."
    how, soft = (GRADIENT, SOFT_CE) if s.lam < 1 else (BOTH, "")
    return same("jeffreys", sense, soft, *V1_NOTES, how=how, lam=1 - s.lam, ce=rest(s.kd_ratio))


@_peer(
    "distillm:adaptive",
    V1.format("--type adaptive-sfkl and adaptive-srkl"),
    type=choice("adaptive-sfkl", "adaptive-srkl"),
    skew_alpha=inner(0.1),
    init_threshold=share(0.0),
    loss_eps=weight(0.1),
    capacity=count(1000),
    kd_ratio=share(None),
)
def _v1_adaptive(s):
    forward = s.type == "adaptive-sfkl"
    return same(
        "distillm",
        forward and SKEW_CE,
        "Data: the chance of student text grows by 0.1 when the held-out loss is loss_eps above an earlier one: "
        "the first, or the one at which it last grew. It is first measured before the first step; here, after it.",
        "Data: the held-out loss is measured every eval_interval steps; here `validations` times.",
        *V1_NOTES,
        how=GRADIENT if forward else BOTH,
        alpha=s.skew_alpha,
        direction="forward" if forward else "reverse",
        phi=s.init_threshold,
        tolerance=s.loss_eps,
        capacity=s.capacity,
        ce=rest(s.kd_ratio),
    )


# DistiLLM-2: pairs of a teacher's (chosen) and a student's (rejected) response --------------------------------------

V2 = "DistiLLM-2 fe4cf9b, loss_type {}"
OFF_LINE = "Data: responses are generated between epochs, not while training."
PAIRS = f"{OFF_LINE} The loss is the sum, not the mean, of those on both responses."
CHOSEN = f"{OFF_LINE} The loss is on the first of each pair of responses alone."


@_peer("distillm2:distillm_v2", V2.format("distillm_v2"), gradual_beta=flag(False), update_alpha=flag(False))
def _v2(s):
    if s.update_alpha:
        why = "α follows running means of both models' confidence in each sequence; here it is fixed."
        return none(why, nearest=spec("distillm2", alpha=0.1, beta=1.0, gradual=s.gradual_beta or None))
    fixed = "Fixed there: α 0.1 on both sides, and β 1; the mixture of the student's half is held constant, as here."
    per_sequence = "Normaliser: the mean over each sequence, then over sequences, as in `distillm2`."
    return same("distillm2", fixed, OFF_LINE, per_sequence, alpha=0.1, beta=1.0, gradual=s.gradual_beta or None)


@_peer("distillm2:distillm_v1", V2.format("distillm_v1"))
def _v2_v1(s):
    held = "Fixed there: α 0.1. The mixture is held constant, unlike in DistiLLM's own code."
    return same("skew_reverse_kl", held, PAIRS, SEQUENCE, alpha=0.1, detach_mixture=True)


@_peer("distillm2:gkd", V2.format("gkd"), alpha=Knob(0.9, 0.9, 0.9))
def _v2_gkd(s):
    sense = f"{TEACHER_BETA} DistiLLM's own code weighs the student by the same 0.9. alpha is fixed in the code."
    return same("jsd", sense, PAIRS, SEQUENCE, beta=s.alpha)


@_peer("distillm2:kd", V2.format("kd"))
def _v2_kd(s):
    return same("kl", "Value: the true KL, unlike in DistiLLM's own code.", CHOSEN, SEQUENCE)


@_peer("distillm2:speculative_kd", V2.format("speculative_kd"))
def _v2_skd(s):
    text = f"{CHOSEN} It has to be interleaved text already; `skd` makes such text while training."
    return same("kl", text, SEQUENCE)


@_peer("distillm2:seqkd", V2.format("seqkd"))
def _v2_seqkd(s):
    return same("seqkd", CHOSEN, SEQUENCE)


@_peer("distillm2:dpkd", V2.format("dpkd"), beta=positive(0.1))
def _v2_dpkd(s):
    return none("A preference loss on pairs of sequences (DPO's form), no divergence of next-token distributions.")
