"""Training toolkits: what their objectives are in kdbench.

A rule states only what was read in the version it names. Settings carry the peer's own names and defaults.
"""

from __future__ import annotations

from kdbench.conventions.entries import (
    DRAWN,
    FULL_TOP_K,
    GLOBAL,
    GRADIENT,
    JUMP,
    MICRO,
    NO_SQUARE,
    NO_SUPPORT,
    SHARED_TOP_K,
    SQUARE,
    STUDENT_BETA,
    TEACHER_BETA,
    Entry,
    Match,
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
    top,
    weight,
    weighted,
)

TOOLKITS: dict[str, Entry] = {}

_peer = recorder(TOOLKITS)

# KDFlow ---------------------------------------------------------------------------------------------------------------

FLOW = "KDFlow 3a7a21a, vanilla_kd with kd_loss_fn {}"
FLOW_CE = (
    "Cross-entropy: (1 − kd_ratio) · CE + kd_ratio · KD, by default 0.5; set kd_ratio to see it in the specification."
)
FLOW_NOTES = (NO_SQUARE, FLOW_CE, "Vocabulary: both are cut to the smaller one.", GLOBAL)
FLOW_KNOBS = {"kd_temperature": positive(1.0), "kd_ratio": share(None)}


def _flow(s):
    return {"tau": s.kd_temperature, "ce": rest(s.kd_ratio)}


@_peer("kdflow:jsd", FLOW.format("jsd"), jsd_beta=inner(0.5), **FLOW_KNOBS)
def _flow_jsd(s):
    return same("jsd", STUDENT_BETA, *FLOW_NOTES, beta=1 - s.jsd_beta, **_flow(s))


@_peer("kdflow:kl", FLOW.format("kl"), **FLOW_KNOBS)
def _flow_kl(s):
    return same("kl", *FLOW_NOTES, **_flow(s))


@_peer("kdflow:rkl", FLOW.format("rkl"), **FLOW_KNOBS)
def _flow_rkl(s):
    return same("reverse_kl", *FLOW_NOTES, **_flow(s))


@_peer("kdflow:skl", FLOW.format("skl"), skew_lambda=inner(0.1), **FLOW_KNOBS)
def _flow_skl(s):
    return same("skew_kl", *FLOW_NOTES, alpha=s.skew_lambda, **_flow(s))


@_peer("kdflow:srkl", FLOW.format("srkl"), skew_lambda=inner(0.1), **FLOW_KNOBS)
def _flow_srkl(s):
    return same("skew_reverse_kl", *FLOW_NOTES, alpha=s.skew_lambda, **_flow(s))


@_peer("kdflow:tvd", FLOW.format("tvd"), **FLOW_KNOBS)
def _flow_tvd(s):
    return same("tvd", *FLOW_NOTES, **_flow(s))


@_peer("kdflow:akl", FLOW.format("akl"), adaptive_alpha=inner(0.5), **FLOW_KNOBS)
def _flow_akl(s):
    why = (
        "Head and tail: it sums the teacher's probabilities from the smallest up, and the tail is where the sum is at "
    )
    more = "most adaptive_alpha; `akl` sums from the largest down. The class at the border falls on the other side."
    return none(why + more, nearest=spec("akl", mu=1 - s.adaptive_alpha, **_flow(s)))


@_peer("kdflow:top1_ce", FLOW.format("top1_ce"), **FLOW_KNOBS)
def _flow_top1(s):
    why = "The cross-entropy on the teacher's likeliest class, times its probability; its mass is not renormalised."
    return none(why, nearest=spec("kl", support="topk", support_size=1, **_flow(s)))


# ms-swift, NeMo-RL, axolotl, verl ------------------------------------------------------------------------------------


