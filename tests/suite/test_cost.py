"""The cost model: sizes give FLOP, bytes and memory; a short calibration gives seconds.

python -m pytest tests/suite/test_cost.py
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from kdbench.suite import cost


@dataclass(frozen=True)
class Job:
    id: str
    needs: tuple[str, ...] = ()
    kind: str = "cells"
    cost: float = 0.0


def test_a_live_teacher_costs_its_forward_pass_and_a_cached_one_its_head_alone():
    none = cost.distilling(student=100, teacher=0, hidden=0, vocabulary=10, tokens=1, live=False).flop
    cached = cost.distilling(student=100, teacher=1000, hidden=5, vocabulary=10, tokens=1, live=False).flop
    live = cost.distilling(student=100, teacher=1000, hidden=5, vocabulary=10, tokens=1, live=True).flop
    assert (none, cached - none, live - cached) == (600, 100, 2000)


def test_memory_counts_the_student_four_times_and_the_frozen_teacher_once():
    size = {"device": "cuda", "tokens": 0, "layers": 1, "hidden": 1, "vocabulary": 0}
    nothing = cost.memory(student=0, teacher=0, **size)
    assert cost.memory(student=10, teacher=0, **size) - nothing == 160
    assert cost.memory(student=0, teacher=10, **size) - nothing == 40
    assert cost.memory(student=0, teacher=0, **(size | {"device": "cpu"})) - nothing == cost.PROCESS_BYTES


def test_the_chunk_of_the_cost_model_is_the_loss_s_own():
    from kdbench.distill.loss import CHUNK_BYTES

    assert cost.CHUNK_BYTES == CHUNK_BYTES


def test_jobs_wait_for_what_they_need_and_share_the_workers():
    from kdbench.run.predict import makespan

    jobs = [Job("m", kind="models"), *(Job(f"c{n}", ("m",)) for n in range(4))]
    seconds = {"m": 5.0} | {f"c{n}": 2.0 for n in range(4)}
    assert makespan(jobs, seconds, 1) == 13
    assert makespan(jobs, seconds, 2) == 9
    assert makespan(jobs, seconds, 8) == 7
    assert makespan([], {}, 2) == 0


def config_of(hidden: int, layers: int, vocabulary: int = 320):
    from kdbench.distill.models import architecture_config

    init = {"architecture": "opt", "hidden_size": hidden, "num_hidden_layers": layers, "ffn_dim": 2 * hidden}
    return architecture_config(init | {"num_attention_heads": 2}, vocabulary, 32, (0, 1), False)


def calibration(config, specs, vocabulary=320):
    from kdbench.distill.calibrate import calibrate
    from kdbench.distill.models import Runtime
    from kdbench.registry import objective

    return calibrate(config, 24, vocabulary, 32, [objective(one).spec() for one in specs], Runtime("cpu", "float32", 1))


def test_a_calibration_is_short_and_finds_overhead_and_a_rate_for_each_objective():
    import torch

    calibration(config_of(16, 1), [])  # pays for the imports
    state, begin = torch.get_rng_state(), time.monotonic()
    rates = calibration(config_of(16, 1), ["sft", "kl", "atkd", "gkd"])
    assert time.monotonic() - begin < 10  # two or so; much more only on a machine that is busy elsewhere
    assert torch.equal(torch.get_rng_state(), state)
    assert set(rates.token_s) == {"sft", "kl", "atkd", "gkd"}
    assert rates.step_s > 0 and rates.layers == 1
    assert min(rates.token_s.values()) == rates.token_s["sft"] >= 0
    assert rates.step_s > 100 * rates.token_s["sft"]  # of so small a model the overhead is what one pays for


def test_a_student_too_large_for_a_moment_is_stood_in_for():
    from kdbench.distill import calibrate

    rates = calibration(config_of(512, 3, 50_000), [], 50_000)
    assert rates.parameters < calibrate.LARGEST and rates.layers == 1


def test_the_message_says_how_good_the_prediction_was():
    from kdbench.run.predict import in_words

    found = {"predicted_s": 186.0, "took_s": 204.0, "cells_median_error": 0.12}
    assert in_words(found) == "predicted 3.1 min, took 3.4 min; cells: median error 12%"
    assert in_words(found | {"cells_median_error": None}) == "predicted 3.1 min, took 3.4 min"


@pytest.mark.parametrize(("seconds", "words"), [(0, "0 s"), (89, "89 s"), (120, "2.0 min"), (7200, "2.0 h")])
def test_durations_are_said_in_the_unit_that_fits(seconds, words):
    from kdbench.suite.cost import duration

    assert duration(seconds) == words
