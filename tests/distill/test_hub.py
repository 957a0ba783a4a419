"""The Hub's real client against a server on loopback: what is fetched, what is refused, and how fast it gives up.

python -m pytest tests/distill/test_hub.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.distill.hub_server import ID, REVISION, serving

FETCH = """
import sys
from kdbench.distill import hub
from kdbench.errors import ConfigError
what, name, revision, convert = sys.argv[1:]
try:
    folder = getattr(hub, what)(hub.Place(name, revision, convert == "True"))
    print(*sorted(path.name for path in folder.iterdir()))
except ConfigError as error:
    print("refused:", error)
"""


def fetch(home, endpoint, what="model", name=ID, revision=REVISION, convert=False, offline="0") -> str:
    """Ask for a repository in a fresh process, since the client reads its settings once; return what it printed."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": offline}
    settings |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    arguments = [sys.executable, "-c", FETCH, what, name, revision, str(convert)]
    process = subprocess.run(arguments, capture_output=True, text=True, env=os.environ | settings, timeout=120)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("config.json", "tokenizer_config.json", "vocab.json"):
        (folder / name).write_text("{}")
    for name in ("modeling_own.py", "README.md", "training_args.bin", "pytorch_model.bin", "model.safetensors"):
        (folder / name).write_text("bytes")
    return folder


def test_settings_tokenizer_and_safetensors_are_fetched_and_nothing_else(repository, tmp_path):
    with serving(repository) as server:
        found = fetch(tmp_path / "home", server.url)
        assert found.split() == ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.json"]
        asked = len(server.asked)
        assert fetch(tmp_path / "home", server.url) == found
        assert len(server.asked) == asked, "what is in the cache is not asked for again"
    assert fetch(tmp_path / "home", "http://127.0.0.1:9", offline="1") == found


@pytest.mark.fault("H6", "a repository of pickles: refused before they are fetched")
def test_pickles_alone_are_refused_with_the_way_out_and_fetched_only_where_asked_for(repository, tmp_path):
    (repository / "model.safetensors").unlink()
    with serving(repository) as server:
        refused = fetch(tmp_path / "home", server.url)
        assert refused.startswith("refused: expected safetensors in some/model at aaaaaaaaaaaa, found pickles")
        assert "kdbench convert" in refused and "convert: true" in refused
        assert not any("pytorch_model.bin" in path for path in server.asked)
        assert "pytorch_model.bin" in fetch(tmp_path / "home", server.url, convert=True).split()


def test_shards_are_taken_whole_and_not_the_one_file_beside_them(repository, tmp_path):
    index = '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    (repository / "model.safetensors.index.json").write_text(index)
    for number in (1, 2):
        (repository / f"model-0000{number}-of-00002.safetensors").write_text(f"shard {number}")
    with serving(repository) as server:
        found = fetch(tmp_path / "home", server.url).split()
    assert [name for name in found if name.endswith("safetensors")] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_a_config_is_fetched_with_the_tokenizer_beside_it_and_no_weights(repository, tmp_path):
    with serving(repository) as server:
        found = fetch(tmp_path / "home", server.url, "config")
    assert found.split() == ["config.json", "tokenizer_config.json", "vocab.json"]


def test_a_gated_an_unknown_and_a_moved_repository_are_told_apart(repository, tmp_path):
    with serving(repository, refusal="GatedRepo") as server:
        assert "is gated: accept its terms" in fetch(tmp_path / "home", server.url)
        assert "no commit " + "b" * 40 in fetch(tmp_path / "home", server.url, revision="b" * 40)
        assert "no repository some/other, or it is private" in fetch(tmp_path / "home", server.url, name="some/other")


@pytest.mark.fault("H9", "nothing listens: one error in seconds, which says how to fetch by hand")
@pytest.mark.parametrize("what", ["model", "tokenizer", "config"])
def test_a_hub_that_cannot_be_reached_is_one_error_at_once(what, tmp_path):
    begin = time.monotonic()
    found = fetch(tmp_path, "http://127.0.0.1:9", what)
    assert time.monotonic() - begin < 12, "the client's own retries take twenty seconds more"
    assert found.startswith("refused: the Hub at http://127.0.0.1:9 cannot be reached for some/model at aaaaaaaaaaaa")
    assert "hf download some/model --revision" in found


@pytest.mark.fault("H9", "HF_HUB_OFFLINE: nothing is asked, and the flag is named")
def test_the_offline_flag_is_honoured_and_said(tmp_path):
    with serving(tmp_path) as server:
        assert "HF_HUB_OFFLINE is set" in fetch(tmp_path / "home", server.url, offline="1")
        assert server.asked == []
