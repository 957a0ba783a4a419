"""Training is a function of its inputs: cut, cached, interrupted or not, it ends the same.

python -m pytest tests/distill/test_train.py
"""

from __future__ import annotations

import copy

import pytest
import torch

from kdbench.api import Field, Objective, Source
from kdbench.distill import checkpoint, models, train
from kdbench.distill.data import Blocks, batch_rows
from kdbench.distill.rollout import Limits
from kdbench.distill.teacher import CachedTeacher, LiveTeacher, read_states, write_cache
from kdbench.errors import ConfigError, Diverged, Interrupted
from kdbench.registry import objective
from tests.distill.conftest import LENGTH, VOCABULARY, tiny

EVERY = ["sft", "kl", "reverse_kl", "atkd", "reverse_kl+atkd"]
PLAN = train.Plan(steps=8, batch_rows=8, lr=1e-2, checkpoint_steps=3)


def live(model, blocks):
    return LiveTeacher(model, blocks, VOCABULARY, "float32")


def cached(model, blocks, folder):
    write_cache(
        folder, blocks, lambda part: read_states(model, part, VOCABULARY, "float32", torch.float32), lambda *_: None
    )
    return CachedTeacher(folder, live(model, blocks))


def learn(model, spec, blocks, teacher, folder, plan=PLAN, **options):
    return train.train(
        model, objective(spec), blocks, teacher, plan, seed=5, vocabulary=VOCABULARY, precision="float32",
        folder=folder, **options,
    )  # fmt: skip


