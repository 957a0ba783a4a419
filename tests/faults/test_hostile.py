"""Files made to hurt: pickles under other names, repositories with code of their own, suites that include, lists that
point outside. Nothing runs, nothing is read or written elsewhere, one error says what was met.

python -m pytest tests/faults/test_hostile.py
"""

from __future__ import annotations

import pickle
import shutil

import pytest

from kdbench import failpoints
from kdbench.distill import checkpoint, models
from kdbench.errors import ConfigError
from kdbench.files import SUM, atomic_write, read_json, sealed, sha256_file, write_json
from kdbench.run.store import Store
from tests.conftest import call
from tests.distill.test_convert import Bomb
from tests.faults.house import files_of, link_tree, make

SMALL = "init: {architecture: opt, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, ffn_dim: 32}"


@pytest.fixture
def mark(tmp_path):
    """A file that exists as soon as hostile code has run."""
    path = tmp_path / "mark"
    yield path
    assert not path.exists(), "hostile code was run"


@pytest.fixture
def with_code(mark, undisturbed, house, tmp_path):
    """A saved model beside which lies code that config.json asks to be imported."""

    def make_folder(model_type):
        folder = tmp_path / "own"
        shutil.copytree(undisturbed.entry("models", house.job("model small · seed 0").key).path / "model", folder)
        config = read_json(folder / "config.json") | {"model_type": model_type}
        config |= {"auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
        write_json(folder / "config.json", config)
        tokenizer = read_json(folder / "tokenizer_config.json") | {"auto_map": {"AutoTokenizer": ["own.Tok", None]}}
        write_json(folder / "tokenizer_config.json", tokenizer)
        atomic_write(folder / "own.py", f"open({str(mark)!r}, 'w')\n")
        return folder

    return make_folder


@pytest.mark.fault("H6", "a model of an unknown kind with code of its own: refused by plan, not imported")
def test_a_model_that_needs_code_of_its_own_is_refused(with_code, suite, tmp_path):
    with_code("own_kind")
    mine = tmp_path / "mine.yaml"
    mine.write_text(suite.read_text().replace(SMALL, "path: own"), encoding="utf-8")
    result = call("plan", mine, "--results-dir", tmp_path / "r")
    assert result.exit_code == 2 and "own" in result.stderr and "Traceback" not in result.output


@pytest.mark.fault("H6", "a known kind whose config names code: loaded by transformers' own class, code not imported")
def test_code_beside_a_model_of_a_known_kind_is_not_imported(with_code, house, undisturbed):
    folder = with_code("opt")
    model = models.load(folder, models.Runtime("cpu", "float32", 1))
    assert type(model).__module__.startswith("transformers.")
    assert type(models.load_tokenizer(folder)).__module__.startswith("transformers.")


@pytest.mark.fault("H6", "a pickle that would run code, named model.safetensors")
def test_a_pickle_named_safetensors_is_refused_and_runs_nothing(with_code, mark):
    folder = with_code("opt")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        models.load(folder, models.Runtime("cpu", "float32", 1))


@pytest.mark.fault("H6", "a pickle in place of a checkpoint, with a marker that vouches for it")
def test_a_pickle_in_place_of_a_checkpoint_is_set_aside_and_runs_nothing(mark, without, house, expected):
    job = house.job("kl")
    store = without(job)
    entry = store.entry("cells", job.key)
    with failpoints.armed("step:10:crash"), pytest.raises(failpoints.Crash):
        make(store, job)
    newest = max(entry.checkpoints.glob("*.safetensors"))
    newest.write_bytes(pickle.dumps(Bomb(mark)))
    marker = newest.with_suffix(".json")
    write_json(marker, sealed(read_json(marker) | {"tensors": sha256_file(newest)}))
    assert checkpoint.load(entry.checkpoints).step == 4
    make(store, job)
    assert files_of(entry) == expected[job.id]


@pytest.mark.fault("H6", "a pickle in place of a cache's shard")
@pytest.mark.fault("C8", "a shard replaced by another whole one of the same size")
@pytest.mark.parametrize("what", ["pickle", "another shard"])
def test_a_shard_that_was_replaced_is_found_and_made_again(what, mark, undisturbed, house, tmp_path, expected):
    link_tree(undisturbed.root, tmp_path / "r")
    job = house.job("teacher_cache")
    entry = Store(tmp_path / "r").entry(job.kind, job.key)
    first, second = sorted(entry.path.glob("shard-*.safetensors"))[:2]
    content = pickle.dumps(Bomb(mark)) if what == "pickle" else second.read_bytes()
    first.unlink()
    first.write_bytes(content)
    make(Store(tmp_path / "r"), job)
    assert files_of(entry) == expected[job.id]
    assert entry.path.with_name(f"{entry.key}.corrupt-1").is_dir()


@pytest.mark.fault("H7", "a DONE.json that lists files outside its entry")
@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "model/../../../secret"])
def test_a_list_that_points_outside_is_damage_and_is_not_followed(name, undisturbed, house, tmp_path, expected):
    link_tree(undisturbed.root, tmp_path / "r")
    job = house.job("kl")
    entry = Store(tmp_path / "r").entry("cells", job.key)
    atomic_write(tmp_path / "r" / "secret", "x")
    done = {key: value for key, value in entry.done().items() if key != SUM}  # whoever forges it leaves the sum out
    outside = {name: {"sha256": sha256_file(tmp_path / "r" / "secret"), "bytes": 1}}
    write_json(entry.path / "DONE.json", done | {"files": done["files"] | outside})
    assert entry.done() is None and entry.state() == "damaged"
    make(Store(tmp_path / "r"), job)
    assert files_of(entry) == expected[job.id]


@pytest.mark.fault("H3", "a suite that includes another: by key, by merge, by tag")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("include: other.yaml", "include: unknown field"),
        ("includes: [other.yaml]", "includes: unknown field"),
        ("<<: {name: other}", "`<<` is not part of YAML 1.2"),
        ("data2: !include other.yaml", "tags are not allowed"),
    ],
)
def test_suites_have_no_includes(line, message, suite, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"{suite.read_text()}{line}\n", encoding="utf-8")
    (tmp_path / "other.yaml").write_text(suite.read_text(), encoding="utf-8")
    result = call("plan", mine, "--results-dir", tmp_path / "r")
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.output
