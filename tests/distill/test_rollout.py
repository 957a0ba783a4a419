"""Text that models write: prompts of any length, EOS, who has a hand in it, and what is drawn.

python -m pytest tests/distill/test_rollout.py
"""

from __future__ import annotations

import pytest
import torch

from kdbench.api import Sampling, Trajectories
from kdbench.distill.data import Blocks
from kdbench.distill.rollout import Limits, Writers, prompts, write
from kdbench.distill.source import TextSource
from tests.distill.conftest import LENGTH, VOCABULARY, tiny

LIMITS = Limits(prompt_tokens=5, new_tokens=6, length=LENGTH, eos=0, pad=1, vocabulary=VOCABULARY)
SAMPLINGS = [
    Sampling("student"),
    Sampling("teacher"),
    Sampling("mixed", teacher_share=0.5),
    Sampling("interleaved", accepted=3),
    Sampling("student", greedy=True),
    Sampling("student", temperature=0.5, top_k=5, top_p=0.9),
    Sampling("teacher", beams=3),
]
NEOX = {"architecture": "gpt_neox", "intermediate_size": 32}
LLAMA = {"architecture": "llama", "intermediate_size": 32, "num_key_value_heads": 2}


def writers(architecture="opt", **fields):
    student, teacher = (tiny(seed, 16, architecture, **fields).eval() for seed in (0, 1))
    return Writers(student, teacher, "float32")


def some_prompts():
    return [torch.tensor([0, 5, 9, 7]), torch.tensor([0]), torch.tensor([0, 8, 3])]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_a_prompt_is_kept_and_never_a_target_and_the_rest_is(sampling):
    text, stats = write(sampling, writers(), some_prompts(), LIMITS, 3)
    assert text.ids.shape == text.mask.shape == (3, LENGTH)
    for prompt, ids, mask in zip(some_prompts(), text.ids, text.mask, strict=True):
        n = len(prompt)
        assert torch.equal(ids[:n].long(), prompt) and not mask[:n].any()
        written = ids[n:][mask[n:]]
        assert 1 <= len(written) <= LIMITS.new_tokens
        assert 0 not in written[:-1].tolist()  # nothing stands behind EOS
        assert (ids[n + len(written) :] == LIMITS.pad).all()
    assert stats["tokens"] == int(text.mask.sum()) and stats["length"] == stats["tokens"] / 3


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.fault("G3", "generation")
def test_the_same_seed_draws_the_same_text_and_the_global_rng_is_left_alone(sampling):
    state = torch.get_rng_state()
    one, two, other = (write(sampling, writers(), some_prompts() * 4, LIMITS, seed)[0] for seed in (3, 3, 4))
    assert torch.equal(one.ids, two.ids) and torch.equal(one.mask, two.mask)
    assert torch.equal(state, torch.get_rng_state())
    drawn = not sampling.greedy and sampling.beams == 1
    assert torch.equal(one.ids, other.ids) != drawn


@pytest.mark.parametrize("fields", [{"architecture": "opt"}, NEOX, LLAMA], ids=lambda f: f["architecture"])
@pytest.mark.fault("E7", "left padding")
def test_left_padding_changes_nothing_of_what_a_model_says(fields):
    """Greedy text of a short prompt is the same alone and beside longer ones: positions and masks are right."""
    given = Writers(tiny(0, 16, **fields).eval(), None, "float32")
    together, _ = write(Sampling("student", greedy=True), given, some_prompts(), LIMITS, 0)
    for row, prompt in enumerate(some_prompts()):
        alone, _ = write(Sampling("student", greedy=True), given, [prompt], LIMITS, 0)
        assert torch.equal(alone.ids[0], together.ids[row])


@pytest.mark.parametrize("fields", [{"architecture": "opt"}, NEOX, LLAMA], ids=lambda f: f["architecture"])
def test_a_teacher_that_writes_every_token_of_a_mixture_writes_its_own_text(fields):
    """With the teacher's share at 1 its KV cache, positions and padding must give its own greedy text."""
    student, teacher = tiny(0, 16, **fields).eval(), tiny(1, 24, **fields).eval()
    mixed = Sampling("mixed", teacher_share=1.0, greedy=True)
    one, _ = write(mixed, Writers(student, teacher, "float32"), some_prompts(), LIMITS, 0)
    two, _ = write(Sampling("teacher", greedy=True), Writers(student, teacher, "float32"), some_prompts(), LIMITS, 0)
    assert torch.equal(one.ids, two.ids)


def test_with_every_proposal_accepted_interleaved_text_is_the_students():
    given = writers()
    everything = Sampling("interleaved", accepted=VOCABULARY)
    one, stats = write(everything, given, some_prompts() * 4, LIMITS, 3)
    two, _ = write(Sampling("student"), given, some_prompts() * 4, LIMITS, 3)
    assert torch.equal(one.ids, two.ids) and stats["acceptance"] == pytest.approx(1.0, abs=1e-6)


def test_interleaved_tokens_are_distributed_as_propose_and_redraw():
    """y ~ q if among the teacher's K likeliest, else y ~ p: compared with that very procedure, over many draws."""
    given, n = writers(), 4000
    prompt = torch.tensor([0, 5, 9])
    limits = Limits(5, 1, LENGTH, eos=0, pad=1, vocabulary=VOCABULARY)
    text, _ = write(Sampling("interleaved", accepted=3), given, [prompt] * n, limits, 7)
    found = torch.bincount(text.ids[:, 3].long(), minlength=VOCABULARY).double() / n
    with torch.no_grad():
        q, p = (model(prompt[None]).logits[0, -1].softmax(-1).double() for model in (given.student, given.teacher))
    rng = torch.Generator().manual_seed(0)
    proposed = torch.multinomial(q, 40_000, replacement=True, generator=rng)
    redrawn = torch.multinomial(p, 40_000, replacement=True, generator=rng)
    chosen = torch.where(torch.isin(proposed, p.topk(3).indices), proposed, redrawn)
    expected = torch.bincount(chosen, minlength=VOCABULARY).double() / 40_000
    assert 0.5 * (found - expected).abs().sum() < 0.07


