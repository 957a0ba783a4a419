"""`kdbench diff` says of two checkpoints what differs in them, and refuses what cannot be compared.

python -m pytest -n 0 tests/analysis/test_difference.py
"""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from scipy import stats as scipy_stats
from tokenizers import Tokenizer, models, pre_tokenizers

from kdbench.analysis import token_pair
from kdbench.analysis.difference import ALL, difference
from kdbench.analysis.examined import find
from kdbench.errors import ConfigError, StoreError
from kdbench.files import atomic_write
from tests.analysis.small_store import TASKS, TEXT, SmallStore
from tests.conftest import call

TAUGHT = np.log(np.random.default_rng(0).permutation(np.linspace(0.01, 0.99, 60)))
RIGHT_A = {"swap": [1, 1, 1, 0, 1, 0], "agreement": [1, 0, 1], "perplexity": [3.0, 4.0]}
RIGHT_B = {"swap": [1, 0, 0, 1, 0, 0], "agreement": [1, 0, 0], "perplexity": [3.5, 4.0]}
WORDS = ["</s>", "<pad>", "peace", "law", "trade", "old", "new", "land", "year"]


@pytest.fixture
def made(tmp_path) -> SmallStore:
    """`kl` and `sft` of one seed, their items and tokens; `kl` is worse by 2 nats on one token, else better by .1."""
    made = SmallStore(tmp_path / "results")
    base = np.random.default_rng(1).uniform(-6, -4, 60)
    ahead = np.full(60, 0.1)
    ahead[17] = -2.0
    made.cell("kl", "small", "big", 0, base + ahead, TAUGHT, RIGHT_A)
    made.cell("sft", "small", None, 0, base, None, RIGHT_B)
    pair = {"context": "", "choices": ["old law stands", "law old stands"], "label": 0}
    made.texts({"swap": [pair] * 6, "agreement": [pair | {"label": 1}] * 3})
    return made


def text(made: SmallStore) -> None:
    """Put the held-out text and its tokenizer into the store."""
    from safetensors.numpy import save

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["</s>", "<pad>"])
    words, held_out = made.store.entry("tokenizers", "70ce"), made.store.entry("texts", TEXT)
    words.begin({})
    atomic_write(words.path / "tokenizer" / "tokenizer.json", tokenizer.to_str())
    ids = np.zeros((6, 11), dtype=np.int32)
    ids[:, 1:] = made.place["target"].reshape(6, 10)
    held_out.begin({"tokenizer": "70ce"})
    atomic_write(held_out.path / "test.safetensors", save({"ids": ids}))
    for entry in (words, held_out):
        entry.commit("ok", {"wall_s": 1.0})


def diff(made: SmallStore, first="kl/small/big/0", second="sft/small/0", **options):
    return difference(made.store, first, second, **options)


# --- scores and items -------------------------------------------------------------------------------------------------


def test_wins_and_losses_are_counted_and_tested_by_exact_mcnemar(made):
    scores = diff(made).scores.set_index("task")
    assert tuple(scores.loc["swap", ["a_only", "b_only", "n_items"]]) == (3, 1, 6)
    assert scores.loc["swap", "p"] == pytest.approx(scipy_stats.binomtest(1, 4).pvalue)
    assert tuple(scores.loc[ALL, ["a_only", "b_only", "n_items"]]) == (4, 1, 9)
    assert scores.loc[ALL, "p"] == pytest.approx(scipy_stats.binomtest(1, 5).pvalue)


def test_of_a_graded_task_less_is_better(made):
    row = diff(made).scores.set_index("task").loc["perplexity"]
    assert (row.a_only, row.b_only, row.method) == (1, 0, "paired permutation over items")


def test_items_that_one_gets_and_the_other_misses_stand_with_what_is_right(made):
    found = diff(made, items=2)
    assert [(row["by"], row["task"], row["item"]) for row in found.items] == [
        ("a", "swap", 1), ("a", "agreement", 2), ("b", "swap", 3),
    ]  # fmt: skip
    assert (found.items[0]["right"], found.items[1]["right"]) == ("old law stands", "law old stands")


