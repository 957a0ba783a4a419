"""The teacher cache: what each layout gives back, what it loses, who it serves, and how it lies in memory.

python -m pytest tests/distill/test_teacher.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save

from kdbench.distill import accuracy, teacher, train
from kdbench.distill.layouts import DTYPES, Layout
from kdbench.distill.teacher import CachedTeacher, LiveTeacher, read_states, record, uncertainty, write_cache
from kdbench.divergences import kl
from kdbench.errors import ConfigError, StoreError
from kdbench.files import atomic_write
from kdbench.registry import objective
from kdbench.run import quota
from kdbench.run.cell import execute
from kdbench.run.display import _ending
from kdbench.run.jobs import Planner
from kdbench.run.store import Store
from kdbench.run.work import Hooks
from kdbench.suite import cost
from kdbench.suite.loader import override, parse, validate
from kdbench.suite.schema import Suite
from tests.distill.conftest import VOCABULARY, tiny

TOP, DRAWN = Layout("topk", torch.float32, 12), Layout("sampled", torch.float32, 48)


def reader(model, dtype=torch.float32):
    return lambda part: read_states(model, part, VOCABULARY, "float32", dtype)


def cached(model, blocks, folder, layout, on_shard=lambda *_: None):
    write_cache(folder, blocks, reader(model, layout.read_dtype), on_shard, layout)
    return CachedTeacher(folder, LiveTeacher(model, blocks, VOCABULARY, "float32"))


def sharp(seed=1):
    """A teacher of about two nats of entropy, as a trained one has."""
    model = tiny(seed, width=24).eval().requires_grad_(False)
    model.get_output_embeddings().weight.mul_(12)
    return model


def gradient(student, spec, blocks, source):
    """The loss of one batch of all rows and its gradient, with a student of random weights."""
    rows = torch.arange(len(blocks))
    none = torch.zeros(len(rows), dtype=torch.bool)
    batch = train.Batch(blocks.ids.long(), blocks.mask[:, 1:], source.signal(rows), none)
    student.zero_grad()
    sums = train.backward(student, objective(spec), batch, batch.tokens(), 7, VOCABULARY, "float32")
    return sums, torch.cat([p.grad.flatten() for p in student.parameters()])


# --- what comes back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("support", ["topk", "topk_both", "topk+tail"])
@pytest.mark.parametrize("size", [12, 5])
@pytest.mark.parametrize("name", ["kl", "skew_kl"])
def test_a_topk_cache_gives_the_loss_and_gradient_of_the_live_teacher(support, size, name, student, blocks, tmp_path):
    spec = {"name": name, "support": support, "support_size": size, "ce": 0.25}
    model = sharp()
    expected, slope = gradient(student, spec, blocks, LiveTeacher(model, blocks, VOCABULARY, "float32"))
    found, same = gradient(student, spec, blocks, cached(model, blocks, tmp_path, TOP))
    assert found.total == pytest.approx(expected.total, rel=1e-5)
    assert found.watched["retained_mass"] == pytest.approx(expected.watched["retained_mass"], rel=1e-5)
    assert torch.allclose(same, slope, atol=1e-6)


@pytest.mark.parametrize("layout", [TOP, DRAWN], ids=lambda one: one.kind)
def test_statistics_beside_a_sparse_layout_are_those_of_the_whole_distribution(layout, blocks, tmp_path):
    model, rows = sharp(), torch.tensor([7, 0, 5, 23])
    exact = LiveTeacher(model, blocks, VOCABULARY, "float32").signal(rows)
    found = cached(model, blocks, tmp_path, layout).signal(rows)
    assert torch.allclose(found.log_prob_target, exact.log_prob_target, atol=1e-5)
    assert torch.allclose(found.entropy, exact.entropy, atol=1e-5)
    whole = (exact.states.hidden @ exact.states.head.t()).log_softmax(-1)
    stored = (found.states.hidden @ exact.states.head.t()).log_softmax(-1)
    ids = found.states.hidden.ids
    assert torch.allclose(stored.gather(-1, ids), whole.gather(-1, ids), atol=1e-5)


def test_a_sampled_cache_is_right_on_average(student, blocks, tmp_path):
    """About two hundred tokens with 48 draws each: value and gradient of KL to a few per cent."""
    model = sharp()
    spec = {"name": "kl", "support": "sampled", "support_size": 48}
    exact, slope = gradient(student, "kl", blocks, LiveTeacher(model, blocks, VOCABULARY, "float32"))
    found, near = gradient(student, spec, blocks, cached(model, blocks, tmp_path, DRAWN))
    assert found.total == pytest.approx(exact.total, rel=0.03)
    assert torch.nn.functional.cosine_similarity(near, slope, dim=0) > 0.98


def test_fewer_draws_than_are_stored_are_a_fair_choice_of_them(student, blocks, tmp_path):
    """The first eight as they lie on disk would be the smallest ids; eight of them by chance are right on average."""
    source = cached(sharp(), blocks, tmp_path, DRAWN)
    found = [
        gradient(student, {"name": "kl", "support": "sampled", "support_size": size}, blocks, source)[0].total
        for size in (8, 48)
    ]
    assert found[0] == pytest.approx(found[1], rel=0.05)
    rows = torch.tensor([3, 9])
    assert source.signal(rows).drawn.shape == (int(blocks.mask[rows, 1:].sum()), 48)
    assert torch.equal(source.signal(rows).drawn, source.signal(rows).drawn)


@pytest.mark.parametrize("layout", [TOP, DRAWN], ids=lambda one: one.kind)
def test_a_sparse_cache_goes_on_after_its_last_whole_shard_with_the_same_bytes(layout, blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "SHARD_ROWS", 8)
    model = sharp()
    cached(model, blocks, tmp_path / "whole", layout)

    def die(done, count):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(model, blocks, tmp_path / "cut", layout, die)
    cached(model, blocks, tmp_path / "cut", layout)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()


def test_equal_draws_are_stored_once_and_no_layout_takes_more_than_was_planned(blocks, tmp_path):
    model = sharp()
    for layout in (TOP, DRAWN, Layout("topk", torch.float16, 12), Layout("hidden", torch.float16)):
        folder = tmp_path / f"{layout.kind}-{layout.dtype}"
        cached(model, blocks, folder, layout)
        size = sum(path.stat().st_size for path in folder.glob("shard-*"))
        name = str(layout.dtype).removeprefix("torch.")
        planned = cost.caching(1, blocks.ids.numel(), 24, name, layout.kind, layout.k).cache_bytes
        assert size < planned + 1000, layout
        if layout.kind == "sampled":
            assert size < planned / 3


def test_a_student_learns_from_a_topk_cache_as_from_the_live_teacher(blocks, tmp_path):
    spec, model = {"name": "kl", "support": "topk+tail", "support_size": 12}, sharp()
    ends = []
    for name, source in (
        ("live", LiveTeacher(model, blocks, VOCABULARY, "float32")),
        ("topk", cached(model, blocks, tmp_path / "cache", TOP)),
    ):
        pupil = tiny(0)
        plan = train.Plan(steps=6, batch_rows=8, lr=1e-2)
        train.train(
            pupil, objective(spec), blocks, source, plan, seed=5, vocabulary=VOCABULARY, precision="float32",
            folder=tmp_path / name,
        )  # fmt: skip
        ends.append(torch.cat([parameter.detach().flatten() for parameter in pupil.parameters()]))
    assert torch.allclose(*ends, atol=1e-4)


# --- what is lost -----------------------------------------------------------------------------------------------------


def effect(layout, blocks, model):
    def exact(part):
        states = reader(model)(part).states
        return states.hidden, states.head

    return accuracy.measure(layout, blocks, exact)


def test_float32_loses_nothing_and_fewer_digits_lose_more(blocks):
    found = {name: effect(Layout("hidden", dtype), blocks, sharp()) for name, dtype in DTYPES.items()}
    errors = {name: found[name]["forms"]["full"]["gradient_relative_error"] for name in found}
    assert errors["float32"] == 0 and found["float32"]["forms"]["full"]["kl_relative_error"] == 0
    assert found["float32"]["max_log_prob_change"] == 0 and found["float32"]["retained_mass"] == 1
    assert 0 < errors["float16"] < errors["bfloat16"] < 0.1
    assert 0 < found["float16"]["max_log_prob_change"] < found["bfloat16"]["max_log_prob_change"]


def test_the_measured_error_of_topk_is_that_of_the_formula(blocks):
    model = sharp()
    found = effect(TOP, blocks, model)
    rows = torch.linspace(0, len(blocks) - 1, accuracy.ROWS).round().long()
    states = reader(model)(blocks.select(rows)).states
    logits = states.hidden @ states.head.t()
    top = logits.softmax(-1).topk(12).values.sum(-1)
    assert found["tokens"] == len(logits) and found["retained_mass"] == pytest.approx(float(top.mean()), rel=1e-5)
    log_p, log_q = logits.log_softmax(-1), (logits / 2).log_softmax(-1)
    kept, index = log_p.topk(12, -1)
    narrow = kl(kept.log_softmax(-1), log_q.gather(-1, index)).sum()
    exact = kl(log_p, log_q).sum()
    assert found["forms"]["topk"]["kl_relative_error"] == pytest.approx(float((narrow - exact).abs() / exact), rel=1e-3)


@pytest.mark.parametrize("kind", ["topk", "sampled"])
def test_more_classes_lose_less(kind, blocks):
    few, many = (effect(Layout(kind, torch.float32, k), blocks, sharp()) for k in (2, 48))
    assert few["retained_mass"] < many["retained_mass"] <= 1 + 1e-6
    for form in few["forms"]:
        assert few["forms"][form]["gradient_relative_error"] > many["forms"][form]["gradient_relative_error"]


def test_the_effect_stands_in_the_manifest_and_can_be_said_in_a_line(blocks, tmp_path):
    model = sharp()
    cached(model, blocks, tmp_path, TOP)
    found = effect(TOP, blocks, model)
    record(tmp_path, effect=found)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["effect"] == found and manifest["shards"]
    cached(model, blocks, tmp_path, TOP)  # going over it again keeps it
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest
    line = accuracy.in_words(found)
    assert "% of the mass" in line and "topk+tail: KL off by" in line and "stand-in student" in line
    assert "of the mass" not in accuracy.in_words(effect(Layout("hidden", torch.float16), blocks, model))


def test_states_that_overflow_in_half_precision_are_refused_with_the_way_out(blocks):
    model = sharp()
    model.get_output_embeddings().weight.div_(1e4)
    model.model.decoder.final_layer_norm.weight.mul_(1e6)
    with pytest.raises(ConfigError, match=r"do not fit into float16.*bfloat16"):
        effect(Layout("hidden", torch.float16), blocks, model)


@pytest.mark.parametrize("settings", ["{layout: topk, k: 16}", "{layout: sampled, k: 16}", "{dtype: float16}"])
def test_a_run_records_and_says_what_its_caches_lose(settings, suite_file, tmp_path):
    """The jobs that lead to a cache, made in this process."""
    support = settings.split(",")[0].rpartition(" ")[2].strip("}")
    spec = "kl" if "dtype" in settings else f"{{name: kl, support: {support}, support_size: 16}}"
    changes = (f"teacher={settings}", f"objectives=[sft, {spec}]", CONTRASTS, "models.big.pretrain=null")
    store = Store(tmp_path / "r")
    jobs = Planner(suite(suite_file, *changes, "models.big.init.seed=0"), suite_file.parent).all()
    for job in [job for job in jobs if job.kind in ("tokenizers", "texts", "models", "teacher_cache")]:
        done = execute(store, job.message(), Hooks())
        if job.kind == "teacher_cache":
            entry = store.entry(job.kind, job.key)
            manifest = json.loads((entry.path / "manifest.json").read_text())
            assert manifest["effect"] == done["effect"] == entry.verified()["effect"]
            assert ("keeps " in _ending({"event": "finished", "done": done})) == ("layout" in settings)
            assert "KL off by" in _ending({"event": "finished", "done": done})
            assert done["effect"]["tokens"] > 200


# --- in memory --------------------------------------------------------------------------------------------------------


def test_rows_read_ahead_are_those_that_were_asked_for_whatever_was_expected(blocks, tmp_path):
    teacher = cached(sharp(), blocks, tmp_path, Layout())
    for rows, expected in (([3, 1], [3, 1]), ([0, 7], [4, 2]), ([5, 9], None)):
        plain = CachedTeacher(tmp_path, teacher.live).signal(torch.tensor(rows))
        if expected:
            teacher.expect(torch.tensor(expected))
        found = teacher.signal(torch.tensor(rows))
        assert torch.equal(found.states.hidden, plain.states.hidden)
        assert torch.equal(found.log_prob_target, plain.log_prob_target)


def test_a_read_ahead_that_fails_is_the_failure_of_whoever_asks(blocks, tmp_path):
    teacher = cached(sharp(), blocks, tmp_path, Layout())
    (tmp_path / "shard-000000.safetensors").unlink()
    teacher.expect(torch.tensor([0]))
    with pytest.raises(FileNotFoundError):
        teacher.signal(torch.tensor([0]))


def test_the_uncertainty_of_a_teacher_is_that_of_its_tokens(blocks, tmp_path):
    teacher = cached(sharp(), blocks, tmp_path, Layout())
    unsure = 1 - teacher.signal(torch.arange(len(blocks))).log_prob_target.double().exp()
    found = uncertainty(tmp_path)
    assert found["mean"] == pytest.approx(float(unsure.mean()))
    assert found["q50"] == pytest.approx(float(unsure.quantile(0.5)))
    assert found["q10"] < found["q50"] < found["q90"]


def test_no_more_shards_stay_open_than_allowed(blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "SHARD_ROWS", 4)
    monkeypatch.setattr(teacher, "OPEN_SHARDS", 2)
    source = cached(sharp(), blocks, tmp_path, Layout())
    whole = LiveTeacher(sharp(), blocks, VOCABULARY, "float32").signal(torch.arange(24))
    assert torch.allclose(source.signal(torch.arange(24)).entropy, whole.entropy, atol=1e-5)
    assert list(source._shards) == [4, 5]
    source.signal(torch.tensor([17, 1]))
    assert list(source._shards) == [4, 0]


SMAPS = """
import sys
from safetensors.torch import load_file
shard = load_file(sys.argv[1])
total = float(shard["hidden"].float().sum())
print("ready", flush=True)
sys.stdin.readline()
found, inside = {}, False
for line in open("/proc/self/smaps"):
    if "-" in line.split()[0]:
        inside = sys.argv[1] in line
    elif inside:
        name, value = line.split()[:2]
        found[name] = found.get(name, 0) + (int(value) if value.isdigit() else 0)
