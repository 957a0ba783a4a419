"""Students trained elsewhere are examined, compared and marked as such; `kdbench examine` does it for one folder.

python -m pytest tests/run/test_external.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas
import pytest

from kdbench.errors import ConfigError
from kdbench.suite.external import External
from kdbench.suite.loader import override, parse, validate
from kdbench.suite.schema import Suite
from tests.conftest import call, kdbench

OPT = "architecture: opt, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, ffn_dim: 32, seed: 0"
TEXT = """\
name: elsewhere
data:
  corpus: {{folder: {corpus}, files: "*.txt"}}
  tokenizer: {{bpe: 320}}
  length: 32
  tokens: 2048
models:
  small: {{init: {{{opt}}}}}
  big: {{init: {{{opt}}}}}
students: [small]
teachers: [big]
objectives: [sft]
arms:
  - external: {{path: "runs/{{student}}-{{teacher}}-{{seed}}", label: mine}}
  - external: {{path: runs/one, label: one}}
seeds: [0, 1, 2]
train: {{steps: 4, batch_tokens: 256, lr: 1e-2}}
examine: {{tasks: [swap, replace], items: 30, batch_size: 16, intrinsic_tokens: 512}}
compare: {{contrasts: [[mine, sft], [one, sft]], tasks: [swap, replace]}}
device: cpu
"""


def save_student(folder: Path, seed: int, vocabulary: int = 320) -> Path:
    """Save a student as transformers does, made without kdbench."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=vocabulary, hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=128, init_std=0.2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        OPTForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, corpus_folder):
    """Suite file, results and the finished process of a run; one of three folders of the arm `mine` is missing."""
    folder = tmp_path_factory.mktemp("elsewhere")
    suite = folder / "suite.yaml"
    suite.write_text(TEXT.format(corpus=corpus_folder, opt=OPT), encoding="utf-8")
    for seed in (0, 1):
        save_student(folder / "runs" / f"small-big-{seed}", seed)
    save_student(folder / "runs" / "one", 5)
    process = kdbench("run", suite, "--results-dir", folder / "results", "--workers", 1, "--no-mlflow", check=3)
    return suite, folder / "results", process


def suite_with(tmp_path: Path, *changes: str) -> Suite:
    path = tmp_path / "suite.yaml"
    path.write_text(TEXT.format(corpus="texts", opt=OPT), encoding="utf-8")
    return validate(Suite, override(parse(path), changes))


def test_folders_that_exist_are_examined_and_missing_ones_are_named(elsewhere):
    _, results, process = elsewhere
    plan = json.loads((results / "suites" / "elsewhere" / "plan.json").read_text())
    cells = [cell for cell in plan["cells"] if cell["inputs"]["arm"] == "external"]
    done = [(results / "cells" / cell["key"] / "DONE.json").is_file() for cell in cells]
    assert done == [True, True, False, True]
    assert "mine · small ← big · seed 2: no model folder at runs/small-big-2" in process.stdout
    assert "1 of 9 cells missing, left out: mine · small ← big · seed 2" in " ".join(process.stdout.split())


def test_a_comparison_says_that_they_were_not_trained_under_its_control(elsewhere):
    _, results, process = elsewhere
    said = " ".join(process.stdout.split())
    assert "mine, one: not trained under kdbench's control" in said
    assert "its seeds do not correspond" in said and "0 against 1, 1 against 2" in said
    assert "one: one model stands beside all seeds" in said
    assert "trained elsewhere" in (results / "suites" / "elsewhere" / "report.html").read_text()


def test_they_are_asked_the_same_items_as_the_students_trained_here(elsewhere):
    import kdbench as public

    _, results, _ = elsewhere
    scores = public.load_scores(results, "elsewhere")
    asked = {arm: set(zip(rows.task, rows.item, strict=True)) for arm, rows in scores.groupby("objective")}
    assert asked["mine"] == asked["one"] == asked["sft"] and len(asked["sft"]) == 60
    assert scores[scores.objective == "one"].seed.isna().all()
    assert set(scores[scores.objective == "mine"].seed) == {1, 2}  # its seeds 0 and 1


