"""Plugins are found in three places, and a bad one is named with its file.

python -m pytest tests/test_registry.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kdbench import registry
from tests.conftest import call, kdbench

PLUGIN = '''\
"""Half of each direction."""

from kdbench.api import Field, Objective, Source
from kdbench.divergences import kl


class Half(Objective):
    """A mixture of both directions of the KL divergence."""

    name = "half"
    source = Source(title="a test", year=2026)
    share: float = Field(0.5, ge=0, le=1)

    def terms(self, student, teacher, tokens):
        forward, reverse = kl(teacher.log_probs, student.log_probs), kl(student.log_probs, teacher.log_probs)
        return {"half": self.share * forward + (1 - self.share) * reverse}
'''


@pytest.fixture(autouse=True)
def fresh_registry(monkeypatch):
    """Each test names its own folders."""
    monkeypatch.setattr(registry, "_folders", [])
    registry._scan.cache_clear()
    yield
    registry._scan.cache_clear()


def test_a_file_of_the_user_s_is_found_and_shown(tmp_path):
    (tmp_path / "half.py").write_text(PLUGIN)
    found = json.loads(call("objectives", "list", "--objectives-dir", tmp_path, "--json").stdout)
    assert {"sft", "kl", "reverse_kl", "atkd", "half"} <= {row["name"] for row in found}
    shown = call("objectives", "show", "half", "--objectives-dir", tmp_path).stdout
    assert "share" in shown and "a test" in shown


def test_an_installed_entry_point_is_found(tmp_path):
    package = tmp_path / "site"
    (package / "someplugin-1.0.dist-info").mkdir(parents=True)
    (package / "someplugin.py").write_text(PLUGIN)
    (package / "someplugin-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: someplugin\nVersion: 1.0\n"
    )
    (package / "someplugin-1.0.dist-info" / "entry_points.txt").write_text("[kdbench.objectives]\nhalf = someplugin\n")
    found = json.loads(kdbench("objectives", "list", "--json", PYTHONPATH=str(package)).stdout)
    assert "half" in {row["name"] for row in found}


def with_method(*lines):
    """Return a plugin with one method more, at its line 18."""
    return PLUGIN + "\n" + "".join(f"    {line}\n" for line in lines)


def of_divergence(signature):
    return PLUGIN.replace("Objective", "Divergence").replace("terms(self, student, teacher, tokens)", signature)


TERMS = "terms(self, student, teacher, tokens)"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("import nothing_of_that_name", 1, "No module named 'nothing_of_that_name'"),
        ("\nx = 1\ndef broken(:", 3, "invalid syntax"),
        ("x = 1\n  y = 2\n", 2, "unexpected indent"),
        ("import json\n\n\nfound = json.loads('{')\n", 4, "JSONDecodeError"),
        ("import ast\n\nast.parse('x = (')\n", 3, "never closed"),
        (PLUGIN.replace("share: float", "share: 'Nowhere'"), 7, "a field's type is not defined: 'Nowhere'"),
        (PLUGIN.replace("share: float", "share"), 7, "Field 'share' requires a type annotation"),
        (PLUGIN.replace('    source = Source(title="a test", year=2026)\n', ""), 7, "source"),
        (PLUGIN.replace("def terms", "def term"), 7, f"expected a method {TERMS}, found none"),
        (PLUGIN.replace('"half"\n', '"ha lf"\n'), 7, "letters"),
        (PLUGIN.replace('Source(title="a test", year=2026)', "3"), 7, "`source`: "),
        (PLUGIN.replace(TERMS, "terms(self, student)"), 14, f"expected a method {TERMS}, found terms(self, student): "),
        (PLUGIN.replace(TERMS, "terms(student, teacher, tokens)"), 14, f"expected a method {TERMS}, found terms("),
        (PLUGIN.replace(TERMS, "terms(self, student, teacher, tokens, more)"), 14, "missing a required argument: 'mo"),
        (of_divergence("compare(self, student, teacher)"), 14, "found compare(self, student, teacher): too many"),
        (with_method("def weights(self):", "    return {}"), 18, "expected a method weights(self, tokens), found"),
        (with_method("def at(self, step, state):", "    return self"), 18, "expected a method at(self, step), found"),
        (
            with_method("def observe(self, step):", "    return {}"),
            18,
            "expected a method observe(self, step, measured)",
        ),
        (with_method("@staticmethod", "def derive():", "    return {}"), 18, "expected a method derive(self, tokens)"),
        (with_method("derive = property(print)"), 7, "expected a method derive(self, tokens), found <property"),
    ],
)
@pytest.mark.fault("H4", "plugins that raise, hold nothing, or whose methods take other arguments: their file and line")
def test_a_bad_plugin_is_one_error_that_names_its_line(tmp_path, text, line, message):
    (tmp_path / "bad.py").write_text(text)
    result = call("objectives", "list", "--objectives-dir", tmp_path)
    assert result.exit_code == 2 and "Traceback" not in result.stderr
    assert message in result.stderr and re.search(rf"bad\.py:{line}\b", result.stderr), result.stderr


@pytest.mark.fault("H4", "a class that no line of its file defines: the file")
def test_a_bad_class_that_no_line_defines_is_named_with_its_file(tmp_path):
    (tmp_path / "bad.py").write_text(
        "from kdbench.api import Objective\n\n"
        "Made = type(Objective)('Made', (Objective,), {'name': 'made', '__module__': __name__})\n"
    )
    result = call("objectives", "list", "--objectives-dir", tmp_path)
    assert result.exit_code == 2 and "bad.py: objective class Made: expected a class attribute" in result.stderr


@pytest.mark.parametrize(
    "method",
    [
        ("def weights(self, tokens, more=1):", "    return {}"),
        ("@staticmethod", "def derive(tokens):", "    return {}"),
        ("@classmethod", "def derive(cls, tokens):", "    return {}"),
        ("def at(self, *given, **named):", "    return self"),
        ("derive = lambda self, tokens: {}",),
    ],
)
def test_a_method_may_take_more_than_the_contract_asks(tmp_path, method):
    (tmp_path / "half.py").write_text(with_method(*method))
    assert call("objectives", "show", "half", "--objectives-dir", tmp_path).exit_code == 0


@pytest.mark.fault("H4", "plugins that clash: both files")
def test_two_plugins_of_one_name_are_an_error_that_names_both_files(tmp_path):
    (tmp_path / "bad.py").write_text(PLUGIN.replace('"half"\n', '"kl"\n'))
    result = call("objectives", "list", "--objectives-dir", tmp_path)
    assert result.exit_code == 2 and re.search(r"defined twice: in \S+/kl\.py and in \S+/bad\.py", result.stderr)


@pytest.mark.fault("H4", "a plugin that does not load beside one that does: said, and the other is used")
def test_a_bad_plugin_is_said_and_the_others_are_used(tmp_path):
    (tmp_path / "half.py").write_text(PLUGIN)
    (tmp_path / "bad.py").write_text("\nimport nothing_of_that_name\n")
    listed = call("objectives", "list", "--objectives-dir", tmp_path, "--json")
    assert listed.exit_code == 0 and "half" in {row["name"] for row in json.loads(listed.stdout)}
    assert listed.stderr.startswith("left out: objective plugin") and "bad.py:2" in listed.stderr
    assert call("check", tmp_path / "half.py", "--objectives-dir", tmp_path).exit_code == 0
    asked = call("objectives", "show", "bad", "--objectives-dir", tmp_path)
    assert asked.exit_code == 2 and re.search(r"left out: .*bad.py:2\)\nerror: unknown objective 'bad'", asked.stderr)


@pytest.mark.fault("H4", "an installed plugin that does not load")
def test_a_bad_entry_point_is_said_and_the_others_are_used(tmp_path):
    home = tmp_path / "bad-1.0.dist-info"
    home.mkdir()
    (home / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    (home / "entry_points.txt").write_text("[kdbench.objectives]\nbad = nothing_of_that_name:Bad\n")
    listed = kdbench("objectives", "list", "--json", PYTHONPATH=str(tmp_path))
    assert "kl" in {row["name"] for row in json.loads(listed.stdout)}
    assert "left out: objective plugin nothing_of_that_name:Bad cannot be loaded: ModuleNotFound" in listed.stderr


def test_an_objective_with_two_names_in_its_file_is_one(tmp_path):
    (tmp_path / "half.py").write_text(PLUGIN + "\n\nOther = Half\n")
    assert call("objectives", "show", "half", "--objectives-dir", tmp_path).exit_code == 0


def test_an_empty_folder_of_objectives_is_an_error(tmp_path):
    result = call("objectives", "list", "--objectives-dir", tmp_path)
    assert result.exit_code == 2 and "--objectives-dir" in result.stderr


def test_show_prints_formula_fields_source_and_file():
    text = call("objectives", "show", "reverse_kl+atkd").stdout
    for part in ("reverse_kl+atkd", "L = λ", "hard_fraction", "Revisiting Knowledge Distillation", "atkd.py", "NaN"):
        assert part in text


def test_an_unknown_objective_is_met_with_a_suggestion():
    result = call("objectives", "show", "revers_kl")
    assert result.exit_code == 2 and "Did you mean 'reverse_kl'" in result.stderr


def test_the_plugin_of_the_readme_works_as_printed(tmp_path):
    import torch

    import kdbench as public

    text = (Path(__file__).parent.parent / "README.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class Half" in block)
    (tmp_path / "half.py").write_text(code)
    registry.use_folder(tmp_path)
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    parts = public.loss("half", logits, logits.flip(-1), torch.zeros(2, 5, dtype=torch.long))
    assert parts.total > 0 and parts.tokens == 10
    assert public.loss("half", logits, logits, torch.zeros(2, 5, dtype=torch.long)).total.abs() < 1e-6


def test_the_registry_is_listed_with_meaning_text_and_year():
    listed = call("objectives").stdout
    assert listed == call("objectives", "list").stdout
    for name in ("sft", "seqkd", "kl", "f_distill", "minillm", "opd", "atkd", "sekd", "adakd"):
        assert re.search(rf"^{name} .*(19|20)\d\d", listed, re.MULTILINE), name
    assert re.search(r"^gkd .*corpus or student text +2024", listed, re.MULTILINE)


def test_an_objective_is_shown_with_formula_fields_text_and_differences():
    shown = call("objectives", "show", "gkd").stdout
    for part in ("L = ", "beta = 0.5", "arxiv.org/abs/2306.13649", "corpus or student text", "TRL draws λ"):
        assert part in shown
    assert "atkd@release" in call("objectives", "show", "atkd").stdout


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sinkd", "is not built: its optimal transport couples all tokens"),
        ("atkd@relase", "no variant 'relase'; it has: release, sekd"),
        ("kl@x", "no variant 'x'; it has: none"),
        ("sft+adakd", "must compare with the teacher"),
        ("todi+atkd", "can only take its text"),
    ],
)
def test_what_cannot_be_had_is_said_with_its_reason(spec, message):
    found = call("objectives", "show", spec)
    assert found.exit_code == 2 and message in found.stderr


def test_a_variant_is_a_name_for_settings_that_may_be_overridden():
    made = registry.objective({"name": "atkd@release", "lam": 0.5})
    assert (made.scope, made.grouping, made.lam) == ("sequence", "per_sequence", 0.5)
    assert registry.objective("dkd@images").label == "dkd@images"


def test_check_passes_the_readmes_plugin_and_names_the_mistake_of_a_broken_one(tmp_path):
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    plugin = tmp_path / "half.py"
    plugin.write_text(re.search(r"```python\n(from kdbench.api.*?)```", readme, re.DOTALL).group(1))
    good = call("check", plugin)
    assert good.exit_code == 0 and "BROKEN" not in good.stdout and "never negative" in good.stdout
    plugin = tmp_path / "wrong.py"
    plugin.write_text(PLUGIN.replace("self.share * forward +", "self.share * forward -").replace('"half"', '"wrong"'))
    bad = call("check", plugin)
    assert bad.exit_code == 3 and "BROKEN  never negative" in bad.stdout and "broken" in bad.stderr
    assert call("check", tmp_path / "none.py").exit_code == 2


def test_explain_prints_a_specification_that_can_be_pasted(tmp_path):
    found = call("objectives", "explain", "kdflow:jsd", "jsd_beta=0.1").stdout
    assert "{name: jsd, beta: 0.9}" in found
    assert json.loads(call("objectives", "explain", "trl:gkd", "--json").stdout)["spec"]["beta"] == 0.5
    assert "trl:gkd" in call("objectives", "explain").stdout
    wrong = call("objectives", "explain", "trl:gdk")
    assert wrong.exit_code == 2 and "Did you mean 'trl:gkd'" in wrong.stderr