print(found.get("Rss:", 0), found.get("Shared_Clean:", 0), found.get("Private_Dirty:", 0), flush=True)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs Linux")
@pytest.mark.fault("D7", "two readers share a shard's pages")
def test_two_processes_that_read_a_shard_share_its_pages(tmp_path):
    """As the kernel counts: all that is resident of the file is shared, and nothing of it is a private copy."""
    path = tmp_path / "shard-000000.safetensors"
    atomic_write(path, save({"hidden": torch.ones(4096, 256)}))
    command = [sys.executable, "-c", SMAPS, str(path)]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [one.stdout.readline() for one in both] == ["ready\n"] * 2
    counted = []
    for one in both:  # one after the other, while both still hold it
        one.stdin.write("\n")
        one.stdin.flush()
        counted.append([int(part) for part in one.stdout.readline().split()])
        if one is both[0]:
            assert counted[0][0] >= 4096  # KiB: four mebibytes are there
    for one in both:
        one.communicate()
    resident, shared, private = counted[0]
    assert shared == resident and private == 0


# --- whom it serves, and what room it takes ---------------------------------------------------------------------------


def suite(path, *changes):
    return validate(Suite, override(parse(path), changes))


SERVED = "objectives=[sft, {name: kl, support: %s, support_size: %d}, {name: gkd, lam: 1.0}]"
CONTRASTS = "compare={baseline: sft, tasks: [swap]}"


