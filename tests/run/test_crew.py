"""How many workers run at once: cores on a CPU; on a GPU what fits, as estimated and then as measured.

python -m pytest tests/run/test_crew.py
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from kdbench.run import crew, orchestrate
from kdbench.run.clock import PEAK_GPU, Clock
from kdbench.run.predict import peak_bytes
from kdbench.run.store import Store
from kdbench.suite.loader import parse, validate
from kdbench.suite.schema import Suite

GIB = 2**30


@pytest.fixture
def plan(suite_file, tmp_path):
    return orchestrate.plan(validate(Suite, parse(suite_file)), suite_file.parent, Store(tmp_path / "results"))


@pytest.mark.parametrize(
    ("free", "each", "cores", "workers"),
    [(80, 10, 16, 6), (80, 1, 8, 8), (80, 100, 8, 1), (24, 10.9, 8, 1), (0.1, 0.1, 8, 1)],
)
def test_as_many_workers_as_fit_on_a_gpu_no_more_than_cores_and_one_at_least(free, each, cores, workers):
    assert crew.fitting(free * GIB, each * GIB, cores) == workers


def test_the_largest_job_counts_and_what_was_measured_stands_for_what_was_estimated(plan):
    jobs = plan.to_run({})
    counted = plan.planner.count_parameters()
    assert crew.largest(plan, jobs) == max(peak_bytes(plan, job, counted) for job in jobs)
    taught = next(one for one in plan.cells if one.cell.arm == "kl")
    seen = {taught.job.id: {"timing": {PEAK_GPU: 5000}}}
    assert crew.largest(replace(plan, done=seen), jobs) == 5000 * 2**20
    assert crew.largest(replace(plan, done=seen), [job for job in jobs if job.kind == "texts"]) < GIB * 1.01


def test_a_model_that_is_read_takes_its_weights_and_a_cache_its_logits(plan):
    counted = plan.planner.count_parameters()
    cache = next(job for job in plan.jobs if job.kind == "teacher_cache")
    ceiling = next(one.job for one in plan.cells if one.cell.arm == "ceiling")
    text = next(job for job in plan.jobs if job.kind == "texts")
    sizes = [peak_bytes(plan, job, counted) for job in (text, ceiling, cache)]
    assert sizes[1] - sizes[0] == 4 * counted["big"] and sizes[2] > sizes[1]


def test_a_job_that_used_no_gpu_says_nothing_of_one():
    assert PEAK_GPU not in Clock().facts()