def test_their_distance_to_the_teacher_is_measured_where_the_path_names_one(elsewhere):
    _, results, _ = elsewhere
    for cell in json.loads((results / "suites" / "elsewhere" / "plan.json").read_text())["cells"]:
        path = results / "cells" / cell["key"] / "results.json"
        if cell["inputs"]["arm"] == "external" and path.is_file():
            assert ("kl_to_teacher" in json.loads(path.read_text())) == (cell["arm"] == "mine")


def test_a_copy_under_another_name_is_known_by_its_weights(elsewhere, tmp_path):
    suite, results, _ = elsewhere
    shutil.copytree(suite.parent / "runs" / "one", tmp_path / "renamed")
    done = call("plan", suite, "--results-dir", results, "--set", f"arms.1.external.path={tmp_path}/renamed", "--json")
    (row,) = [row for row in json.loads(done.stdout)["cells"] if row["objective"] == "one"]
    assert row["state"] == "done"
    save_student(tmp_path / "renamed", 6)
    done = call("plan", suite, "--results-dir", results, "--set", f"arms.1.external.path={tmp_path}/renamed", "--json")
    (row,) = [row for row in json.loads(done.stdout)["cells"] if row["objective"] == "one"]
    assert row["state"] == "new" and "student" in row["why"]


def test_examine_gives_one_folder_s_scores_beside_floor_and_ceiling_and_leaves_the_plan_alone(elsewhere, tmp_path):
    suite, results, _ = elsewhere
    plan = results / "suites" / "elsewhere" / "plan.json"
    before = plan.read_bytes()
    folder = shutil.copytree(suite.parent / "runs" / "one", tmp_path / "a-student-of-mine")
    done = call("examine", folder, "--suite", suite, "--results-dir", results)
    assert done.exit_code == 0, done.output
    assert "floor: small" in done.stdout and "ceiling: big" in done.stdout
    assert all(len(line) <= 100 for line in done.stdout.splitlines() if str(tmp_path) not in line)
    found = json.loads(call("examine", folder, "--suite", suite, "--results-dir", results, "--json").stdout)
    stored = pandas.read_parquet(results / "cells" / found["key"] / "samples.parquet")
    assert found["overall"] == pytest.approx(stored.groupby("task").score.mean().mean())
    assert plan.read_bytes() == before


def test_examine_of_an_untouched_student_gives_the_floor(elsewhere):
    suite, results, _ = elsewhere
    plan = json.loads((results / "suites" / "elsewhere" / "plan.json").read_text())
    (floor,) = [cell for cell in plan["cells"] if cell["arm"] == "floor"]
    folder = results / "models" / floor["inputs"]["student"] / "model"
    found = json.loads(
        kdbench("examine", folder, "--suite", suite, "--results-dir", results, "--json", cwd=suite.parent).stdout
    )
    stored = json.loads((results / "cells" / floor["key"] / "results.json").read_text())
    assert {name: found[name] for name in stored} == stored


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "expected safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "with config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "merge_and_unload"),
        (lambda folder: save_student(folder, 0, vocabulary=300), "vocabulary mismatch"),
    ],
)
def test_a_folder_that_cannot_be_examined_is_refused_with_what_to_do(elsewhere, tmp_path, spoil, message):
    suite, results, _ = elsewhere
    folder = shutil.copytree(suite.parent / "runs" / "one", tmp_path / "one")
    spoil(folder)
    done = call("plan", suite, "--results-dir", results, "--set", f"arms.1.external.path={folder}")
    assert done.exit_code == 2 and "error: one: " in done.stderr and message in done.stderr


def test_a_tokenizer_of_the_same_size_with_other_entries_is_refused(elsewhere, tmp_path):
    from kdbench.distill.models import check_tokenizer, load_tokenizer

    _, results, _ = elsewhere
    (saved,) = results.glob("tokenizers/*/tokenizer")
    ours = load_tokenizer(saved)
    ours.save_pretrained(tmp_path)
    check_tokenizer(tmp_path, ours)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="2 entries differ, the first 'a'"):
        check_tokenizer(tmp_path, ours)


