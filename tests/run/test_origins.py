"""Models of the Hub, models made of another one's layers, and models that are fine-tuned first: planned and run.

python -m pytest tests/run/test_origins.py
"""

from __future__ import annotations

import json
import shutil

import pytest

from kdbench.distill import data, facts, models
from kdbench.errors import ConfigError
from kdbench.files import digest
from kdbench.run import origins
from kdbench.run.cell import execute
from kdbench.run.jobs import Planner
from kdbench.run.store import Store
from kdbench.run.work import Hooks
from kdbench.suite import loader
from kdbench.suite.schema import Suite
from tests.conftest import call, kdbench
from tests.distill.hub_server import ID, REVISION, serving

BIG = (
    "architecture: opt, hidden_size: 24, num_hidden_layers: 4, "
    "num_attention_heads: 2, ffn_dim: 48, word_embed_proj_dim: 24"
)
FIELDS = f"{BIG}, vocab_size: 328, max_position_embeddings: 64, bos_token_id: 0, eos_token_id: 0, pad_token_id: 1"
TEXT = """\
name: origins
data:
  corpus: {{folder: {corpus}, files: "*.txt"}}
  tokenizer: {{hub: {{id: {id}, revision: {revision}}}, vocabulary: 320}}
  length: 32
  tokens: 2048
models:
  raw:
    hub: {{id: {id}, revision: {revision}, license: MIT, convert: true}}
    config: {{{fields}}}
  big:
    hub: {{id: {id}, revision: {revision}, convert: true}}
    config: {{{fields}}}
    finetune: {{text: distillation, tokens: 4096, lr: 1e-2, batch_tokens: 512}}
  small:
    init: {{from: big, layers: [0, 3]}}
students: [small]
teachers: [big]
objectives: [sft, kl]
seeds: [0]
train: {{steps: 4, batch_tokens: 256, lr: 1e-2}}
examine: {{tasks: [swap], items: 20, batch_size: 16, intrinsic_tokens: 256}}
compare: {{contrasts: [[kl, sft]], tasks: [swap]}}
device: cpu
"""


@pytest.fixture
def suite_text(corpus_folder) -> str:
    return TEXT.format(corpus=corpus_folder, id=ID, revision=REVISION, fields=FIELDS)


def planned(text: str, folder, *changes: str) -> Planner:
    path = folder / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    planner = Planner(loader.validate(Suite, loader.override(loader.parse(path), changes)), folder)
    planner.all()
    return planner


def keys(planner: Planner, kind: str) -> dict[str, str]:
    return {job.title: job.key for job in planner.jobs.values() if job.kind == kind}


def test_a_plan_needs_neither_weights_nor_the_hub(suite_text, tmp_path):
    planner = planned(suite_text, tmp_path)
    assert planner.vocabulary == 320
    assert planner.hidden_size("big") == 24
    assert planner.configs["small"].num_hidden_layers == 2
    assert planner.count_parameters()["small"] < planner.count_parameters()["big"]
    assert list(keys(planner, "models")) == ["model big", "model big, fine-tuned", "model small"]


def test_a_model_is_known_by_repository_and_commit_and_by_nothing_else(suite_text, tmp_path):
    before = keys(planned(suite_text, tmp_path), "models")
    same = keys(
        planned(suite_text.replace("license: MIT", "license: other"), tmp_path, "models.big.hub.convert=false"),
        "models",
    )
    assert same == before
    other = keys(planned(suite_text, tmp_path, f"models.big.hub.revision={'b' * 40}"), "models")
    assert all(other[title] != before[title] for title in before), "what is made of a model changes with it"


def test_a_warm_start_depends_on_its_source_as_trained_and_on_its_layers(suite_text, tmp_path):
    before = keys(planned(suite_text, tmp_path), "models")
    layers = keys(planned(suite_text, tmp_path, "models.small.init.layers=[0, 2]"), "models")
    tuned = keys(planned(suite_text, tmp_path, "models.big.finetune.lr=0.02"), "models")
    assert layers["model small"] != before["model small"] and layers["model big"] == before["model big"]
    assert tuned["model small"] != before["model small"] and tuned["model big"] == before["model big"]


