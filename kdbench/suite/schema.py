"""What a suite file may say. Every field is typed and bounded; an unknown one is an error with a did-you-mean."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from kdbench.errors import ConfigError, did_you_mean
from kdbench.suite import claims, examination, external, parallel, tuning
from kdbench.suite.claims import Claim
from kdbench.suite.examination import WithLmEval
from kdbench.suite.external import Arm
from kdbench.suite.materials import Data, Model, lineage_problems, tokenizer_problems
from kdbench.suite.part import NAME, Part
from kdbench.suite.serving import refusals
from kdbench.suite.tuning import Tune

TASKS = ("swap", "replace", "agreement", "last_word", "perplexity")
MAX_GRID = 1000
Beta = Annotated[float, Field(ge=0, lt=1)]


class TeacherSignal(Part):
    """How students get at the teacher's distributions."""

    signal: Literal["cache", "live"] = Field("cache", description="hidden states stored once, or the teacher run again")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of what is stored; auto: the precision for states, float16 for log-probs"
    )
    layout: Literal["hidden", "topk", "sampled"] = Field(
        "hidden",
        description="what is stored of a token: its final hidden state, which serves every objective, or the `k` "
        "likeliest classes, or `k` draws, which serve the forms that keep no more (`support:` of an objective)",
    )
    k: int = Field(64, ge=1, le=4096, description="classes, or draws, that a sparse layout stores")
    placement: Literal["single", "auto"] = Field(
        "single", description="auto: over all GPUs, then the machine's memory, where one device does not hold it"
    )
    quantize: Literal["8bit", "4bit"] | None = Field(
        None,
        description="hold the teacher in fewer bits: another teacher, by bitsandbytes (needs the extra `quantize`)",
    )
    max_gb: float | None = Field(None, gt=0, description="refuse to run if the suite's caches take more (1e9 bytes)")

    @model_validator(mode="after")
    def _fits(self) -> TeacherSignal:
        if self.layout != "hidden" and self.dtype == "bfloat16":
            raise ValueError("dtype: bfloat16 has too few digits for log-probs; expected float16 or float32")
        return self


class Rollouts(Part):
    """Text that models write, for the objectives that learn from it."""

    prompt_tokens: int | None = Field(
        None,
        gt=0,
        description="of a block, given as prompt; default: a quarter of it; of an instruction's prompt the last so "
        "many; default: half a row",
    )
    new_tokens: int | None = Field(None, gt=0, description="at most so many are written; default: to the block's end")
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="what writes while training; vllm: faster, on a GPU (needs the extra `vllm`)"
    )
    engine_memory: float = Field(
        0.3, gt=0, lt=1, description="share of the GPU's memory that vllm takes, beside the training"
    )


class Lora(Part):
    """Low-rank adapters: they alone are trained, and are merged into the student at the end."""

    r: int = Field(8, ge=1, le=1024, description="rank")
    alpha: float = Field(16.0, gt=0, description="the adapters' sum is scaled by alpha / r")
    targets: tuple[str, ...] = Field(
        (), description="ends of the names of adapted modules, such as q_proj; default: every linear layer but the head"
    )


class Train(Part):
    """How every student is trained; the same for all objectives."""

    steps: int = Field(gt=0, le=10_000_000)
    batch_tokens: int = Field(2048, gt=0, description="global batch: tokens an optimiser step")
    micro_batch: int | None = Field(None, gt=0, description="rows in one forward pass; default: the whole batch")
    lr: float = Field(gt=0, lt=10, description="peak learning rate")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps")
    weight_decay: float = Field(0.0, ge=0, le=1)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    dropout: bool = Field(False, description="keep the architecture's dropout while training")
    checkpoint_steps: int = Field(50, gt=0)
    compile: bool = Field(
        False,
        description="the objective's terms by torch.compile: fewer kernels on a GPU; rounds in another order",
    )
    gradient_checkpointing: bool = Field(
        False, description="keep no activations inside layers but compute them again: less memory, a third more time"
    )
    lora: Lora | None = Field(None, description="train adapters in place of the weights (needs the extra `lora`)")
    fsdp: int | None = Field(
        None,
        ge=2,
        le=64,
        description="processes, each with a GPU of its own, that hold a part of the student's weights, gradients and "
        "moments and read a part of every batch (FSDP); for students that are not trained on one GPU",
    )


