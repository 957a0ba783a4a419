"""Token scores are what the models' own logits say, and the file that keeps them is small and always the same.

python -m pytest -n 0 tests/evaluate/test_token_scores.py
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.distill.data import Blocks
from kdbench.evaluate import intrinsic, token_scores
from tests.distill.conftest import LENGTH, VOCABULARY, tiny


@pytest.fixture(scope="module")
def models():
    """A student and a teacher whose distributions are far from flat and from each other."""
    made = [tiny(seed, width, init_std=0.4).eval() for seed, width in ((0, 16), (1, 24))]
    return made[0], made[1]


@pytest.fixture(scope="module")
def blocks() -> Blocks:
    """Twenty-four rows; some end in padding, one has no valid token."""
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(2, VOCABULARY, (24, LENGTH), generator=drawn, dtype=torch.int32)
    mask = torch.ones(24, LENGTH, dtype=torch.bool)
    mask[::3, 8:], mask[5], mask[:, 0] = False, False, False
    return Blocks(ids, mask)


@pytest.fixture(scope="module")
def found(models, blocks):
    return intrinsic.examine(*models, blocks, 20 * LENGTH, VOCABULARY, "float32")


def slowly(model, blocks: Blocks, row: int, position: int) -> np.ndarray:
    """One token's distribution in float64, from the model's own logits of its row."""
    with torch.no_grad():
        logits = model(input_ids=blocks.ids[row : row + 1].long()).logits[0, position - 1].double()
    return logits.softmax(-1).numpy()


def test_every_score_is_what_the_models_own_logits_say(found, models, blocks):
    tokens = found.tokens
    for i in range(0, len(tokens["row"]), 7):
        row, position, target = (int(tokens[name][i]) for name in token_scores.PLACE)
        q, p = (slowly(model, blocks, row, position) for model in models)
        top = [set(np.argsort(-one)[:10]) for one in (q, p)]
        expected = {
            "log_prob": np.log(q[target]),
            "entropy": -(q * np.log(q)).sum(),
            "top1_prob": q.max(),
            "top1_correct": q.argmax() == target,
            "teacher_log_prob": np.log(p[target]),
            "teacher_entropy": -(p * np.log(p)).sum(),
            "kl_to_teacher": (p * np.log(p / q)).sum(),
            "top1_agreement": q.argmax() == p.argmax(),
            "top10_overlap": len(top[0] & top[1]) / 10,
        }
        assert set(expected) | set(token_scores.PLACE) == set(tokens)
        for name, value in expected.items():
            assert tokens[name][i] == pytest.approx(value, abs=2e-5), name


def test_there_is_a_row_for_each_valid_token_of_the_first_blocks_and_for_no_other(found, blocks):
    places = list(zip(found.tokens["row"].tolist(), found.tokens["position"].tolist(), strict=True))
    assert places == [tuple(place) for place in blocks.mask[:20].nonzero().tolist()]
    assert found.tokens["target"].tolist() == [int(blocks.ids[place]) for place in places]


def test_the_metrics_are_the_means_of_what_is_kept_a_token(found):
    tokens, metrics = found.tokens, found.metrics
    for metric, column in (("entropy", "entropy"), ("kl_to_teacher", "kl_to_teacher")):
        assert metrics[metric] == pytest.approx(tokens[column].mean(dtype=float), rel=1e-6)
    assert metrics["nats_per_token"] == pytest.approx(-tokens["log_prob"].mean(dtype=float), rel=1e-6)
    assert metrics["top1_agreement"] == tokens["top1_agreement"].mean()
    assert metrics["reverse_kl_to_teacher"] > 0 and 0 < metrics["calibration_error"] < 1


def test_measure_gives_the_metrics_alone(found, models, blocks):
    assert intrinsic.measure(*models, blocks, 20 * LENGTH, VOCABULARY, "float32") == found.metrics


def test_without_a_teacher_nothing_is_said_of_one(models, blocks, found):
    alone = intrinsic.examine(models[0], None, blocks, 20 * LENGTH, VOCABULARY, "float32")
    assert not [name for name in (*alone.tokens, *alone.metrics) if "teacher" in name or "top10" in name]
    assert np.array_equal(alone.tokens["log_prob"], found.tokens["log_prob"])


def test_a_model_measured_against_itself_agrees_everywhere(models, blocks):
    own = intrinsic.examine(models[0], models[0], blocks, 20 * LENGTH, VOCABULARY, "float32").tokens
    assert own["top1_agreement"].all() and (own["top10_overlap"] == 1).all()
    assert np.abs(own["kl_to_teacher"]).max() < 1e-6


# --- calibration ------------------------------------------------------------------------------------------------------


def test_a_model_that_is_right_less_often_than_it_believes_is_off_by_the_gap():
    assert token_scores.calibration_error(np.full(1500, 0.9), np.arange(1500) % 10 < 6) == pytest.approx(0.3)


def test_a_calibrated_model_is_off_by_chance_alone():
    drawn = np.random.default_rng(0)
    confidence = drawn.uniform(0, 1, 150_000)
    assert token_scores.calibration_error(confidence, drawn.uniform(size=150_000) < confidence) < 0.01


def test_bins_hold_equally_many_tokens_and_gaps_of_one_do_not_cancel_those_of_another():
    confidence = np.repeat([0.2, 0.8], 15)
    correct = np.concatenate([np.ones(15), np.zeros(15)])  # right where unsure, wrong where sure
    assert token_scores.calibration_error(confidence, correct, bins=2) == pytest.approx(0.8)
    assert token_scores.calibration_error(confidence, correct, bins=1) == pytest.approx(0.0)


def test_calibration_agrees_with_bins_made_by_pandas():
    import pandas

    drawn = np.random.default_rng(1)
    frame = pandas.DataFrame({"sure": drawn.uniform(size=3000), "right": drawn.uniform(size=3000) < 0.3})
    bins = frame.groupby(pandas.qcut(frame.sure, 15))
    slow = ((bins.sure.mean() - bins.right.mean()).abs() * bins.size() / 3000).sum()
    assert token_scores.calibration_error(frame.sure.to_numpy(), frame.right.to_numpy()) == pytest.approx(slow)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_gives_back_what_was_written_in_narrow_types(found, tmp_path):
    (tmp_path / token_scores.FILE).write_bytes(token_scores.to_parquet(found.tokens))
    frame = token_scores.read(tmp_path)
    assert frame is not None and set(map(str, frame.dtypes)) == {"int32", "float32", "bool"}
    for name, values in found.tokens.items():
        assert np.array_equal(frame[name].to_numpy(), values)


def test_the_file_is_the_same_bytes_each_time_and_small(found):
    drawn = np.random.default_rng(0)
    many = {name: np.resize(values, 4096) for name, values in found.tokens.items()}
    for name in ("log_prob", "entropy", "top1_prob", "teacher_log_prob", "teacher_entropy", "kl_to_teacher"):
        many[name] = drawn.uniform(0, 10, 4096).astype(np.float32)  # as hard to compress as real ones
    written = token_scores.to_parquet(many)
    assert written == token_scores.to_parquet({name: values.copy() for name, values in many.items()})
    assert len(written) < 130_000


def test_a_cell_from_before_token_scores_has_none(tmp_path):
    assert token_scores.read(tmp_path) is None
