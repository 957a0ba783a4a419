"""`claims:` of a suite: what may be said, what is refused, and the claims of the ATKD paper.

python -m pytest tests/suite/test_claims.py
"""

from __future__ import annotations

import pytest
import yaml

from kdbench.errors import ConfigError
from kdbench.suite.claims import Claim, problems
from kdbench.suite.loader import override, parse, validate
from kdbench.suite.schema import Suite
from tests.conftest import SUITE

ATKD = """
- source: Zhong et al., ACL 2024, abstract
  sentence: ATKD improves every baseline by up to +3.04 points on average over 8 tasks, for all model types
  contrasts: [[atkd, kl], [reverse_kl+atkd, reverse_kl], [jsd+atkd, jsd]]
  kind: up_to
  points: 3.04
  mechanism: &sure
    says: larger teachers are surer (UNC near 0), so plain KL mutes its diversity part
    needs: {uncertainty_below: 0.5}
  deviations: &protocol
    - other students and teachers (the paper, OPT-125M from up to 6.7B, Pythia-410M and LLaMA-68M)
    - other tasks (the paper, 5 judged by gpt-3.5-turbo and MMLU, BBH, DROP by exact match)
    - ATKD ranks tokens over the global batch (the released code, over one sequence at its default; see atkd@release)
- source: an article on Zhong et al., ACL 2024 (secondary source; not checked against the paper's tables)
  sentence: ATKD improves reverse KD by +1.80 points
  contrast: [reverse_kl+atkd, reverse_kl]
  points: 1.80
  mechanism: *sure
  deviations: *protocol
- source: an article on Zhong et al., ACL 2024 (secondary source; not checked against the paper's tables)
  sentence: ATKD improves ImitKD by +1.36 points
  contrast: [imitkd+atkd, imitkd]
  points: 1.36
  mechanism: *sure
  deviations: *protocol
- source: an article on Zhong et al., ACL 2024 (garbled there; read as OPT-125M under plain KD, from 1.3B to 6.7B)
  sentence: A larger teacher makes a worse student, 40.00 with the 1.3B teacher and 38.73 with the 6.7B teacher
  arm: kl
  kind: monotone_drop
  points: 1.27
  mechanism: *sure
  deviations: *protocol
- source: Zhong et al., ACL 2024 (wording not checked; no size is given)
  sentence: ATKD alleviates the drop that larger teachers cause
  contrast: [atkd, kl]
  kind: repaired_drop
  points: null
  mechanism: *sure
  deviations: *protocol
"""
MEAN = {"source": "here", "sentence": "a beats b", "contrast": ["a", "b"]}


def test_a_claim_is_about_the_mean_in_points_of_accuracy_unless_it_says_otherwise():
    claim = Claim(**MEAN)
    assert (claim.kind, claim.metric, claim.points, claim.tasks) == ("mean", "acc", None, ())
    assert claim.pairs == (("a", "b"),) and claim.arms == ("a", "b")


def test_the_claims_of_the_atkd_paper_fit_a_suite_that_has_their_arms():
    claims = [Claim.model_validate(one) for one in yaml.safe_load(ATKD)]
    arms = ["kl", "atkd", "reverse_kl", "reverse_kl+atkd", "jsd", "jsd+atkd", "imitkd", "imitkd+atkd"]
    assert not problems(claims, arms, ["s"], ["small", "large"], ["swap"])
    assert [claim.kind for claim in claims] == ["up_to", "mean", "mean", "monotone_drop", "repaired_drop"]
    assert "claims[2]: unknown arm 'imitkd'" in "\n".join(problems(claims, arms[:6], ["s"], ["x", "y"], ["swap"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contrast": None}, "either `contrast: [objective, baseline]` or `contrasts`, found neither"),
        ({"contrasts": [["a", "c"]]}, "found `contrast` and `contrasts`"),
        ({"contrast": ["a", "a"]}, "found 'a' twice"),
        ({"kind": "monotone_drop"}, "expected `arm`, found `contrast`"),
        ({"each": "contrast"}, "goes with `up_to`, found kind: mean"),
        ({"arm": "a"}, "found `contrast` and `arm`"),
        ({"points": -3}, "greater than 0"),
        ({"tasks": ["perplexity"]}, "have no acc"),
        ({"tasks": ["swap"], "metric": "word_log_likelihood"}, "have no word_log_likelihood"),
        ({"needs": {}}, "Extra inputs"),
        ({"mechanism": {"says": "x", "needs": {"uncertainty_below": 2}}}, "less than or equal to 1"),
    ],
)
def test_a_claim_that_cannot_be_tested_is_refused(change, message):
    with pytest.raises(ValueError) as error:
        Claim(**MEAN | change)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contrast": ["a", "bb"]}, "unknown arm 'bb'. Did you mean 'b'?"),
        ({"contrast": ["a", "ceiling"]}, "unknown arm 'ceiling'"),
        ({"scope": {"student": ["t"]}}, "unknown student 't'"),
        ({"scope": {"teacher": ["large"]}, "kind": "repaired_drop"}, "needs at least two teachers"),
        ({"tasks": ["replace"]}, "['replace'] are not examined"),
        ({"metric": "word_log_likelihood"}, "['perplexity'] are not examined"),
    ],
)
def test_a_claim_must_fit_the_rest_of_the_suite(change, message):
    found = problems([Claim(**MEAN | change)], ["a", "b"], ["s"], ["small", "large"], ["swap"])
    assert len(found) == 1 and message in found[0] and found[0].startswith("claims[0]: ")


def test_the_untouched_student_may_be_a_baseline():
    assert not problems([Claim(**MEAN | {"contrast": ["a", "floor"]})], ["a"], ["s"], [], ["swap"])


def test_a_suite_checks_its_claims(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(SUITE.format(corpus="texts"))
    parsed = parse(path)
    labels = validate(Suite, parsed).labels
    told = "claims=[{{source: here, sentence: better, contrast: [{}, floor], points: 1}}]"
    assert validate(Suite, override(parsed, (told.format(labels[0]),))).claims[0].points == 1
    with pytest.raises(ConfigError, match=r"claims\[0\]: unknown arm 'nothing'"):
        validate(Suite, override(parsed, (told.format("nothing"),)))