def test_one_task_can_be_asked_for_and_a_wrong_one_is_one_clear_error(made):
    assert list(diff(made, task="swap").scores.task) == ["swap"]
    with pytest.raises(ConfigError, match=r"--task swp: expected a task of these cells\. Did you mean 'swap'"):
        diff(made, task="swp")


def test_different_items_are_not_paired_and_the_rest_is_shown(made):
    other = SmallStore(made.store.root, name="other")
    other.cell("kl", "small", "big", 5, TAUGHT, TAUGHT, {"replace": [1, 0]}, tasks="07e7")
    found = diff(made, "kl/small/big/5", "sft/small/0")
    assert set(found.scores.n_items) == {0} and found.scores.p.isna().all() and found.tokens is not None
    assert any("no item is shared" in note for note in found.notes)
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["scores"][0]["p"] is None


# --- what was asked ---------------------------------------------------------------------------------------------------


def test_what_differs_in_the_inputs_is_shown_with_both_values(made):
    made.cell("kl", "small", "big", 1, objective={"name": "kl", "tau": 2.0})
    rows = {row["input"]: (row["a"], row["b"]) for row in diff(made, "kl/small/big/0", "kl/small/big/1").inputs}
    assert rows == {"objective.tau": ("1.0", "2.0"), "seed": ("0", "1")}


def test_of_two_objectives_the_names_are_shown_and_not_every_setting(made):
    rows = {row["input"]: (row["a"], row["b"]) for row in diff(made).inputs}
    assert rows["objective"] == ("kl", "sft") and not [name for name in rows if name.startswith("objective.")]


@pytest.mark.parametrize(
    ("second", "names"),
    [
        ("sft/small/0", ("kl", "sft")),
        ("kl/small/big/1", ("seed 0", "seed 1")),
        ("atkd/small/big/1", ("kl seed 0", "atkd seed 1")),
        ("floor/small", ("kl", "floor")),
        ("reverse_kl+atkd/small/big/1", ("A", "B")),
    ],
)
def test_cells_are_called_by_what_differs(made, second, names):
    for arm, teacher, seed in (
        ("kl", "big", 1),
        ("atkd", "big", 1),
        ("floor", None, None),
        ("reverse_kl+atkd", "big", 1),
    ):
        made.cell(arm, "small", teacher, seed)
    assert diff(made, second=second).names == names


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_the_token_table_says_what_each_has_on_easy_and_on_hard_tokens(made):
    found = diff(made).tokens
    table = found.table.set_index("measure")
    assert table.loc["nats a token", "delta"] == pytest.approx(-(59 * 0.1 - 2) / 60, abs=1e-6)
    assert table.loc["nats a token", "teacher"] == pytest.approx(-TAUGHT.mean(), abs=1e-6)
    easy = np.argsort(-TAUGHT)[:20]
    assert table.loc["log p, easy third", "teacher"] == pytest.approx(TAUGHT[easy].mean(), abs=1e-6)
    assert [row["n_tokens"] for row in found.thirds] == [20, 20, 20]
    assert found.shares == pytest.approx({"sure": 0.5, "lost": float((np.exp(TAUGHT) <= 0.1).mean())})
    assert any("sft has no teacher" in note for note in found.notes)