def batch_of(blocks, teacher, rows=8):
    chosen = batch_rows(0, 0, len(blocks), rows)
    some = blocks.select(chosen)
    return train.Batch(some.ids.long(), some.mask[:, 1:], teacher.signal(chosen), torch.zeros(rows, dtype=torch.bool))


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("spec", EVERY)
@pytest.mark.parametrize("micro", [1, 2, 4, 8])
@pytest.mark.fault("E7", "micro-batches of any size")
def test_micro_batches_give_the_gradient_of_the_whole_batch(spec, micro, student, teacher_model, blocks):
    batch = batch_of(blocks, live(teacher_model, blocks))
    found = []
    for size in (None, micro):
        student.zero_grad()
        sums = train.backward(student, objective(spec), batch, batch.tokens(), size, VOCABULARY, "float32")
        found.append((sums.total, torch.cat([p.grad.flatten() for p in student.parameters()])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)


@pytest.mark.parametrize("spec", EVERY)
@pytest.mark.fault("G6", "a training from the cache and from the live teacher")
def test_cached_and_live_teachers_give_the_same_training(spec, teacher_model, blocks, tmp_path):
    """Stated tolerance: weights within 1e-5 after eight steps; the forward passes differ in batch size alone."""
    one, two = tiny(0), tiny(0)
    learn(one, spec, blocks, live(teacher_model, blocks), tmp_path / "a")
    learn(two, spec, blocks, cached(teacher_model, blocks, tmp_path / "cache"), tmp_path / "b")
    assert torch.allclose(weights(one), weights(two), atol=1e-5)


@pytest.mark.parametrize("stop_after", [1, 3, 5, 7])
def test_an_interrupted_training_ends_with_the_same_bytes(stop_after, teacher_model, blocks, tmp_path):
    undisturbed, resumed = tiny(0), tiny(0)
    expected = learn(undisturbed, "atkd", blocks, live(teacher_model, blocks), tmp_path / "a")
    steps = iter([0] * (stop_after - 1) + [143])
    with pytest.raises(Interrupted) as stopped:
        learn(tiny(0), "atkd", blocks, live(teacher_model, blocks), tmp_path / "b", should_stop=lambda: next(steps))
    assert stopped.value.exit_code == 143
    assert checkpoint.load(tmp_path / "b").step == stop_after, "a stop saves the step that it has just taken"
    found = learn(resumed, "atkd", blocks, live(teacher_model, blocks), tmp_path / "b")
    assert torch.equal(weights(undisturbed), weights(resumed))
    assert found == expected


LIMITS = Limits(prompt_tokens=4, new_tokens=8, length=LENGTH, eos=0, pad=1, vocabulary=VOCABULARY)
MOVING = [
    *("gkd", "imitkd@paper", "f_distill", "distillm2", "skd", "opd", "taid", "kl+sekd", "reverse_kl+adakd"),
    {"name": "kl", "support": "sampled", "support_size": 4},
    {"name": "minillm", "reuse": 3},
    {"name": "distillm", "phi": 0.9, "capacity": 12, "fresh": 0.5, "validations": 4, "tolerance": 0.0},
    *("gkd+atkd", "imitkd+atkd"),
]


def moving(spec, blocks, teacher, folder, model=None, **options):
    """Train with an objective that learns from text that models write, or keeps a state."""
    model = tiny(0) if model is None else model
    other = {"limits": LIMITS, "held_out": blocks, "teacher_text": Blocks(blocks.ids.flip(0), blocks.mask.flip(0))}
    return model, learn(model, spec, blocks, teacher, folder, **other, **options)


@pytest.mark.parametrize("spec", MOVING, ids=str)
def test_a_training_with_state_or_text_of_its_own_ends_with_the_same_bytes(spec, teacher_model, blocks, tmp_path):
    """Stopped after steps 2, 4 and 7: in the middle of a reused batch, with a replay buffer half full."""
    teacher = live(teacher_model, blocks)
    undisturbed, expected = moving(spec, blocks, teacher, tmp_path / "a")
    for stop in (2, 4, 7):
        with pytest.raises(Interrupted):
            moving(
                spec,
                blocks,
                teacher,
                tmp_path / "b",
                should_stop=Countdown(stop - checkpoint.load(tmp_path / "b").step),
            )
    resumed, found = moving(spec, blocks, teacher, tmp_path / "b")
    assert torch.equal(weights(undisturbed), weights(resumed))
    assert found == expected and len(expected) == 8


class Countdown:
    """Says stop after so many steps."""

    def __init__(self, steps: int):
        self.left = steps

    def __call__(self) -> int:
        self.left -= 1
        return 143 if self.left == 0 else 0


def test_objectives_with_the_same_trajectories_see_the_same_text(teacher_model, blocks, tmp_path):
    """One step from the same student: the text is a function of weights, seed and step, not of the loss."""
    plan = train.Plan(**{**PLAN.__dict__, "steps": 1})
    seen = []
    for index, spec in enumerate(
        ["imitkd", "opd", {"name": "gkd", "lam": 1.0}, {"name": "f_distill", "variant": "rkl"}]
    ):
        _, history = moving(spec, blocks, live(teacher_model, blocks), tmp_path / str(index), plan=plan)
        seen.append({name: value for name, value in history[0].items() if name.startswith("rollout/")})
    assert all(one == seen[0] for one in seen) and seen[0]["rollout/tokens"] > 0


@pytest.mark.parametrize("spec", ["gkd", "reverse_kl+adakd", {"name": "minillm", "reuse": 2}, "distillm2"], ids=str)
def test_micro_batches_change_nothing_of_a_training_on_written_text(spec, teacher_model, blocks, tmp_path):
    whole, _ = moving(spec, blocks, live(teacher_model, blocks), tmp_path / "a")
    plan = train.Plan(**{**PLAN.__dict__, "micro_batch": 3})
    cut, _ = moving(spec, blocks, live(teacher_model, blocks), tmp_path / "b", plan=plan)
    moved = (weights(whole) - weights(tiny(0))).norm()
    # in the norm: where a gradient is zero (that of the keys' biases), Adam makes a step of its rounding
    assert (weights(whole) - weights(cut)).norm() < 1e-3 * moved


@pytest.mark.fault("E6", "EOS at once")
def test_a_student_that_writes_nothing_is_left_as_it_is(teacher_model, blocks, tmp_path):
    """Every completion is empty: no token, so no loss, no gradient and no step, and nothing breaks."""
    full = Limits(prompt_tokens=LENGTH, new_tokens=4, length=LENGTH, eos=0, pad=1, vocabulary=VOCABULARY)
    model = tiny(0)
    before = weights(model).clone()
    history = learn(
        model,
        "imitkd",
        Blocks(blocks.ids, torch.ones_like(blocks.mask)),
        live(teacher_model, blocks),
        tmp_path,
        limits=full,
    )
    assert torch.equal(weights(model), before) and {record["loss"] for record in history} == {0.0}


def test_what_is_written_and_what_an_objective_keeps_is_logged(teacher_model, blocks, tmp_path):
    _, history = moving("skd", blocks, live(teacher_model, blocks), tmp_path / "a")
    assert all(0 <= record["rollout/acceptance"] <= 1 and record["rollout/length"] > 0 for record in history)
    assert all(0 <= record["rollout/eos_rate"] <= 1 for record in history)
    _, history = moving("taid", blocks, live(teacher_model, blocks), tmp_path / "b")
    assert history[-1]["state/t"] > history[0]["state/t"] and history[0]["watch/target_ce"] > history[0]["loss"]


@pytest.mark.parametrize("interval", [1, 7, 100])
@pytest.mark.fault("G5", "intervals 1, 7, 100")
def test_the_checkpoint_interval_changes_nothing(interval, teacher_model, blocks, tmp_path):
    one, two = tiny(0), tiny(0)
    learn(one, "kl", blocks, live(teacher_model, blocks), tmp_path / "a")
    other = train.Plan(**{**PLAN.__dict__, "checkpoint_steps": interval})
    learn(two, "kl", blocks, live(teacher_model, blocks), tmp_path / "b", plan=other)
    assert torch.equal(weights(one), weights(two))


@pytest.mark.fault("G3", "dropout")
def test_dropout_is_drawn_from_the_step_and_leaves_the_global_rng_alone(blocks, tmp_path):
    config = models.architecture_config(
        {"architecture": "opt", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "dropout": 0.5},
        VOCABULARY, 12, (0, 1), dropout=True,
    )  # fmt: skip
    plan = train.Plan(**{**PLAN.__dict__, "dropout": True})
    found = []
    for name in "ab":
        torch.rand(3)
        state = torch.get_rng_state()
        model = models.make(config, 0)
        learn(model, "sft", blocks, None, tmp_path / name, plan=plan)
        assert torch.equal(state, torch.get_rng_state())
        found.append(weights(model))
    assert torch.equal(*found)


@pytest.mark.parametrize("damage", ["flip", "truncate", "no marker"])
@pytest.mark.fault("C4", "the newest checkpoint cut, flipped or without its marker")
@pytest.mark.fault("A9", "the newest checkpoint lost")
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(damage, blocks, tmp_path):
    whole = tiny(0)
    learn(whole, "sft", blocks, None, tmp_path / "a")
    model = tiny(0)
    stops = iter([0] * 6 + [143])
    with pytest.raises(Interrupted):
        learn(model, "sft", blocks, None, tmp_path / "b", should_stop=lambda: next(stops))
    newest = sorted((tmp_path / "b").glob("*.safetensors"))[-1]
    if damage == "flip":
        data = bytearray(newest.read_bytes())
        data[-5] ^= 1
        newest.write_bytes(bytes(data))
    elif damage == "truncate":
        newest.write_bytes(newest.read_bytes()[:100])
    else:
        newest.with_suffix(".json").write_text("{")
    again = tiny(0)
    learn(again, "sft", blocks, None, tmp_path / "b")
    assert torch.equal(weights(whole), weights(again))
    assert list((tmp_path / "b").glob("*.corrupt"))


class Broken(Objective):
    """Gives NaN from some step on."""

    name = "broken"
    source = Source("none", 2026)
    needs_teacher = False
    bad: float = Field(0.0)

    def terms(self, student, teacher, tokens):
        return {"x": student.log_prob_target * (float("nan") if len(CALLS) >= 4 else -1.0)}

    def weights(self, tokens):
        CALLS.append(1)
        return {}


CALLS: list[int] = []


@pytest.mark.fault("E1", "NaN in a step: not applied")
def test_a_loss_that_is_not_finite_ends_as_diverged_and_is_not_applied(blocks, tmp_path):
    CALLS.clear()
    model = tiny(0)
    with pytest.raises(Diverged) as error:
        train.train(
            model, Broken(), blocks, None, PLAN, seed=0, vocabulary=VOCABULARY, precision="float32", folder=tmp_path
        )
    assert error.value.step == 4 and error.value.last_loss is not None and len(error.value.history) == 3
    assert torch.isfinite(weights(model)).all()


def test_every_row_is_read_once_an_epoch_and_a_batch_depends_on_seed_and_step_alone():
    epoch = torch.cat([batch_rows(3, step, 24, 8) for step in range(3)])
    assert epoch.sort().values.tolist() == list(range(24))
    assert torch.equal(batch_rows(3, 1, 24, 8), batch_rows(3, 1, 24, 8))
    assert not torch.equal(batch_rows(3, 0, 24, 8), batch_rows(4, 0, 24, 8))
    assert len(batch_rows(3, 0, 5, 16)) == 16


def test_the_learning_rate_warms_up_and_ends_near_zero():
    plan = train.Plan(steps=100, batch_rows=1, lr=1.0, warmup=0.1)
    rates = [train.learning_rate(plan, step) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and 0 < rates[-1] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_checkpoints_hold_tied_weights_once(student, tmp_path):
    optimizer = torch.optim.AdamW(student.parameters())
    packed = checkpoint.pack(student, optimizer)
    assert sum(tensor.numel() for tensor in packed.values()) == sum(p.numel() for p in student.parameters())


@pytest.mark.parametrize("architecture", ["opt", "gpt_neox", "llama"])
def test_body_and_head_give_the_models_own_logits(architecture):
    fields = {"intermediate_size": 32} if architecture != "opt" else {"word_embed_proj_dim": 8}
    model = tiny(0, architecture=architecture, **fields).eval()
    models.check_head(model)
    ids = torch.arange(2, 10)[None]
    assert torch.allclose(models.body(model, ids) @ models.head(model, VOCABULARY).t(), model(ids).logits, atol=1e-6)


def test_a_model_that_changes_its_logits_after_the_head_is_refused():
    model = tiny(0, architecture="gemma2", intermediate_size=32, head_dim=8, num_key_value_heads=1,
                 final_logit_softcapping=0.5, query_pre_attn_scalar=8)  # fmt: skip
    with pytest.raises(ConfigError, match="soft-capping"):
        models.check_head(model.eval())


def test_a_padded_vocabulary_is_cut_and_a_small_one_refused(student):
    assert models.head(student, VOCABULARY - 5).shape[0] == VOCABULARY - 5
    with pytest.raises(ConfigError, match="share the tokenizer"):
        models.head(student, VOCABULARY + 1)


@pytest.mark.fault("A7", "an end between two shards: only the missing one is made")
def test_a_cache_goes_on_after_its_last_whole_shard(teacher_model, blocks, tmp_path, monkeypatch):
    from kdbench.distill import teacher

    monkeypatch.setattr(teacher, "SHARD_ROWS", 8)

    def read(part):
        return read_states(teacher_model, part, VOCABULARY, "float32", torch.float32)

    write_cache(tmp_path / "whole", blocks, read, lambda *_: None)

    def die(done, count):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cache(tmp_path / "cut", blocks, read, die)
    made = []
    write_cache(tmp_path / "cut", blocks, lambda part: made.append(1) or read(part), lambda *_: None)
    assert len(made) == 1
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()


def test_stored_states_are_those_of_the_valid_positions(teacher_model, blocks, tmp_path):
    signal = cached(teacher_model, blocks, tmp_path).signal(torch.tensor([0, 5, 7]))
    assert len(signal.log_prob_target) == int(blocks.mask[[0, 5, 7], 1:].sum())
    model = copy.deepcopy(teacher_model)
    logits = model(blocks.ids[[0, 5, 7]].long()).logits[:, :-1][blocks.mask[[0, 5, 7], 1:]]
    target = blocks.ids[[0, 5, 7], 1:][blocks.mask[[0, 5, 7], 1:]].long()
    expected = logits.log_softmax(-1).gather(-1, target[:, None])[:, 0]
    assert torch.allclose(signal.log_prob_target, expected, atol=1e-5)


def test_a_micro_batch_without_a_valid_token_is_probed_like_any_other(teacher_model, blocks, tmp_path):
    """The row that is all padding comes first, alone in its micro-batch: there is nothing to probe in it."""
    empty = Blocks(blocks.ids[1:9], blocks.mask[1:9])
    assert not empty.mask[int(batch_rows(5, 0, 8, 8)[0])].any()
    plan = train.Plan(**{**PLAN.__dict__, "steps": 3, "micro_batch": 1})
    history = learn(tiny(0), "kl+sekd", empty, live(teacher_model, empty), tmp_path, plan=plan)
    assert len(history) == 3 and all(record["loss"] > 0 for record in history)