@_peer(
    "ms-swift:gkd",
    "ms-swift 3602360, GKDTrainer",
    beta=share(0.5),
    lmbda=share(0.5),
    temperature=positive(0.9),
    sft_alpha=weight(0.0),
    gkd_logits_topk=count(None),
    use_liger_kernel=flag(False),
)
def _swift_gkd(s):
    heat = {"tau": s.temperature, "temperature": s.temperature if s.lmbda else 1.0}
    whole = {"beta": s.beta, "lam": s.lmbda, **heat}
    notes = (f"{NO_SQUARE} Its default of 0.9 is in the loss and in the sampling.", MICRO, DRAWN)
    if s.use_liger_kernel:
        half = "Cross-entropy: the Liger loss is made without weights, so it is ½ CE + ½ JSD by that class's defaults."
        return same("gkd", TEACHER_BETA, JUMP, half, *notes, ce=0.5, **whole)
    if s.sft_alpha and s.lmbda:
        why = "Cross-entropy: added to the divergence with weight sft_alpha, but not on student text; here on both."
        return none(why, nearest=spec("gkd", ce=s.sft_alpha / (1 + s.sft_alpha), **whole))
    if not s.gkd_logits_topk:
        return weighted(1.0, s.sft_alpha, "gkd", TEACHER_BETA, JUMP, *notes, **whole)
    if s.beta:
        return none(f"{SHARED_TOP_K} {NO_SUPPORT}", nearest=spec("gkd", **whole))
    kept = {**top(s.gkd_logits_topk), "tau": s.temperature, "student_share": s.lmbda or None}
    return weighted(1.0, s.sft_alpha, "imitkd" if s.lmbda else "kl", SHARED_TOP_K, *notes, **kept)


@_peer(
    "nemo-rl:kl",
    "NeMo-RL 7ea279a, DistillationLossFn",
    kl_type=choice("mixed", "forward", "reverse"),
    mixed_kl_weight=share(0.5),
    zero_outside_topk=flag(False),
    topk_logits_k=count(64),
)
def _nemo(s):
    kinds = {"reverse": spec("reverse_kl"), "mixed": spec("jeffreys", lam=s.mixed_kl_weight)}
    if s.kl_type != "forward":
        zero = "Support: outside of the teacher's top-k the student is compared with a log-probability of −100."
        sense = s.kl_type == "mixed" and "Weight: mixed_kl_weight is that of forward KL, as lam of `jeffreys`."
        return none(zero if s.zero_outside_topk else SHARED_TOP_K, NO_SUPPORT, sense, nearest=kinds[s.kl_type])
    kept = top(s.topk_logits_k) | {"support": "topk" if s.zero_outside_topk else "topk_both"}
    text = "Data: student text, as for `imitkd` with a share of 1."
    return same("imitkd", FULL_TOP_K if s.zero_outside_topk else SHARED_TOP_K, GLOBAL, text, student_share=1.0, **kept)


@_peer(
    "axolotl:kd",
    "axolotl 067b021, KD plugin (kd_alpha and kd_ce_alpha of its README; they have no default)",
    kd_alpha=share(0.9),
    kd_ce_alpha=share(0.1),
    kd_temperature=positive(1.0),
    kd_beta=share(0.0),
    kd_normalize_topk=flag(False),
    kd_online_topk=count(None),
)
def _axolotl(s):
    if s.kd_beta:
        nearest = spec("jsd", beta=s.kd_beta, tau=s.kd_temperature)
        return none(f"Support: a JSD or a reverse KL on the teacher's top-k. {NO_SUPPORT}", nearest=nearest)
    kept = top(s.kd_online_topk or 64) | {"support": "topk_both" if s.kd_normalize_topk else "topk"}
    match = weighted(
        s.kd_alpha,
        s.kd_ce_alpha,
        "kl",
        SHARED_TOP_K if s.kd_normalize_topk else FULL_TOP_K,
        not s.kd_online_topk and "Support: off-line, its size is what the data holds; support_size has to be that.",
        "Temperature: the printed divergence is multiplied by τ², but its gradient is made before that, without τ².",
        GLOBAL,
        tau=s.kd_temperature,
        **kept,
    )
    return match if s.kd_temperature == 1 else Match(match.spec, GRADIENT, match.differs)