@pytest.mark.fault("H6", "pickles beside a model")
def test_checkpoints_and_pickles_beside_a_model_are_not_taken_into_the_store(tmp_path):
    from kdbench.run.origins import take_over

    source, folder = tmp_path / "source", tmp_path / "taken"
    (source / "checkpoint-500").mkdir(parents=True)
    model = ("config.json", "model.safetensors")
    for name in (*model, "training_args.bin", "optimizer.pt", "rng_state.pth", "modeling.py"):
        (source / name).touch()
    take_over(source, folder)
    assert {path.name for path in folder.iterdir()} == set(model)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("{path: 'runs/{sede}', label: x}", "Did you mean 'seed'"),
        ("{path: 'runs/{seed', label: x}", "braces in pairs"),
        ("{path: runs/x, label: x, seeds_correspond: true}", "one model stands for all"),
        ("{path: 'runs/{seed}', label: x, seeds: [1, 1]}", "stands twice"),
        ("{path: 'runs/{seed}', label: x, seeds: [4], seeds_correspond: true}", "leave `seeds` out"),
        ("{path: runs/x, label: sft}", "'sft' stands twice"),
        ("{path: runs/x, label: floor}", "choose another"),
        ("{path: runs/x}", "label"),
    ],
)
def test_a_wrong_arm_says_what_is_wrong(tmp_path, arm, message):
    with pytest.raises(ConfigError) as error:
        suite_with(tmp_path, f"arms=[{{external: {arm}}}]", "compare.contrasts=[[sft, floor]]")
    assert message in str(error.value)


def test_a_contrast_may_name_an_arm_trained_elsewhere_and_no_other(tmp_path):
    assert suite_with(tmp_path).arm_labels == ["sft", "mine", "one"]
    with pytest.raises(ConfigError, match="Did you mean 'mine'"):
        suite_with(tmp_path, "compare.contrasts=[[mien, sft]]")


def test_a_path_without_student_is_the_same_model_beside_every_student(tmp_path):
    from kdbench.suite.matrix import cells

    suite = suite_with(tmp_path, "students=[small, big]")
    assert {(cell.student, cell.folder) for cell in cells(suite) if cell.arm == "one"} == {
        ("small", "runs/one"),
        ("big", "runs/one"),
    }


def test_seeds_that_do_not_correspond_never_stand_against_their_like():
    suite = (0, 1, 2)
    arm = External(path="runs/{seed}", label="x")
    assert [arm.stands_beside(seed, suite) for seed in suite] == [1, 2, 0]
    more = External(path="runs/{seed}", label="x", seeds=(42, 43, 44, 45, 46))
    beside = [more.stands_beside(seed, suite) for seed in (42, 43, 44, 45, 46)]
    assert beside[:3] == [1, 2, 0] and len(set(beside)) == 5
    true = External(path="runs/{seed}", label="x", seeds_correspond=True)
    assert [true.stands_beside(seed, suite) for seed in suite] == [0, 1, 2]
    assert External(path="runs/one", label="x").stands_beside(None, suite) is None


def test_setting_unrelated_seeds_against_each_other_keeps_the_error_where_a_mean_over_them_would_not():
    """Why the arm does not enter as one mean: the interval would not know its seed variance."""
    import numpy as np
    from scipy import stats

    rng, arm = np.random.default_rng(0), External(path="runs/{seed}", label="x")
    ours, theirs = rng.normal(size=(20_000, 5)), rng.normal(size=(20_000, 5))
    beside = [arm.stands_beside(seed, range(5)) for seed in range(5)]
    against = stats.ttest_1samp(ours[:, beside] - theirs, 0, axis=1).pvalue
    as_mean = stats.ttest_1samp(ours - theirs.mean(axis=1, keepdims=True), 0, axis=1).pvalue
    assert abs((against < 0.05).mean() - 0.05) < 0.005
    assert (as_mean < 0.05).mean() > 0.1
