"""Code that papers released: what its objectives are in kdbench.

A rule states only what was read in the version it names. Settings carry the peer's own names and defaults.
"""

from __future__ import annotations

from kdbench.conventions.entries import (
    BOTH,
    FACTOR,
    GRADIENT,
    MICRO,
    NO_HEAT,
    SKEW_CE,
    SOFT_CE,
    SQUARE,
    STUDENT_BETA,
    Entry,
    Knob,
    choice,
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

PAPERS: dict[str, Entry] = {}
_peer = recorder(PAPERS)


# TAID's repository ----------------------------------------------------------------------------------------------------

TAID = "TAID a062892, {}"


@_peer("taid:taid", TAID.format("TAID"), t_start=share(0.4), t_end=share(1.0), alpha=share(5e-4), beta=inner(0.99))
def _taid(s):
    soft = "Value: it reports CE(p_t, q), and its t follows that value, as here."
    fields = {"t_start": s.t_start, "t_end": s.t_end, "rate": s.alpha, "momentum": s.beta}
    return same("taid", soft, NO_HEAT, MICRO, how=GRADIENT, **fields)


@_peer("taid:gkd", TAID.format("JS, its GKD"), teacher_weight=inner(0.1))
def _taid_js(s):
    return same(
        "jsd", "Weight: teacher_weight is the teacher's in the mixture, as beta here.", MICRO, beta=s.teacher_weight
    )


@_peer("taid:fkl", TAID.format("ForwardKL"))
def _taid_fkl(s):
    return same("kl", SOFT_CE, MICRO, how=GRADIENT)


@_peer("taid:rkl", TAID.format("ReverseKL"))
def _taid_rkl(s):
    return same("reverse_kl", MICRO)


@_peer("taid:tvd", TAID.format("TVD"))
def _taid_tvd(s):
    return same("tvd", MICRO)


@_peer("taid:skew_fkl", TAID.format("SkewForwardKL"), target_weight=inner(0.1))
def _taid_sfkl(s):
    return same("skew_kl", SKEW_CE, MICRO, how=GRADIENT, alpha=s.target_weight)


@_peer("taid:skew_rkl", TAID.format("SkewReverseKL"), target_weight=inner(0.1))
def _taid_srkl(s):
    return same("skew_reverse_kl", MICRO, alpha=s.target_weight)


@_peer("taid:adaptive_kl", TAID.format("AdaptiveKL"), head_threshold=inner(0.5))
def _taid_akl(s):
    why = "Head and tail: the mask is in the order of sorted classes, the gaps are not, so head and tail are mixed up."
    return none(why, nearest=spec("akl", mu=s.head_threshold))


@_peer("taid:dkd", TAID.format("DKD"), alpha=weight(1.0), beta=weight(0.5), temperature=positive(1.0))
def _taid_dkd(s):
    rows = "Normaliser: all tokens, padding and prompt too, though these add nothing; here, the valid tokens."
    mask = "Mask: the target is taken out by −1000, which fp16 cannot hold; here exactly."
    fields = {"alpha": s.alpha, "beta": s.beta, "tau": s.temperature, "tau_sq": True}
    return same("dkd", SQUARE, rows, mask, how=FACTOR, **fields)


# ABKD's repository ----------------------------------------------------------------------------------------------------

ABKD = "ABKD df81318, {}"


@_peer("abkd:ab", ABKD.format("ab_div"), ab_alpha=Knob(0.5, 0, 2), ab_beta=Knob(0.5, 0, 2))
def _abkd(s):
    a, b = s.ab_alpha, s.ab_beta
    if not a + b:
        return none("With both exponents 0 it is ½ Σ (log p − log q)², which `ab` has not.")
    scripts = "Defaults: the scripts set 0.2 and a sum of 0.9, which is alpha 0.2 and beta 0.7, the default of `ab`."
    limit = a + b if not a or not b else 1
    scale = limit != 1 and f"Scale: where one exponent is 0 it has 1/x, not 1/x²; its loss is {limit:g} times this one."
    return same("ab", scripts, scale, NO_HEAT, MICRO, how=FACTOR if scale else BOTH, alpha=a, beta=b)


@_peer("abkd:jsd", ABKD.format("js_distance"), lam=inner(0.1))
def _abkd_jsd(s):
    return same("jsd", STUDENT_BETA, MICRO, beta=1 - s.lam)


@_peer("abkd:wsd", ABKD.format("wsd"), lam=share(0.5))
def _abkd_wsd(s):
    sense = "Weight: their lam is that of reverse KL; lam here is that of forward KL."
    how, soft = (GRADIENT, SOFT_CE) if s.lam < 1 else (BOTH, "")
    return same("jeffreys", sense, soft, MICRO, how=how, lam=1 - s.lam)


@_peer("abkd:akl", ABKD.format("AKL"))
def _abkd_akl(s):
    return same("akl", "Fixed there: mu 0.5.", NO_HEAT, MICRO, mu=0.5)


@_peer("abkd:bdkd", ABKD.format("bdkd"))
def _abkd_bdkd(s):
    why = (
        "Forward and reverse KL, each times 3 or 1 at every token, by whose entropy is larger; `jeffreys` has no such."
    )
    return none(why, nearest=spec("jeffreys", lam=0.5))


# single methods -------------------------------------------------------------------------------------------------------


@_peer("akl:akl", "LLM_KD_AKL, AKL.py", mu=inner(0.5))
def _akl(s):
    return same("akl", NO_HEAT, mu=s.mu)


@_peer("minillm:kd", "MiniLLM (LMOps), finetune.py --type kd", kd_ratio=share(0.5))
def _minillm_kd(s):
    mix = "Cross-entropy: (1 − kd_ratio) · CE + kd_ratio · KD; the scripts say 0.5."
    return same("kl", SOFT_CE, NO_HEAT, mix, MICRO, how=GRADIENT, ce=rest(s.kd_ratio))


@_peer(
    "minillm:minillm",
    "MiniLLM (LMOps), train_minillm.py",
    teacher_mixed_alpha=share(0.2),
    gamma=share(0.95),
    reward_scaling=positive(0.5),
    cliprange=positive(0.2),
    lm_coef=weight(1.0),
    kd_ratio=share(0.5),
)
def _minillm(s):
    nearest = spec(
        "minillm",
        teacher_share=s.teacher_mixed_alpha,
        gamma=s.gamma,
        scaling=s.reward_scaling,
        clip=s.cliprange,
        lm_weight=s.lm_coef,
        lm_kd=s.kd_ratio,
    )
    return none(
        "A policy gradient on its own rollouts is no function of the logits of given text.",
        "Data: 256 rollouts serve four passes in mini-batches, and the language-modelling term reads a second corpus.",
        nearest=nearest,
    )


F_DISTILL = "f-distill 8e2ff7c, {}"
ROLLOUTS = "Data: the scripts sample with top-k 30 and six beams, from a student that was distilled before."


@_peer("fdistill:kl_sample", F_DISTILL.format("kl_sample"))
def _f_kl(s):
    return same("f_distill", NO_HEAT, ROLLOUTS, variant="kl")


@_peer("fdistill:rkl", F_DISTILL.format("rkl"))
def _f_rkl(s):
    return same("f_distill", NO_HEAT, ROLLOUTS, variant="rkl")


@_peer("fdistill:js", F_DISTILL.format("js"), beta=inner(0.5))
def _f_js(s):
    sense = "Beta: the student's weight in the mixture and of the student's half, as in `f_distill`, unlike in `jsd`."
    return same("f_distill", sense, "Defaults: one script says 0.85.", NO_HEAT, ROLLOUTS, variant="js", beta=s.beta)


@_peer("fdistill:tvd_symm", F_DISTILL.format("tvd_symm"))
def _f_tvd(s):
    return same("f_distill", NO_HEAT, ROLLOUTS, variant="tvd")


@_peer("fdistill:engine", F_DISTILL.format("engine"))
def _f_engine(s):
    why = "Σ q log p alone, without the student's entropy: it is least where the student is sure of the teacher's mode."
    return none(why, nearest=spec("f_distill", variant="rkl"))


@_peer("todi:todi", "ToDi 37e9bec, various_divergence.py", kd_rate=share(0.5))
def _todi(s):
    return same("todi", "Value: that of KL(p‖q) + KL(q‖p); only the gradient is ToDi's.", ce=rest(s.kd_rate))


@_peer("csd:csd", "CSD c77a3a7, csd/losses.py, weights (S, S)")
def _csd(s):
    why = "Value: its printed loss is a surrogate that means nothing; the gradient at temperature 1 is reverse KL's."
    return same("csd", why, how=GRADIENT)


# ATKD's release -------------------------------------------------------------------------------------------------------

ATKD = "ATKD 71802dc, {}"
TOKENS = "Tokens: EOS is never a target there (pad = eos), and where bos = eos the prompt may not be masked."
SOURCE = "Data: other sample_source values than gt change the text, not the loss; the like here is imitkd's."
ATKD_NOTES = (NO_HEAT, MICRO, TOKENS, SOURCE)


@_peer("atkd-release:forward", ATKD.format("kl_method forward"))
def _release_forward(s):
    return same("kl", *ATKD_NOTES)


@_peer("atkd-release:reverse", ATKD.format("kl_method reverse"))
def _release_reverse(s):
    return same("reverse_kl", *ATKD_NOTES)


@_peer("atkd-release:jsd", ATKD.format("kl_method jsd, the paper's GKD"))
def _release_jsd(s):
    return same("jeffreys", "Name: 0.9 · KL(p‖q) + 0.1 · KL(q‖p) has no mixture and is no JSD.", *ATKD_NOTES, lam=0.9)


@_peer("atkd-release:tvd", ATKD.format("kl_method tvd, the paper's f-distill"))
def _release_tvd(s):
    why = "Tokens: it selects by the mask of ignored positions, so the TVD is taken on prompt and padding, not on the "
    return none(why + "response.", nearest={"name": "tvd"})


@_peer("atkd-release:dkd", ATKD.format("kl_method dkd"), alpha=weight(0.2), beta=weight(1.0))
def _release_dkd(s):
    why = "As released it raises a TypeError: dkd_loss is called with six arguments and needs eight."
    return none(why, nearest=spec("dkd", alpha=s.alpha, beta=s.beta))


@_peer("atkd-release:seqkd", ATKD.format("kl_method seqkd"))
def _release_seqkd(s):
    return same(
        "seqkd", "Data: cross-entropy on the given labels; for `seqkd` these have to be the teacher's text.", TOKENS
    )


def _release_atkd(s):
    base = "" if s.setting == "vanilla" else "reverse_kl+"
    rank = "Ranking: by the median of each forward pass on one device, one sequence at the default batch of 1, as in "
    empty = (
        "Empty groups: it gives NaN with two valid tokens or fewer, and fails on ties; here the other group takes over."
    )
    lam = None if s.alpha == 0.2 else s.alpha
    return same(f"{base}atkd@release", rank + "atkd@release.", empty, *ATKD_NOTES, lam=lam)


@_peer("atkd-release:atkd", ATKD.format("kl_method atkd"), alpha=share(0.2), setting=choice("vanilla", "reverse"))
def _release_forward_atkd(s):
    return _release_atkd(s)


@_peer(
    "atkd-release:atkd-reverse", ATKD.format("kl_method atkd"), alpha=share(0.2), setting=choice("reverse", "vanilla")
)
def _release_reverse_atkd(s):
    return _release_atkd(s)