@_peer("verl:forward_kl_topk", "verl 1dda039, distillation loss_mode forward_kl_topk", topk=count(32))
def _verl_topk(s):
    return none(
        "Support: the teacher's top-k, and neither side is renormalised: Σ p log(p/q) over it can be negative and is "
        "then clamped to 0, gradient too.",
        "Defaults: the YAML has topk 32 and no clamps, the dataclass 128 and clamps of ±10.",
        "Gradient: P · q − p on the support, P the teacher's mass there; `support: topk` divides p by P.",
        nearest=spec("imitkd", student_share=1.0, support="topk", support_size=s.topk),
    )


def _verl_estimator(s):
    why = "One sampled token a position estimates reverse KL; which estimator is differentiated decides the gradient."
    reward = (
        "With use_policy_gradient minus the estimate is the advantage of a clipped policy gradient, as k1 in `opd`."
    )
    return none(why, reward, "Task rewards are added unless use_task_rewards is false.", nearest={"name": "opd"})


for _mode in ("k1", "k2", "k3", "abs", "mse", "low_var_kl"):
    _peer(f"verl:{_mode}", f"verl 1dda039, distillation loss_mode {_mode}")(_verl_estimator)

# DistillKit -----------------------------------------------------------------------------------------------------------

KIT = "DistillKit a61c2e7, function {}"
KIT_NOTES = (
    SQUARE,
    "Cross-entropy: losses are summed by their weights and divided by the sum of weights; the default is ½ CE + ½ KL, "
    "which is ce: 0.5 here.",
    MICRO,
    "Mask: with a teacher that runs beside the student it is made from unshifted labels, off by one at the border of "
    "prompt and response.",
)
KIT_KNOBS = {
    "temperature": positive(1.0),
    "top_k": count(None),
    "missing_probability_handling": choice("zero", "symmetric_uniform"),
}


def _kit_dense(name, s, **fields):
    if s.top_k:
        nearest = spec(name, tau=s.temperature, tau_sq=True, **fields)
        return none(f"Support: only some of the teacher's classes are there (top_k). {NO_SUPPORT}", nearest=nearest)
    return same(name, *KIT_NOTES, tau=s.temperature, tau_sq=True, **fields)


@_peer("distillkit:kl", KIT.format("kl"), **KIT_KNOBS)
def _kit_kl(s):
    heat = {"tau": s.temperature, "tau_sq": True}
    if not s.top_k:
        return same("kl", *KIT_NOTES, **heat)
    if s.missing_probability_handling == "zero":
        return same("kl", FULL_TOP_K, *KIT_NOTES, support="topk", support_size=s.top_k, **heat)
    kept = {"support": "topk+tail", "support_size": s.top_k}
    if s.temperature != 1:
        why = "Temperature: the other classes' mass is tempered as if they were one class; here each class is tempered."
        return none(why, nearest=spec("kl", **kept, **heat))
    tail = "Support: the teacher's top-k, all other classes are one more, on both sides."
    return same("kl", tail, *KIT_NOTES, **kept, **heat)


@_peer("distillkit:jsd", KIT.format("jsd"), **KIT_KNOBS)
def _kit_jsd(s):
    return _kit_dense("jsd", s, beta=0.5)


@_peer("distillkit:tvd", KIT.format("tvd"), **KIT_KNOBS)
def _kit_tvd(s):
    return _kit_dense("tvd", s)


@_peer(
    "tinker:on_policy",
    "tinker-cookbook 9dfcc3a, distillation/train_on_policy.py",
    kl_penalty_coef=positive(1.0),
    kl_discount_factor=share(0.0),
)
def _tinker(s):
    if s.kl_discount_factor:
        why = "Advantage: later tokens' advantages are added, discounted; here each token has its own alone."
        return none(why, nearest=spec("opd", kappa=s.kl_penalty_coef))
    text = "Data: student text, several samples a prompt; importance-weighted, not clipped."
    return same("opd", text, kappa=s.kl_penalty_coef)
