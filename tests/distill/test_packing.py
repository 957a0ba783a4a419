"""Documents packed into one row do not see each other: each is read as if it stood alone.

python -m pytest tests/distill/test_packing.py
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from kdbench.api import Sampling, Trajectories
from kdbench.distill import data, models, train
from kdbench.distill.rollout import Limits, prompts
from kdbench.distill.source import TextSource
from kdbench.distill.teacher import LiveTeacher, read_states
from kdbench.errors import ConfigError
from kdbench.registry import objective
from tests.distill.conftest import LENGTH, VOCABULARY, tiny

ARCHITECTURES = [
    {"architecture": "opt"},
    {"architecture": "gpt_neox", "intermediate_size": 32},
    {"architecture": "llama", "intermediate_size": 32, "num_key_value_heads": 2},
]
by_name = pytest.mark.parametrize("fields", ARCHITECTURES, ids=lambda fields: fields["architecture"])


@pytest.fixture
def pieces():
    """Documents of many lengths, as token streams."""
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(2, VOCABULARY, (n,), generator=rng).tolist() for n in (5, 30, 1, 7, 2, 12, 9)]


@pytest.fixture
def packed(pieces):
    return data._packed(pieces, 1, LENGTH)


def test_every_token_stands_once_and_only_the_last_block_is_padded(pieces, packed):
    flat = [token for piece in pieces for token in piece]
    assert packed.ids.flatten()[: len(flat)].tolist() == flat
    assert packed.ids.shape == (6, LENGTH) and (packed.ids.flatten()[len(flat) :] == 1).all()
    padded = data._padded(pieces, 1, LENGTH)
    assert len(padded) == 9  # packing saves three blocks of nine


def test_a_document_starts_at_position_zero_and_its_first_token_is_no_target(pieces, packed):
    ends = torch.tensor([len(piece) for piece in pieces]).cumsum(0)
    starts = sorted({0, *ends.tolist(), *range(0, 72, LENGTH)})
    assert (packed.positions.flatten() == 0).nonzero()[:, 0].tolist() == starts
    assert not packed.mask[packed.positions == 0].any()
    assert int(packed.mask.sum()) == 66 - sum(start < 66 for start in starts)


def alone(blocks):
    """Yield (row, slice) of each piece of each block."""
    for row, places in enumerate(blocks.positions):
        starts = [*(places == 0).nonzero()[:, 0].tolist(), blocks.length]
        yield from ((row, slice(a, b)) for a, b in pairwise(starts))


@by_name
def test_a_packed_document_is_read_as_if_it_stood_alone(fields, packed):
    model = tiny(0, 16, **fields).eval()
    with torch.no_grad():
        together = models.body(model, packed.ids.long(), positions=packed.positions)
        for row, piece in alone(packed):
            expected = models.body(model, packed.ids[row : row + 1, piece].long())
            assert torch.allclose(together[row : row + 1, piece], expected, atol=1e-5)
    models.check_packing(model)


@by_name
def test_the_gradient_of_a_packed_batch_is_that_of_its_documents(fields, packed):
    student, guide = tiny(0, 16, **fields), tiny(1, 24, **fields).eval()
    teacher = LiveTeacher(guide, packed, VOCABULARY, "float32")

    def gradient(batch):
        student.zero_grad()
        train.backward(student, objective("kl"), batch, batch.tokens(), None, VOCABULARY, "float32")
        return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]).clone()

    whole = train.Batch(
        packed.ids.long(), packed.mask[:, 1:], teacher.read(packed), torch.zeros(6, dtype=torch.bool),
        positions=packed.positions,
    )  # fmt: skip
    found, expected = gradient(whole), 0
    for row, piece in alone(packed):
        some = data.Blocks(packed.ids[row : row + 1, piece], packed.mask[row : row + 1, piece])
        if count := int(some.mask.sum()):
            one = train.Batch(some.ids.long(), some.mask[:, 1:], teacher.read(some), torch.zeros(1, dtype=torch.bool))
            expected = expected + gradient(one) * count / int(packed.mask.sum())
    assert torch.allclose(found, expected, atol=2e-6)


def test_an_architecture_that_cannot_be_packed_is_refused():
    init = {"architecture": "bloom", "hidden_size": 16, "n_layer": 1, "n_head": 2}
    model = models.make(models.architecture_config(init, VOCABULARY, LENGTH, (0, 1), dropout=False), 0)
    with pytest.raises(ConfigError, match=r"data\.pack"):
        models.check_packing(model)


def test_a_packed_rows_prompt_is_of_its_first_document(packed):
    found = prompts(packed, Limits(8, 4, LENGTH, 0, 1, VOCABULARY))
    assert [len(one) for one in found] == [5, 8, 8, 7, 8, 6]


def test_packed_text_and_written_text_share_a_batch(packed):
    def made(sampling, given, drawn):
        ids = torch.full((len(given), LENGTH), 7, dtype=torch.int32)
        return data.Blocks(ids, torch.ones_like(ids, dtype=torch.bool)), {}

    limits = Limits(4, 4, LENGTH, 0, 1, VOCABULARY)
    source = TextSource(packed, 0, 4, limits=limits, write=made)
    text = source.text(0, Trajectories(rollout=Sampling(), paired=True))
    assert text.blocks.positions[2:].tolist() == [list(range(LENGTH))] * 2
    assert torch.equal(text.blocks.positions[:2], packed.positions[text.rows])


def test_packed_blocks_come_back_from_disk(packed, tmp_path):
    data.save_blocks(packed, tmp_path / "x.safetensors")
    found = data.load_blocks(tmp_path / "x.safetensors")
    assert torch.equal(found.positions, packed.positions) and torch.equal(found.mask, packed.mask)


def test_the_teachers_signal_of_packed_rows_does_not_depend_on_their_neighbours(packed):
    guide = tiny(1, 24).eval()
    whole = read_states(guide, packed, VOCABULARY, "float32", torch.float32)
    rows = [
        read_states(guide, packed.select(torch.tensor([row])), VOCABULARY, "float32", torch.float32) for row in range(6)
    ]
    assert torch.allclose(whole.log_prob_target, torch.cat([one.log_prob_target for one in rows]), atol=1e-5)
