"""Bad input meets one clear error, the right exit code, and nothing half-written.

python -m pytest tests/test_cli.py
"""

from __future__ import annotations

import json
import os

import pytest

from tests.conftest import call, kdbench


def change(suite_file, old, new):
    text = suite_file.read_text()
    assert old in text
    suite_file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        ("[sft, kl, atkd]", "[sft, klx, atkd]", [":16: objectives.1", "Did you mean 'kl'"]),
        ("[sft, kl, atkd]", "[sft, {name: kl, tua: 2}, atkd]", ["'tua'", "Did you mean 'tau'"]),
        ("students: [small]", "students: [smal]", ["unknown model 'smal'", "Did you mean 'small'"]),
        ("steps: 12", "steps: 12, stepz: 3", [":18: train.stepz", "Did you mean 'steps'"]),
        ("seeds: [0, 1, 2]", "seeds: [0, 1, 2]\nseeds: [3]", ["'seeds' stands twice"]),
        ("steps: 12", "steps: none", ["train.steps", "integer"]),
        ("lr: 1e-2, checkpoint", "lr: quick, checkpoint", ["train.lr", "number"]),
        ("[[kl, sft]", "[[kl, sfd]", ["unknown arm 'sfd'", "Did you mean 'sft'"]),
        ("tasks: [swap, replace], items", "tasks: [swop, replace], items", ["examine.tasks.0"]),
        ("hidden_size: 16", "hidden_sizes: 16", ["models.small", "Did you mean 'hidden_size'"]),
        (
            "architecture: opt, hidden_size: 24",
            "architecture: optt, hidden_size: 24",
            ["models.big", "Did you mean 'opt'"],
        ),
        ("teachers: [big]", "teachers: []", ["needs a teacher"]),
        ("tokens: 4096", "tokens: 99999999", ["data.tokens"]),
        ("name: tiny", "name: ../tiny", ["name"]),
        ('files: "*.txt"', 'files: "../*.txt"', ["glob"]),
        ('files: "*.txt"', 'files: "*.md"', ["corpus is empty"]),
        ("name: tiny", "name: !!python/object:os.system tiny", ["tags are not allowed"]),
        ("device: cpu", "device: tpu", ["device"]),
    ],
)
@pytest.mark.fault("H1", "wrong values in a suite")
def test_a_wrong_suite_is_one_clear_error(suite_file, tmp_path, old, new, messages):
    change(suite_file, old, new)
    result = call("run", suite_file, "--results-dir", tmp_path / "r", "--no-mlflow")
    assert result.exit_code == 2, result.output
    for message in messages:
        assert message in result.stderr
    assert "Traceback" not in result.output and not (tmp_path / "r").exists()


@pytest.mark.fault("H1", "many errors at once")
def test_all_errors_of_a_suite_are_reported_at_once(suite_file):
    change(suite_file, "steps: 12", "stepz: 12")
    change(suite_file, "[sft, kl, atkd]", "[sft, klx, atkd]")
    result = call("plan", suite_file)
    assert result.exit_code == 2
    assert all(part in result.stderr for part in ("3 errors", "train.stepz", "train.steps", "klx"))


def test_a_learning_rate_as_pyyaml_would_misread_it_is_a_number(suite_file):
    change(suite_file, "lr: 1e-2, checkpoint", "lr: 1e-4, checkpoint")
    result = call("plan", suite_file, "--json")
    assert result.exit_code == 0, result.output


def test_no_such_suite_suggests_its_neighbour(suite_file):
    result = call("run", suite_file.with_name("tinny.yaml"))
    assert result.exit_code == 2 and "Did you mean" in result.stderr and "tiny.yaml" in result.stderr