class Examine(WithLmEval):
    """The examination: tasks made from the held-out test split, tasks from elsewhere, and the intrinsic measures."""

    tasks: tuple[Literal["swap", "replace", "agreement", "last_word", "perplexity"], ...] = TASKS
    items: int = Field(750, ge=20, le=100_000, description="items a minimal-pair task has, if the text allows")
    batch_size: int = Field(64, gt=0, description="fixed: log-likelihoods depend on it in the last digits")
    intrinsic_tokens: int = Field(8192, gt=0, description="held-out tokens for nats/token, KL and agreement")


class Compare(Part):
    """What is asked of the results, fixed before they exist."""

    baseline: str = Field("sft", description="the arm that others are compared with, where no contrasts are named")
    contrasts: tuple[tuple[str, str], ...] = Field((), description="pairs [objective, baseline] of the named family")
    tasks: tuple[str, ...] = Field(("swap", "replace", "agreement"), description="tasks of the overall mean")
    margin: float = Field(0.01, gt=0, description="differences smaller than this do not matter (score units)")
    alpha: float = Field(0.05, gt=0, lt=0.5)
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="of each of `tasks` in the overall mean; default: equal"
    )
    looks: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        (), description="numbers of seeds at which one may look, such as [3, 6, 10]; alpha is spent over them"
    )
    equal_time: bool = Field(
        False, description="train each contrast's first arm once more, for as long as its baseline took, and compare"
    )

    @model_validator(mode="after")
    def _tasks_exist(self) -> Compare:
        if self.weights and set(self.weights) != set(self.tasks):
            raise ValueError(f"weights: expected one for each of {list(self.tasks)}, found {list(self.weights)}")
        if list(self.looks) != sorted(set(self.looks)):
            raise ValueError(f"looks: expected growing numbers of seeds, such as [3, 6, 10], found {list(self.looks)}")
        if "perplexity" in self.tasks:
            raise ValueError("`perplexity` has no score an item; choose among swap, replace, agreement, last_word")
        return self


def _checked_objective(value: Any) -> list[dict[str, Any]]:
    """Turn an entry of `objectives:` into {label, spec}, by the registry, so that errors name the line.

    With `grid: {field: [value, …], …}` an entry stands for every combination of the values; with `train: {…}` it is
    trained otherwise than the others are.
    """
    from kdbench.registry import objective

    settings = dict(value) if isinstance(value, dict) else value
    label = settings.pop("label", None) if isinstance(settings, dict) else None
    own = settings.pop("train", None) if isinstance(settings, dict) else None
    combinations = _combinations(settings.pop("grid")) if isinstance(settings, dict) and "grid" in settings else [{}]
    if label is not None and not (isinstance(label, str) and 0 < len(label) <= 60):
        raise ValueError(f"label: expected a short text, found {label!r:.60}")
    if own is not None and not (isinstance(own, dict) and own and label):
        raise ValueError(
            f"train: expected settings such as {{steps: 60}}, and a `label:` for an arm that is not trained as the "
            f"others are, found {own!r:.60}{'' if label else ' and no label'}"
        )
    if label is not None and len(combinations) > 1:
        raise ValueError(f"label: {label!r} cannot name all {len(combinations)} objectives of a grid")
    try:
        made = [objective(settings | chosen if chosen else settings) for chosen in combinations]
    except ConfigError as error:
        raise ValueError(str(error)) from None
    trained = {"train": own} if own else {}
    return [{"label": label or one.label, "spec": one.spec()} | trained for one in made]


def _combinations(grid: Any) -> list[dict[str, Any]]:
    if not (isinstance(grid, dict) and grid and all(isinstance(values, list) and values for values in grid.values())):
        raise ValueError(f"grid: expected fields with lists of values, such as {{lam: [0, 0.2]}}, found {grid!r:.60}")
    if math.prod(len(values) for values in grid.values()) > MAX_GRID:
        raise ValueError(f"grid: expected at most {MAX_GRID} combinations")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _flat(entries: tuple[list[dict[str, Any]], ...]) -> tuple[dict[str, Any], ...]:
    return tuple(itertools.chain.from_iterable(entries))