def test_sampled_tokens_follow_the_student():
    given, n = writers(), 4000
    prompt = torch.tensor([0, 5, 9])
    limits = Limits(5, 1, LENGTH, eos=0, pad=1, vocabulary=VOCABULARY)
    text, _ = write(Sampling("student"), given, [prompt] * n, limits, 7)
    found = torch.bincount(text.ids[:, 3].long(), minlength=VOCABULARY).double() / n
    with torch.no_grad():
        expected = given.student(prompt[None]).logits[0, -1].softmax(-1).double()
    assert 0.5 * (found - expected).abs().sum() < 0.07


def test_eos_is_learnt_also_where_pad_is_the_same_id():
    limits = Limits(5, 6, LENGTH, eos=0, pad=0, vocabulary=VOCABULARY)
    text, stats = write(Sampling("student"), writers(), some_prompts() * 40, limits, 3)
    ended = [ids[mask][-1] == 0 for ids, mask in zip(text.ids, text.mask, strict=True)]
    assert stats["eos_rate"] == sum(ended) / len(ended) > 0


def test_a_prompt_that_leaves_no_room_gives_no_target():
    limits = Limits(LENGTH, 6, 4, eos=0, pad=1, vocabulary=VOCABULARY)
    text, stats = write(Sampling("student"), writers(), some_prompts(), limits, 3)
    assert not text.mask.any() and stats == {"tokens": 0.0, "length": 0.0, "eos_rate": 0.0}


def test_ids_of_a_padded_head_are_never_drawn():
    limits = Limits(5, 6, LENGTH, eos=0, pad=1, vocabulary=7)
    text, _ = write(Sampling("mixed", teacher_share=0.5), writers(), [torch.tensor([0])] * 64, limits, 3)
    assert int(text.ids.max()) < 7


def test_a_padded_block_gives_a_shorter_prompt(blocks):
    found = prompts(blocks, Limits(10, 2, LENGTH, 0, 1, VOCABULARY))
    assert [len(prompt) for prompt in found[:6]] == [8, 10, 10, 8, 10, 1]


def source(blocks, seed=5, **options):
    def made(sampling, given, drawn):
        ids = torch.full((len(given), LENGTH), drawn % 50, dtype=torch.int32)
        return Blocks(ids, torch.ones_like(ids, dtype=torch.bool)), {"tokens": 1.0}

    return TextSource(blocks, seed, 8, limits=LIMITS, write=made, **options)


def test_the_chance_of_student_text_is_drawn_once_for_a_whole_batch(blocks):
    wanted = Trajectories(rollout=Sampling(), chance=0.3)
    kinds = [source(blocks).text(step, wanted).sampled for step in range(400)]
    assert all(bool(kind.all()) or not bool(kind.any()) for kind in kinds)
    assert 0.22 < sum(bool(kind.any()) for kind in kinds) / 400 < 0.38


def test_paired_batches_hold_both_texts_after_the_same_prompts(blocks):
    theirs = Blocks(blocks.ids + 1, blocks.mask)
    found = source(blocks, teacher_text=theirs).text(3, Trajectories("teacher", rollout=Sampling(), paired=True))
    assert found.sampled.tolist() == [False] * 4 + [True] * 4 and len(found.rows) == 0
    assert any(torch.equal(found.blocks.ids[0], row) for row in theirs.ids)


def test_a_reused_batch_is_the_same_text_until_the_next_is_due(blocks):
    one, wanted = source(blocks), Trajectories(rollout=Sampling(), reuse=3)
    texts = [one.text(step, wanted).blocks.ids for step in range(6)]
    assert torch.equal(texts[0], texts[2]) and torch.equal(texts[3], texts[5]) and not torch.equal(texts[2], texts[3])


def test_the_replay_buffer_keeps_the_newest_rows_and_gives_them_back(blocks):
    one = source(blocks)
    wanted = Trajectories(rollout=Sampling(), chance=1.0, replay=20, fresh=0.0)
    written = [one.text(step, wanted) for step in range(3)]  # the buffer is filled first
    assert all("tokens" in text.stats for text in written) and len(one.replay) == 20
    replayed = one.text(3, wanted)
    assert replayed.stats == {"replayed": 1.0} and bool(replayed.sampled.all())
    kept = {int(row[0]) for row in one.replay.ids}
    assert {int(row[0]) for row in replayed.blocks.ids} <= kept


@pytest.mark.parametrize("wanted", [
    Trajectories(rollout=Sampling(), reuse=3),
    Trajectories(rollout=Sampling(), chance=0.9, replay=20, fresh=0.4),
    Trajectories(rollout=Sampling(), paired=True, reuse=2),
], ids=["reuse", "replay", "paired"])  # fmt: skip
def test_a_source_put_back_from_a_checkpoint_goes_on_as_if_nothing_had_happened(wanted, blocks):
    undisturbed, killed = source(blocks), source(blocks)
    expected = [undisturbed.text(step, wanted).blocks.ids for step in range(9)]
    for step in range(5):
        killed.text(step, wanted)
    again = source(blocks)
    again.unpack({name: tensor.clone() for name, tensor in killed.pack().items()})
    assert all(torch.equal(again.text(step, wanted).blocks.ids, expected[step]) for step in range(5, 9))
