"""What was used can be cited: one BibTeX entry a publication, and kdbench.

python -m pytest tests/analysis/test_cite.py
"""

from __future__ import annotations

import re

import pytest

from kdbench import registry
from kdbench.analysis import cite
from tests.conftest import call


def keys(entries):
    return [re.match(r"@\w+\{([^,]+),", entry).group(1) for entry in entries]


def test_a_wrapped_objective_cites_what_it_wraps_first_and_itself(tmp_path):
    found = keys(cite.entries(["reverse_kl+atkd", "atkd"]))
    assert found[-1] == "kdbench" and len(found) == len(set(found))
    assert found.index("gu2024minillm") < found.index("zhong2024revisiting")


@pytest.mark.parametrize("name", sorted(registry.objectives()))
def test_every_objective_has_an_entry_with_a_title_and_balanced_braces(name):
    entry = cite.entries([name])[-2]
    assert "title = " in entry and entry.count("{") == entry.count("}")


def test_an_entry_has_a_line_a_field_and_commas_in_braces_part_nothing():
    text = cite.pretty('@misc{a, title={One, two}, author = "B, C", year=2024}')
    assert text == '@misc{a,\n  title = {One, two},\n  author = "B, C",\n  year = 2024\n}'


def test_the_command_takes_objectives_and_suite_files(suite_file, tmp_path):
    by_name = call("cite", "atkd", "--results-dir", tmp_path)
    by_file = call("cite", suite_file, "--results-dir", tmp_path)
    assert by_name.exit_code == by_file.exit_code == 0, by_file.stderr
    assert "zhong2024revisiting" in by_name.stdout and "zhong2024revisiting" in by_file.stdout
    assert by_file.stdout.rstrip().endswith("}") and by_file.stdout.count("@software{kdbench") == 1


def test_an_unknown_name_is_met_with_what_is_expected(tmp_path):
    (tmp_path / "suites").mkdir()
    result = call("cite", "nosuch", "--results-dir", tmp_path)
    assert result.exit_code == 2 and "nosuch" in result.stderr and "Traceback" not in result.stderr


def test_a_suite_whose_plugin_is_gone_can_still_be_cited():
    suite = {"objectives": [{"label": "mine", "spec": {"name": "mine"}}, {"label": "kl", "spec": {"name": "kl"}}]}
    found = cite.of_suite(suite)
    assert "mine" in found[0] and keys(found[1:])[-1] == "kdbench"