def test_the_interval_counts_blocks_and_not_tokens():
    blocks = np.repeat(np.arange(8), 50)
    shared = np.repeat(np.random.default_rng(0).normal(size=8), 50)  # the tokens of a block say the same
    mean, low, high = token_pair.clustered_mean(shared, blocks, 0.95)
    expected = scipy_stats.ttest_1samp(shared[::50], 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((shared.mean(), expected.low, expected.high))


def test_the_interval_is_the_cluster_robust_one_of_statsmodels():
    import statsmodels.api as sm

    drawn = np.random.default_rng(3)
    blocks = np.sort(drawn.integers(0, 9, 200))
    values = drawn.normal(size=200) + blocks / 5
    fit = sm.OLS(values, np.ones(200)).fit(cov_type="cluster", cov_kwds={"groups": blocks, "use_correction": False})
    error = fit.bse[0] * np.sqrt(9 / 8)
    _, low, high = token_pair.clustered_mean(values, blocks, 0.95)
    assert (high - low) / 2 == pytest.approx(error * scipy_stats.t.ppf(0.975, 8))


def test_the_token_on_which_they_differ_most_comes_first_with_the_words_around(made):
    text(made)
    apart = diff(made).apart
    assert (apart[0]["row"], apart[0]["position"]) == (1, 8) and apart[0]["a"] < apart[0]["b"]
    assert apart[0]["token"] == WORDS[17 % 7 + 2] and apart[0]["before"].split()[-1] == WORDS[16 % 7 + 2]
    assert len({row["target"] for row in apart}) == len(apart) == 7


def test_without_the_text_tokens_are_ids_and_this_is_said(made):
    found = diff(made)
    assert found.apart[0]["token"] == f"id {17 % 7 + 2}"
    assert any("tokens are shown as ids" in note for note in found.notes)


@pytest.mark.fault("C5", "a bit of the text, the words or the items that `diff` shows: not shown, and said")
@pytest.mark.fault("C7", "a pipe in the place of the text, the words or the items that `diff` shows: not waited for")
@pytest.mark.parametrize("how", ["bit", "pipe"])
@pytest.mark.parametrize(
    ("file", "told"),
    [
        (f"texts/{TEXT}/test.safetensors", "tokens are shown as ids"),
        (f"texts/{TEXT}/inputs.json", "tokens are shown as ids"),
        ("tokenizers/70ce/tokenizer/tokenizer.json", "tokens are shown as ids"),
        (f"tasks/{TASKS}/swap.jsonl", "the text of the items is not shown"),
    ],
)
def test_words_that_are_not_what_was_written_are_not_shown(made, file, told, how):
    text(made)
    path = made.store.root / file
    content = path.read_bytes()
    path.unlink()
    if how == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    found = diff(made)
    assert any(told in note and file.split("/")[1] in note for note in found.notes), found.notes
    assert (found.items == []) if "items" in told else found.apart[0]["token"].startswith("id ")


def test_items_of_another_s_tasks_have_no_text_to_show_and_nothing_is_said(tmp_path):
    made = SmallStore(tmp_path / "results")
    for arm, teacher, right in (("kl", "big", [1.0, 0.0]), ("sft", None, [0.0, 1.0])):
        made.cell(arm, "small", teacher, 0, items={"hellaswag": right})
    found = diff(made)
    assert found.items == [] and not any("text of the items" in note for note in found.notes)


@pytest.mark.fault("C5", "the inputs of a cell that no suite names any more")
@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"objective": 3, "arm": "kl", "seed": 0}', "{"])
def test_a_cell_that_no_suite_names_is_found_by_its_key_unless_its_inputs_are_damaged(made, content):
    key = made.cell("kl", "small", "big", 1, TAUGHT, TAUGHT, RIGHT_B)
    made.cells.pop()
    made.plan()
    assert find(made.store, key).named["seed"] == 1
    (made.store.entry("cells", key).path / "inputs.json").write_text(content)
    with pytest.raises(StoreError, match=r"is damaged|cannot read"):
        find(made.store, key)


def test_a_cell_from_before_token_scores_is_compared_by_items_alone(made):
    made.cell("kl", "small", "big", 1, items=RIGHT_B)
    found = diff(made, "kl/small/big/0", "kl/small/big/1")
    assert found.tokens is None and len(found.scores) == 4
    assert any("seed 1 was examined before kdbench kept token scores" in note for note in found.notes)