class Suite(Part):
    """A suite file: data, models, objectives, seeds, training, examination, comparison."""

    name: str = Field(pattern=NAME)
    question: str = Field("", description="what the suite is to answer, in a sentence")
    data: Data
    models: dict[Annotated[str, Field(pattern=NAME)], Model] = Field(min_length=1)
    students: tuple[str, ...] = Field(min_length=1)
    teachers: tuple[str, ...] = ()
    skip: tuple[tuple[str, str], ...] = Field((), description="pairs [student, teacher] that are left out")
    objectives: Annotated[
        tuple[Annotated[Any, BeforeValidator(_checked_objective)], ...], Field(min_length=1), AfterValidator(_flat)
    ]
    arms: tuple[Arm, ...] = Field((), description="students trained elsewhere, examined and compared beside the others")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(min_length=1)
    teacher: TeacherSignal = TeacherSignal()
    rollouts: Rollouts = Rollouts()
    train: Train
    tune: Tune | None = Field(None, description="how settings of `train` are chosen for each objective")
    examine: Examine = Examine()
    compare: Compare = Compare()
    claims: tuple[Claim, ...] = Field((), description="published sentences that the results are held against")
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = Field(1, ge=1, le=1024, description="CPU threads a worker; part of every cell's key")

    @model_validator(mode="after")
    def _names_fit(self) -> Suite:
        problems = [
            f"{field}: unknown model {name!r}.{did_you_mean(name, self.models)}"
            for field in ("students", "teachers")
            for name in getattr(self, field)
            if name not in self.models
        ]
        for field in ("students", "teachers", "seeds"):
            if len(set(getattr(self, field))) != len(getattr(self, field)):
                problems.append(f"{field}: an entry stands twice in {list(getattr(self, field))}")
        problems += tokenizer_problems(self.data.tokenizer, self.models)
        problems += lineage_problems(self.models) + self._pair_problems()
        problems += self._objective_problems() + external.problems(self.arms, self.labels, self.teachers)
        problems += tuning.problems(self.tune, self.train, self.seeds)
        problems += tuning.own_problems(self.objectives, self.train, self.tune)
        problems += claims.problems(self.claims, self.arm_labels, self.students, self.teachers, self.examine.names)
        problems += examination.problems(self.compare.tasks, self.examine, TASKS, self.tune is not None)
        if self.data.length > min(self.train.batch_tokens, *(p.batch_tokens for p in self._pretrains())):
            problems.append(f"batch_tokens: expected at least one block of data.length = {self.data.length} tokens")
        if (self.rollouts.prompt_tokens or 1) >= self.data.length:
            problems.append(f"rollouts.prompt_tokens: expected less than data.length = {self.data.length}")
        problems += self._rollout_problems() + parallel.problems(self)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _pretrains(self) -> list[Any]:
        return [training for model in self.models.values() for training in model.trainings] or [self.train]

    def _pair_problems(self) -> list[str]:
        problems = [
            f"skip: unknown {what} {name!r}.{did_you_mean(name, known)}"
            for pair in self.skip
            for what, name, known in zip(("student", "teacher"), pair, (self.students, self.teachers), strict=True)
            if name not in known
        ]
        alone = [name for name in self.students if self.teachers and not self.teachers_of(name)]
        unused = [name for name in self.teachers if not any(name in self.teachers_of(one) for one in self.students)]
        problems += [f"skip: leaves the student {name!r} without a teacher" for name in alone]
        return problems + [f"skip: leaves the teacher {name!r} without a student" for name in unused]

    def teachers_of(self, student: str) -> tuple[str, ...]:
        """Return the teachers that a student learns from: all, but for those of `skip`."""
        return tuple(name for name in self.teachers if (student, name) not in self.skip)

    @property
    def written_tokens(self) -> tuple[int, int]:
        """How many tokens a text that a model writes has at most: of the prompt, and new ones."""
        length, given = self.data.length, self.rollouts
        prompt = given.prompt_tokens or max(1, length // (4 if self.data.instructions is None else 2))
        return prompt, given.new_tokens or length - prompt

    @property
    def on_hub(self) -> bool:
        """Whether a model, the tokenizer, the text or a task comes from the Hugging Face Hub."""
        text = self.data.instructions is not None and self.data.instructions.hub is not None
        tasks = any(entry.on_hub for entry in self.examine.lm_eval)  # lm-eval's own read their items there
        models = any(model.hub for model in self.models.values())
        return text or tasks or models or self.data.tokenizer.hub is not None

    def _rollout_problems(self) -> list[str]:
        """Every prompt of a batch needs the same room behind it, or a text would depend on its neighbours."""
        if self.data.instructions is None:
            return []
        length, given = self.data.length, self.rollouts
        room = length - (given.prompt_tokens or length // 2)
        if (given.new_tokens or 0) > room:
            return [f"rollouts.new_tokens: expected at most {room}, what a prompt leaves of data.length = {length}"]
        if self.data.pack and any(writes(entry["spec"]) for entry in self.objectives):
            return ["data.pack: an objective learns from text written after prompts, one a row; set pack: false"]
        return []

    def _objective_problems(self) -> list[str]:
        labels = self.labels
        problems = [
            f"objectives: {label!r} stands twice; give one a `label:`"
            for label in set(labels)
            if labels.count(label) > 1
        ]
        named = [("compare.baseline", self.compare.baseline)] if not self.compare.contrasts else []
        named += [("compare.contrasts", name) for pair in self.compare.contrasts for name in pair]
        problems += [
            f"compare.contrasts: expected two different arms, found {a!r} twice"
            for a, b in self.compare.contrasts
            if a == b
        ]
        known = {*self.arm_labels, "floor", "ceiling"}
        problems += [
            f"{where}: unknown arm {name!r}.{did_you_mean(name, known)}" for where, name in named if name not in known
        ]
        if not self.teachers and any(needs_teacher(entry["spec"]) for entry in self.objectives):
            problems.append("teachers: expected at least one model, since an objective needs a teacher; found none")
        return problems + refusals(self.teacher.signal, self.teacher.layout, self.teacher.k, self.objectives)

    @property
    def labels(self) -> list[str]:
        """The arms' names in tables."""
        return [entry["label"] for entry in self.objectives]

    @property
    def named_contrasts(self) -> list[tuple[str, str]]:
        """The contrasts that are asked for: those written down, else every objective against the baseline."""
        against = self.compare.baseline
        return list(self.compare.contrasts) or [(label, against) for label in self.labels if label != against]

    @property
    def arm_labels(self) -> list[str]:
        """The names of all arms, those of students trained elsewhere among them."""
        return self.labels + [arm.external.label for arm in self.arms]


def needs_teacher(spec: dict[str, Any]) -> bool:
    """Whether an objective, given by its whole specification, learns from a teacher."""
    from kdbench.registry import get

    return get(spec["name"]).needs_teacher


def writes(spec: dict[str, Any]) -> bool:
    """Whether an objective learns from text that a model writes, before training or in it."""
    from kdbench.registry import objective

    wanted = objective(spec).trajectories
    return wanted.rollout is not None or wanted.fixed == "teacher"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a suite file, for completion in editors (`suites/schema.json`)."""
    schema = Suite.model_json_schema()
    schema["title"] = "kdbench suite"
    schema["properties"]["objectives"]["items"] = {
        "anyOf": [
            {"type": "string", "description": "name, or base+wrapper: kl, reverse_kl+atkd"},
            {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "label": {"type": "string"},
                    "train": {
                        "type": "object",
                        "description": f"settings of this arm's training: {', '.join(tuning.OWN)}; needs a label",
                    },
                    "grid": {
                        "type": "object",
                        "description": "field: list of values; the entry stands for every combination",
                        "additionalProperties": {"type": "array", "minItems": 1},
                    },
                },
            },
        ]
    }
    return schema


if __name__ == "__main__":
    import json
    from pathlib import Path

    from kdbench.files import atomic_write

    atomic_write(Path("suites/schema.json"), json.dumps(json_schema(), indent=1) + "\n")