@pytest.mark.parametrize(
    ("layout", "support", "size"), [("topk", "topk", 64), ("topk", "topk+tail", 8), ("sampled", "sampled", 50)]
)
def test_forms_that_keep_no_more_classes_are_served_and_on_policy_arms_ask_live(suite_file, layout, support, size):
    chosen = suite(suite_file, f"teacher={{layout: {layout}}}", SERVED % (support, size), CONTRASTS)
    jobs = {job.title: job for job in Planner(chosen, suite_file.parent).all()}
    cache = jobs["teacher cache big"].inputs
    assert (cache["layout"], cache["k"], cache["dtype"]) == (layout, 64, "float16")
    signals = {
        cell.inputs["objective"]["name"]: cell.inputs.get("signal")
        for cell in jobs.values()
        if cell.cell and cell.cell.spec
    }
    assert signals == {"sft": None, "kl": "cache", "gkd": "live"}


@pytest.mark.parametrize(
    ("teacher_", "objective_", "told"),
    [
        ("{layout: topk}", "kl", "'kl': it reads all classes of the teacher; set its support: topk or topk_both or"),
        ("{layout: topk}", "reverse_kl", "'reverse_kl': it reads all classes of the teacher; leave it out, or set"),
        ("{layout: topk}", "atkd", "'atkd': it reads all classes"),
        ("{layout: topk}", "{name: kl, support: sampled}", "it reads draws from the teacher; set its support"),
        ("{layout: sampled}", "{name: kl, support: topk}", "likeliest classes (topk); set its support: sampled"),
        ("{layout: topk, k: 8}", "{name: kl, support: topk, support_size: 9}", "set teacher.k: 9, or its support_size"),
        ("{layout: topk}", "{name: kl, support: topk, tau: 2.0}", "at a temperature of its own"),
        ("{layout: topk}", "{name: imitkd, student_share: 0.5, support: topk}", "written while training"),
        ("{layout: topk, dtype: bfloat16}", "sft", "too few digits for log-probs"),
    ],
)
def test_what_a_layout_cannot_serve_is_refused_when_the_suite_is_read(suite_file, teacher_, objective_, told):
    with pytest.raises(ConfigError) as error:
        suite(
            suite_file, f"teacher={teacher_}", f"objectives=[{objective_}]", "compare={baseline: floor, tasks: [swap]}"
        )
    assert told in str(error.value)