def test_other_text_is_refused_and_the_items_are_shown(made):
    made.cell("kl", "small", "big", 1, TAUGHT, TAUGHT, RIGHT_B, text="07e7")
    found = diff(made, "kl/small/big/0", "kl/small/big/1")
    assert found.tokens is None and any("different held-out text" in note for note in found.notes)


def test_text_that_was_written_in_training_shows_its_length_and_how_often_it_ended(made, tmp_path):
    key = made.cell("gkd", "small", "big", 0, TAUGHT, TAUGHT)
    entry = made.store.entry("cells", key)
    (entry.path / "DONE.json").unlink()
    steps = [{"step": 1, "rollout/length": 40.0, "rollout/eos_rate": 0.0}, {"step": 2, "rollout/length": 31.0}]
    atomic_write(entry.path / "metrics.jsonl", "".join(json.dumps(step) + "\n" for step in steps))
    entry.commit("ok", {"wall_s": 1.0})
    assert diff(made, "gkd/small/big/0", "sft/small/0").written == {"tokens a continuation": (31.0, None)}


# --- finding a cell ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked", ["kl/small/big/0", "objective=kl,seed=0", "objective=kl,teacher=big,suite=made", "00"]
)
def test_a_cell_is_found_by_name_by_choice_and_by_the_beginning_of_its_key(made, asked):
    assert find(made.store, asked).title == "kl · small ← big · seed 0"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("kl/small/big/9", "Did you mean 'kl/small/big/0'"),
        ("seed=0", "found 2. These fit: .*kl/small/big/0; .*sft/small/0"),
        ("objektive=kl", "expected objective=…"),
        ("ffff", "found none. There are"),
        ("../..", "found none"),
        ("", "found none"),
    ],
)
def test_what_is_not_one_cell_is_one_clear_error_that_names_some(made, asked, said):
    with pytest.raises(ConfigError, match=said):
        find(made.store, asked)


def test_a_cell_of_changed_settings_is_found_by_its_key_though_no_suite_names_it(made):
    key = made.cells[0]["key"]
    del made.cells[0]
    made.plan()
    assert find(made.store, key[:6]).suite == ""
    assert diff(made, key).names[1] == "sft"


def test_a_cell_that_diverged_or_was_not_run_is_refused(made):
    made.cell("kl", "small", "big", 1, status="diverged")
    with pytest.raises(ConfigError, match="kl/small/big/1 is diverged"):
        find(made.store, "kl/small/big/1")
    made.cells.append(made.cells[0] | {"seed": 2, "key": "abcdef"})
    made.plan()
    with pytest.raises(ConfigError, match="kl/small/big/2 is not run yet; kdbench run the suite 'made' first"):
        find(made.store, "kl/small/big/2")


def test_damaged_scores_are_refused(made):
    path = made.store.entry("cells", made.cells[0]["key"]).path / "samples.parquet"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StoreError, match="is damaged"):
        diff(made)


def test_a_cell_is_not_compared_with_itself(made):
    with pytest.raises(ConfigError, match="expected two different cells"):
        diff(made, "kl/small/big/0", "objective=kl")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_fits_100_columns_and_ends_with_the_answer(made):
    text(made)
    done = call("diff", "kl/small/big/0", "sft/small/0", "--results-dir", made.store.root)
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 100
    flat = " ".join(done.output.split())
    assert "right: old law stands" in flat and "log p, hard third" in flat
    assert flat.endswith("held-out tokens kl is better by 0.065 nats a token, which other text could turn round.")


def test_the_command_gives_json_and_errors_without_a_traceback(made):
    done = call("diff", "kl/small/big/0", "sft/small/0", "--json", "--results-dir", made.store.root)
    found = json.loads(done.stdout)
    assert found["tokens"]["n_tokens"] == 60 and [cell["arm"] for cell in found["cells"]] == ["kl", "sft"]
    wrong = call("diff", "kl/small/big/0", "nothing", "--results-dir", made.store.root)
    assert wrong.exit_code == 2 and wrong.stderr.startswith("error: cell 'nothing'")
