"""One undisturbed store that every test of this folder compares with."""

from __future__ import annotations

import pytest

from kdbench.run.store import Store
from tests.faults.house import SUITE, files_of, link_tree, make, plan


@pytest.fixture(scope="session")
def suite(tmp_path_factory, corpus_folder):
    path = tmp_path_factory.mktemp("faults") / "faults.yaml"
    path.write_text(SUITE.format(corpus=corpus_folder), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def house(suite):
    import torch

    torch.set_num_threads(1)
    return plan(suite)


@pytest.fixture(scope="session")
def undisturbed(house, tmp_path_factory):
    """The store of a run that nothing happened to."""
    store = Store(tmp_path_factory.mktemp("undisturbed") / "results")
    for job in house.jobs:
        make(store, job)
    return store


@pytest.fixture(scope="session")
def expected(house, undisturbed):
    """Job → name → sha256 of every file it must end with."""
    return {job.id: files_of(undisturbed.entry(job.kind, job.key)) for job in house.jobs}


@pytest.fixture
def without(undisturbed, tmp_path):
    """Return a store that holds everything but one job's entry."""

    def make_store(job, name="results"):
        root = tmp_path / name
        link_tree(undisturbed.root, root)
        store = Store(root)
        import shutil

        shutil.rmtree(store.entry(job.kind, job.key).path)
        return store

    return make_store
