"""A student made of its teacher's own layers.

python -m pytest tests/distill/test_warm.py
"""

from __future__ import annotations

import pytest
import torch

from kdbench.distill import models, warm
from kdbench.errors import ConfigError
from tests.distill.saved import FAMILIES, made

IDS = torch.arange(3, 11)[None]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_that_keeps_every_layer_is_its_teacher(family):
    teacher = made(family)
    student = warm.keep_layers(teacher, [0, 1, 2, 3])
    with torch.no_grad():
        assert torch.equal(student.eval()(IDS).logits, teacher(IDS).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_head_norm_and_the_chosen_layers_are_the_teachers(family):
    teacher = made(family)
    student = warm.keep_layers(teacher, [0, 3])
    prefix = warm._layer_list(teacher)
    theirs, ours = teacher.state_dict(), student.state_dict()
    renamed = {name.replace(f"{prefix}.1.", f"{prefix}.3."): tensor for name, tensor in ours.items()}
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in renamed.items())
    assert set(theirs) - set(renamed) == {name for name in theirs if name.startswith((f"{prefix}.1.", f"{prefix}.2."))}
    assert student.config.num_hidden_layers == 2
    assert models.parameters(student.config) == sum(one.numel() for one in student.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shortened_student_is_an_ordinary_folder_whose_head_can_be_told_from_its_body(family, tmp_path):
    student = warm.keep_layers(made(family), [0, 3]).eval()
    student.save_pretrained(tmp_path)
    again = models.load(tmp_path, models.Runtime("cpu", "float32", 1))
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, student(IDS).logits)


def test_what_a_config_says_of_each_layer_is_cut_with_the_layers():
    config = made("qwen3").config
    config.layer_types = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    assert warm.shortened(config, [1, 3]).layer_types == ["sliding_attention", "sliding_attention"]
    assert config.num_hidden_layers == 4, "the teacher's own config stays as it is"


def test_the_student_does_not_share_memory_with_its_teacher_and_the_global_rng_is_left_alone():
    teacher, state = made("llama"), torch.get_rng_state()
    student = warm.keep_layers(teacher, [0])
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        student.get_input_embeddings().weight.zero_()
    assert teacher.get_input_embeddings().weight.abs().sum() > 0


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"expected numbers from 0 to 3, found \[4, 7\]"):
        warm.keep_layers(made("opt"), [0, 4, 7])


def test_a_model_without_one_list_of_layers_is_refused():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = made("opt").config
            self.encoder = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(4))
            self.decoder = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(4))

    with pytest.raises(ConfigError, match="expected one list of 4 layers in a opt model, found"):
        warm._layer_list(Two())