@pytest.mark.parametrize("content", ["", "- a\n", "a: [", "a: &x [1]\nb: *y\n", "\x00", "a: 1\na: 2\n", "{" * 100])
def test_a_file_that_is_no_suite_is_refused(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    result = call("plan", path)
    assert result.exit_code == 2 and result.stderr.startswith("error: ") and "Traceback" not in result.output


@pytest.mark.fault("H2", "a YAML bomb, from the command line")
def test_a_yaml_bomb_is_refused_in_bounded_time(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    result = call("plan", path)
    assert result.exit_code == 2 and "aliases" in result.stderr


@pytest.mark.fault("C3", "a run that cannot write stops before training")
def test_a_results_folder_that_cannot_be_written_stops_before_training(suite_file, tmp_path):
    (tmp_path / "r").write_text("a file")
    result = call("run", suite_file, "--results-dir", tmp_path / "r", "--no-mlflow")
    assert result.exit_code == 4 and "cannot write" in result.stderr


@pytest.mark.fault("C3", "a read-only disk, and one without permission")
@pytest.mark.parametrize(("error", "words"), [("EROFS", "Read-only file system"), ("EACCES", "Permission denied")])
def test_a_disk_that_cannot_be_written_stops_a_run_before_training(suite_file, tmp_path, error, words):
    from kdbench import failpoints

    with failpoints.armed(f"write:1:raise:{error}"):
        result = call("run", suite_file, "--results-dir", tmp_path / "r", "--no-mlflow")
    assert result.exit_code == 4 and "cannot write" in result.stderr and words in result.stderr
    assert not list((tmp_path / "r").glob("*"))


@pytest.mark.fault("C10", "a results folder whose name is longer than any may be")
@pytest.mark.parametrize("command", [["compare"], ["doctor"], ["doctor", "--store"], ["gc"], ["cache", "ls"]])
def test_a_name_that_is_too_long_is_one_error_or_an_empty_store(command, tmp_path):
    result = call(*command, "--results-dir", tmp_path / ("a" * 300))
    assert result.exit_code in (0, 2, 4) and "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)


def test_a_missing_model_folder_is_named(suite_file, tmp_path):
    change(
        suite_file,
        "init: {architecture: opt, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, ffn_dim: 32}",
        "path: nowhere",
    )
    result = call("plan", suite_file)
    assert result.exit_code == 2 and "models.small" in result.stderr and "config.json" in result.stderr


@pytest.mark.fault("H6", "a folder of pickled weights")
def test_pickled_weights_are_refused(suite_file, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "opt"}')
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    change(
        suite_file,
        "init: {architecture: opt, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, ffn_dim: 32}",
        "path: pickled",
    )
    result = call("plan", suite_file)
    assert result.exit_code == 2 and "safetensors" in result.stderr


@pytest.mark.fault("E8", "refused before training")
@pytest.mark.parametrize(
    ("entries", "positions", "message"),
    [(100, 32, "vocabulary mismatch"), (320, 31, "expected at least data.length = 32, found 31")],
)
def test_a_saved_model_that_the_text_does_not_fit_into_is_refused_before_training(
    entries, positions, message, suite_file, tmp_path
):
    from kdbench.distill import models

    config = models.architecture_config(
        {"architecture": "opt", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        | {"max_position_embeddings": positions},
        entries,
        32,
        (0, 1),
        False,
    )
    models.make(config, 0).save_pretrained(tmp_path / "other")
    change(
        suite_file,
        "init: {architecture: opt, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, ffn_dim: 32}",
        "path: other",
    )
    result = call("run", suite_file, "--results-dir", tmp_path / "r")
    assert result.exit_code == 2 and message in result.stderr and not (tmp_path / "r").exists()


def test_overrides_are_checked_like_the_file(suite_file):
    assert "--set train.stepz=1" in call("plan", suite_file, "--set", "train.stepz=1").stderr
    assert "expected A.B=VALUE" in call("plan", suite_file, "--set", "train").stderr
    assert "Did you mean" in call("run", suite_file, "--dry-run", "--only", "objectiv=kl").stderr
    assert "no objective 'k'" in call("run", suite_file, "--dry-run", "--only", "objective=k").stderr


def test_questions_to_an_empty_store_say_what_to_do(tmp_path):
    for command in (["compare"], ["ui"], ["mlflow", "sync"]):
        result = call(*command, "--results-dir", tmp_path)
        assert result.exit_code == 2 and "run a suite first" in result.stderr


def test_doctor_shows_versions_devices_and_disk(tmp_path):
    result = call("doctor", "--results-dir", tmp_path, "--json")
    found = json.loads(result.stdout)
    assert found["versions"]["torch"] and found["devices"]["cpu"] and found["disk_free_gib"] > 0
    assert "no problems found" in call("doctor", "--results-dir", tmp_path).stdout


def test_a_misspelt_command_is_met_with_a_suggestion():
    result = call("rum")
    assert result.exit_code == 2 and "run" in result.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.fault("I6", "stdout closed by its reader")
def test_a_closed_pipe_is_no_error():
    import subprocess
    import sys

    process = subprocess.run(
        f"{sys.executable} -m kdbench.cli objectives list | head -1", shell=True, capture_output=True, text=True
    )
    assert process.returncode == 0 and "Traceback" not in process.stderr


def test_the_version_is_printed():
    assert "0.1.0" in kdbench("--version").stdout