def test_the_teacher_is_fine_tuned_once_for_all_cells(suite_text, tmp_path):
    planner = planned(suite_text, tmp_path, "seeds=[0, 1, 2]", "objectives=[sft, kl, reverse_kl]")
    tuned = [job for job in planner.jobs.values() if "finetune" in job.inputs]
    assert len(tuned) == 1
    cells = [job for job in planner.jobs.values() if job.kind == "cells" and "teacher" in job.inputs]
    assert len(cells) == 7 and {job.inputs["teacher"] for job in cells} == {tuned[0].key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "models.big.hub.revision=main",
            "expected a commit of 40 hexadecimal digits, found 'main'; a branch or tag may move",
        ),
        ("models.big.hub.id=opt-125m", "models.big.hub.id"),
        ("models.small.init.from=bigg", "unknown model 'bigg'. Did you mean 'big'?"),
        ("models.small.init.from=small", "small ← small leads in a circle"),
        ("models.small.init.layers=[3, 0]", "expected growing numbers from 0"),
        ("models.small.init.layers=[0, 9]", "models.small: init.layers: expected numbers from 0 to 3, found [9]"),
        ("models.small.init={from: fresh, layers: [0]}", "'fresh' has random weights, drawn anew for each seed"),
        ("models.small.pretrain={tokens: 100, lr: 1e-3}", "a model with weights takes `finetune`"),
        ("models.small.config={architecture: opt}", "`config` goes with `hub`"),
        ("models.big.config.hidden_sise=3", "unknown field 'hidden_sise' of opt. Did you mean 'hidden_size'?"),
        (
            "models.big.config.vocab_size=300",
            "expected the suite's tokenizer of 320 entries, found 300 in the declared",
        ),
        ("models.big.config=null", "models.big: some/model at aaaaaaaaaaaa is not whole in the cache"),
        ("data.tokenizer.vocabulary=null", "To plan without it, declare its size: `vocabulary: N`"),
        ("data.tokenizer={bpe: 320, vocabulary: 320}", "`vocabulary` goes with `hub`"),
        ("skip=[[small, bigg]]", "skip: unknown teacher 'bigg'"),
        ("skip=[[small, big]]", "skip: leaves the student 'small' without a teacher"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(change, message, suite_text, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fresh = f"  fresh:\n    init: {{{BIG}}}\nstudents:"
    with pytest.raises(ConfigError) as found:
        planned(suite_text.replace("students:", fresh), tmp_path, change)
    assert message in str(found.value)


def test_a_pair_that_is_skipped_has_no_cells(suite_text, tmp_path):
    planner = planned(suite_text, tmp_path, "teachers=[big, raw]", "students=[small, raw]", "skip=[[raw, raw]]")
    pairs = {(cell.student, cell.teacher) for cell, _ in planner.cells if cell.student and cell.teacher}
    assert pairs == {("small", "big"), ("small", "raw"), ("raw", "big")}


def test_a_declared_config_that_is_not_the_models_own_names_every_difference():
    own = facts.declared({"architecture": "opt", "hidden_size": 1024, "word_embed_proj_dim": 512, "ffn_dim": 4096})
    facts.check({"architecture": "opt", "hidden_size": 1024}, own)
    with pytest.raises(ConfigError) as found:
        facts.check({"architecture": "llama", "hidden_size": 1000, "ffn_dim": 4096}, own)
    assert "architecture: declared 'llama', its config.json says 'opt'" in str(found.value)
    assert "hidden_size: declared 1000, its config.json says 1024" in str(found.value)
    assert "ffn_dim" not in str(found.value)


@pytest.fixture
def repository(corpus_folder, tmp_path):
    """A repository as OPT's are: pickled weights, a vocabulary padded beyond the tokenizer's."""
    from tests.distill.saved import save_pickled

    documents = data.read_corpus({"folder": str(corpus_folder), "files": "*.txt"}, tmp_path)
    fields = {key: int(v) if v.isdigit() else v for key, v in (pair.split(": ") for pair in FIELDS.split(", "))}
    folder = save_pickled(models.make(facts.declared(fields), 3), tmp_path / "repository")
    data.train_tokenizer(data.split(documents)["train"], 320, folder)
    return folder


def test_a_suite_of_hub_models_runs_to_a_verdict_and_again_without_a_network(suite_text, repository, tmp_path):
    suite, results = tmp_path / "suite.yaml", tmp_path / "results"
    suite.write_text(suite_text, encoding="utf-8")
    home = {"HF_HOME": str(tmp_path / "home"), "KDBENCH_RESULTS_DIR": str(results)}
    options = ("run", suite, "--no-mlflow", "--workers", 1)
    refused = kdbench(*options, check=None, HF_HUB_OFFLINE="1", **home)
    assert refused.returncode == 3 and "HF_HUB_OFFLINE is set" in refused.stdout
    with serving(repository) as server:
        kdbench(*options, HF_HUB_OFFLINE="0", HF_ENDPOINT=server.url, **home)
    done = [json.loads(path.read_text()) for path in results.glob("models/*/DONE.json")]
    assert len(done) == 3 and all(one["status"] == "ok" for one in done)
    folders = [path.parent for path in results.glob("models/*/model/config.json")]
    assert all(list(one.glob("*.safetensors")) and not list(one.glob("*.bin")) for one in folders)
    assert kdbench(*options, HF_HUB_OFFLINE="1", **home).returncode == 0


def test_weights_that_are_not_what_the_suite_declares_stop_before_training(suite_text, repository, tmp_path):
    suite = tmp_path / "suite.yaml"
    suite.write_text(suite_text.replace("ffn_dim: 48", "ffn_dim: 40"), encoding="utf-8")
    home = {"HF_HOME": str(tmp_path / "home"), "KDBENCH_RESULTS_DIR": str(tmp_path / "results")}
    with serving(repository) as server:
        done = kdbench("run", suite, "--no-mlflow", check=None, HF_HUB_OFFLINE="0", HF_ENDPOINT=server.url, **home)
    assert "ffn_dim: declared 40, its config.json says 48" in done.stdout + done.stderr
    assert not list((tmp_path / "results").glob("cells/*/DONE.json"))


@pytest.mark.parametrize(("bos", "told"), [("<s>", {"start": "bos"}), ("</s>", {})])
def test_the_key_of_a_text_knows_whether_it_starts_with_a_bos_of_its_own(bos, told, suite_file, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"])
    made.train_from_iterator(["peace at home"], trainer)
    folder = tmp_path / "tokenizer"
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos, eos_token="</s>").save_pretrained(folder)
    suite = loader.validate(Suite, loader.override(loader.parse(suite_file), [f"data.tokenizer={{path: {folder}}}"]))
    planner = Planner(suite, suite_file.parent)
    planner.all()
    (text,) = (job for job in planner.jobs.values() if job.kind == "texts")
    assert text.inputs.items() & {"start": "bos"}.items() == told.items()


@pytest.mark.fault("G9", "a model's folder, or a tokenizer's, that changes between plan and run: refused")
@pytest.mark.parametrize("kind", ["models", "tokenizers"])
def test_what_changes_after_it_was_planned_is_never_stored_under_the_key_of_what_it_was(kind, world, tmp_path):
    _, suite, results, _ = world
    folder = tmp_path / "mine"
    cell = next(path for path in results.glob("cells/*/model"))
    shutil.copytree(cell, folder)
    source = f"{{path: {folder}}}"
    changes = [f"models.small={source}", f"data.tokenizer={source}", "objectives=[sft]", "compare.contrasts=[]"]
    chosen = loader.validate(Suite, loader.override(loader.parse(suite), changes))
    planner = Planner(chosen, suite.parent)
    job = next(job for job in planner.all() if job.kind == kind and "path" in job.context)
    changed = folder / ("model.safetensors" if kind == "models" else "tokenizer.json")
    changed.write_bytes(changed.read_bytes()[:-1] + b" ")
    planned = job.inputs["weights"] if kind == "models" else digest(job.inputs["files"])
    now = models.folder_fingerprint(folder) if kind == "models" else digest(origins.tokenizer_files(folder))
    message = rf"has changed since this run was planned \(planned {planned[:12]}, found {now[:12]}\)"
    with pytest.raises(ConfigError, match=message):
        execute(Store(tmp_path / "r"), job.message() | {"needs": []}, Hooks())


def test_a_tokenizer_of_several_files_is_known_by_all_of_them(tmp_path):
    for name, text in (("vocab.json", "{}"), ("merges.txt", "a b"), ("tokenizer_config.json", "{}"), ("readme.md", "")):
        (tmp_path / name).write_text(text)
    (tmp_path / "tokenizer_old").mkdir()
    found = origins.tokenizer_files(tmp_path)
    assert set(found) == {"vocab.json", "merges.txt", "tokenizer_config.json"}
    (tmp_path / "merges.txt").write_text("b a")
    assert origins.tokenizer_files(tmp_path) != found
    (tmp_path / "tokenizer.json").write_text("{}")
    assert set(origins.tokenizer_files(tmp_path)) == {"tokenizer.json", "tokenizer_config.json"}


@pytest.mark.fault("E8", "a teacher whose tokenizer has as many entries, and others: refused by plan")
def test_a_teacher_with_another_tokenizer_of_the_same_size_is_refused(world, tmp_path):
    _, suite, results, _ = world
    own, other = tmp_path / "own", tmp_path / "other"
    for folder in (own, other):
        shutil.copytree(next(path for path in results.glob("cells/*/model")), folder)
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    asked = ("plan", suite, "--results-dir", tmp_path / "r", "--set", f"data.tokenizer={{path: {own}}}")
    assert call(*asked, "--set", f"models.big={{path: {own}}}").exit_code == 0
    refused = call(*asked, "--set", f"models.big={{path: {other}}}")
    assert (
        refused.exit_code == 2 and "models.big: the model in" in refused.stderr and "2 entries differ" in refused.stderr
    )
