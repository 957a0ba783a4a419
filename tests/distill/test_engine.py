"""What is asked of vLLM, and what becomes of its answer. The engine itself needs a GPU: tests/test_gpu.py.

python -m pytest tests/distill/test_engine.py
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from kdbench.api import Sampling
from kdbench.distill import engine, models, rollout
from kdbench.distill.engine import Engine
from kdbench.distill.rollout import Limits, Writers
from kdbench.errors import ConfigError, Interrupted
from kdbench.suite.loader import override, parse, validate
from kdbench.suite.schema import Suite
from tests.distill.conftest import LENGTH, VOCABULARY, tiny
from tests.distill.test_train import PLAN, learn, live, weights

LIMITS = Limits(prompt_tokens=4, new_tokens=6, length=LENGTH, eos=0, pad=1, vocabulary=VOCABULARY)
GIVEN = [torch.tensor([5, 6, 7, 8]), torch.tensor([9, 3]), torch.tensor([4])]
GREEDY = Sampling("student", greedy=True)


@dataclass
class Copy:
    """A backend that keeps a copy of the student, as vLLM does, and decodes greedily, a row at a time."""

    vocabulary: int = VOCABULARY
    model: torch.nn.Module = field(default_factory=lambda: tiny(9))
    asked: list = field(default_factory=list)

    def load(self, weights):
        self.model.load_state_dict(dict(weights), strict=False)

    @torch.no_grad()
    def generate(self, requests):
        self.asked.append(requests)
        return [self._row(one) for one in requests]

    def _row(self, one):
        ids, stop = list(one.prompt), one.settings["stop_token_ids"]
        while len(ids) < len(one.prompt) + one.settings["max_tokens"]:
            hidden = models.body(self.model, torch.tensor([ids]))[0, -1]
            ids.append(int((models.head(self.model, LIMITS.vocabulary) @ hidden).argmax()))
            if ids[-1] in stop:
                break
        return ids[len(one.prompt) :]


def test_the_engine_writes_greedily_what_the_built_in_loop_writes(student):
    found, stats = Engine(student, Copy()).write(GREEDY, GIVEN, LIMITS, 3)
    expected, logged = rollout.write(GREEDY, Writers(student, None, "float32"), GIVEN, LIMITS, 3)
    assert torch.equal(found.ids, expected.ids) and torch.equal(found.mask, expected.mask)
    assert stats == logged and stats["tokens"] > 0


def test_the_engine_takes_the_student_s_weights_before_every_text(student):
    copy = Copy()
    writer = Engine(student, copy)
    writer.write(GREEDY, GIVEN, LIMITS, 3)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    found, _ = writer.write(GREEDY, GIVEN, LIMITS, 3)
    expected, _ = rollout.write(GREEDY, Writers(student, None, "float32"), GIVEN, LIMITS, 3)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(weights(copy.model), weights(student))


def test_a_training_on_the_engine_s_text_is_stopped_and_resumed_to_the_same_bytes(blocks, teacher_model, tmp_path):
    spec, found = {"name": "imitkd", "greedy": True}, []
    teacher = live(teacher_model, blocks)

    def train(folder, **options):
        model = tiny(0)
        more = {"limits": LIMITS, "engine": Engine(model, Copy()), "held_out": blocks}
        learn(model, spec, blocks, teacher, folder, plan=PLAN, **more, **options)
        return model

    stops = iter([0, 0, 143])
    with pytest.raises(Interrupted):
        train(tmp_path / "b", should_stop=lambda: next(stops))
    found = [weights(train(tmp_path / name)) for name in ("a", "b")]
    assert torch.equal(*found)


def test_each_row_is_drawn_from_a_seed_of_its_own_by_the_settings_of_the_objective():
    drawn = Sampling("student", temperature=0.7, top_p=0.9)
    asked = engine.requests(drawn, GIVEN, LIMITS, 6, seed=3, vocabulary=VOCABULARY)
    assert [one.prompt for one in asked] == [[5, 6, 7, 8], [9, 3], [4]]
    assert all(
        one.settings.items() >= {"temperature": 0.7, "top_p": 0.9, "top_k": -1, "max_tokens": 6}.items()
        for one in asked
    )
    assert len({one.settings["seed"] for one in asked}) == 3
    assert asked == engine.requests(drawn, GIVEN, LIMITS, 6, seed=3, vocabulary=VOCABULARY)
    assert asked != engine.requests(drawn, GIVEN, LIMITS, 6, seed=4, vocabulary=VOCABULARY)
    assert engine.requests(Sampling("student", top_k=5), GIVEN, LIMITS, 6, 3, VOCABULARY)[0].settings["top_k"] == 5
    assert engine.requests(GREEDY, GIVEN, LIMITS, 6, 3, VOCABULARY)[0].settings["temperature"] == 0.0


def test_classes_beyond_the_tokenizer_s_are_never_drawn():
    assert "allowed_token_ids" not in engine.requests(GREEDY, GIVEN, LIMITS, 6, 3, VOCABULARY)[0].settings
    padded = engine.requests(GREEDY, GIVEN, LIMITS, 6, 3, VOCABULARY + 3)[0]
    assert padded.settings["allowed_token_ids"] == list(range(VOCABULARY))


def test_without_the_package_or_a_gpu_one_error_says_so(monkeypatch):
    from importlib.metadata import PackageNotFoundError

    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(engine, "version", absent)
    with pytest.raises(ConfigError, match=r"rollouts\.engine.*kdbench\[vllm\]"):
        engine.installed("cuda")
    monkeypatch.setattr(engine, "version", lambda name: "1.0")
    with pytest.raises(ConfigError, match=r"rollouts\.engine.*found device: cpu"):
        engine.installed("cpu")
    assert engine.installed("cuda") == "1.0"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("objectives=[sft, skd]", "cannot write for 'skd', whose text is made by interleaved sampling"),
        ("objectives=[sft, minillm]", "cannot write for 'minillm', whose text is made by mixed sampling"),
        ("train.lora={r: 4}", r"take train\.lora or engine out"),
        ("train.fsdp=2", r"take train\.fsdp or engine out"),
    ],
)
def test_what_the_engine_cannot_serve_is_refused(change, words, suite_file):
    changes = ["rollouts.engine=vllm", "compare={baseline: sft, tasks: [swap]}", change]
    with pytest.raises(ConfigError, match=r"rollouts\.engine: vllm .*" * (not change.startswith("train")) + words):
        validate(Suite, override(parse(suite_file), changes))
    validate(Suite, override(parse(suite_file), ["rollouts.engine=vllm", "objectives=[sft, gkd, kl, atkd]"]))