def test_every_refused_arm_is_named_at_once(suite_file):
    with pytest.raises(ConfigError) as error:
        suite(suite_file, "teacher={layout: topk}", "objectives=[sft, kl, reverse_kl, jsd]", CONTRASTS)
    assert all(f"cannot serve '{name}'" in str(error.value) for name in ("kl", "reverse_kl", "jsd"))
    assert "'sft'" not in str(error.value)


def test_a_layout_that_keeps_every_class_is_refused(suite_file):
    chosen = suite(suite_file, "teacher={layout: topk, k: 320}", SERVED % ("topk", 64), CONTRASTS)
    with pytest.raises(ConfigError, match="fewer than the 320 classes"):
        Planner(chosen, suite_file.parent).all()


def test_keys_of_hidden_states_are_what_they_were_before_there_were_layouts(suite_file):
    jobs = {job.title: job for job in Planner(suite(suite_file), suite_file.parent).all()}
    expected = {"teacher", "text", "tokens", "dtype", "protocol", "versions", "device", "precision", "threads"}
    assert set(jobs["teacher cache big"].inputs) == expected


PLANNED = [quota.Planned("teacher cache big", "abc", 3 * 10**9, True), quota.Planned("other", "def", 2 * 10**9, False)]


def test_caches_beyond_the_quota_are_refused_with_the_numbers_and_before_anything_is_written(tmp_path):
    store = Store(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"at most 4 GB.*would take 5 GB \(teacher cache big: 3 GB; other: 2 GB\)"):
        quota.check(4.0, PLANNED, store)
    quota.check(5.0, PLANNED, store)
    quota.check(1.0, PLANNED[1:], store)  # nothing is to be made
    assert not store.root.exists()


def test_a_disk_without_room_is_told_before_the_run_and_what_is_written_already_counts(tmp_path, monkeypatch):
    store = Store(tmp_path / "none")
    monkeypatch.setattr(quota, "free_bytes", lambda path: 10**9)
    with pytest.raises(StoreError, match=r"still to be written take 3 GB .* has 1 GB free"):
        quota.check(None, PLANNED, store)
    half = store.entry("teacher_cache", "abc").path
    half.mkdir(parents=True)
    with open(half / "shard-000000.safetensors", "wb") as file:
        file.truncate(2 * 10**9 + 1)
    quota.check(None, PLANNED, store)


def test_run_and_plan_refuse_a_suite_whose_caches_are_too_large(suite_file, tmp_path):
    from tests.conftest import call

    for command in (("plan",), ("run", "--dry-run"), ("run", "--no-mlflow")):
        result = call(*command, suite_file, "--results-dir", tmp_path / "r", "--set", "teacher.max_gb=0.0001")
        assert result.exit_code == 2 and "would take 0.00043 GB (teacher cache big" in result.stderr, result.stderr
    assert not (tmp_path / "r").exists()
