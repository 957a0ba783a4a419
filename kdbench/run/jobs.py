"""From a suite to jobs: what has to be made, in what order, under which content key.

A key is a sha256 over everything that decides a result: resolved settings, fingerprints of text and weights, source of
the objective, protocol and library versions, device type, precision, threads. Paths and names stay out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import kdbench
from kdbench.api import Sampling
from kdbench.distill import engine, layouts, lora, models, placement, rollout, warm
from kdbench.distill.data import Document, start_id
from kdbench.errors import ConfigError
from kdbench.evaluate import harness, tasks
from kdbench.files import sha256_file
from kdbench.registry import objective, source_digest
from kdbench.run import elsewhere, external, material, origins
from kdbench.run.configs import Known
from kdbench.run.job import Job
from kdbench.suite.external import ABSENT, ARM
from kdbench.suite.materials import Init, Model, Pretrain
from kdbench.suite.matrix import Cell, cells, trials
from kdbench.suite.schema import Suite, Train
from kdbench.suite.serving import reads_cache

AFTER = "after_tuning"  # the key under which inputs name the cells, such as trials, that a cell waits for
Settle = Callable[[Cell], tuple[Cell, Sequence[Job]]]


@cache
def _version(package: str) -> str:
    """Look a package's version up once; a matrix asks for it thousands of times."""
    return version(package)


@cache
def _source(module: ModuleType) -> str:
    return sha256_file(Path(str(module.__file__)))


def training(settings: Train | Pretrain, length: int) -> dict[str, Any]:
    """Return the fields of `distill.train.Plan` for a suite's `train:` or a model's `pretrain:`."""
    fields = settings.model_dump(mode="json")
    batch_rows = fields.pop("batch_tokens") // length
    if isinstance(settings, Pretrain):
        del fields["seed"], fields["text"]
        fields["steps"] = max(1, fields.pop("tokens") // (batch_rows * length))
    for name in ("compile", "gradient_checkpointing", "lora", "fsdp"):  # in no key where they are not used
        if not fields.get(name):
            fields.pop(name, None)
    return fields | {"batch_rows": batch_rows}


class Planner:
    """Makes the jobs of one suite; reads the corpus and hashes saved models, trains nothing.

    Args:
        base: folder to which paths in the suite are relative.

    Raises:
        ConfigError: corpus, saved model, architecture or device are not as the suite says.
    """

    def __init__(self, suite: Suite, base: Path):
        self.suite, self.base = suite, base
        self.runtime = models.resolve_runtime(suite.device, suite.precision, suite.threads)
        self.material = material.look(suite.data, base)
        self._check_size(self.material.train_bytes)
        self.corpus = self.material.fingerprint
        self.known = Known(suite, base)
        self.vocabulary, self.configs = self.known.vocabulary, self.known.configs()
        self.jobs: dict[str, Job] = {}
        self.cells: list[tuple[Cell, Job]] = []

    def _check_size(self, most: int | None) -> None:
        """Refuse a distillation set larger than any tokenizer could cut from the text: a token is a byte or more."""
        tokens = self.distillation_tokens()
        if most is None:  # of instructions as much is taken as there is
            most = max(tokens, self.suite.data.length)
        if not self.suite.data.length <= tokens <= most:
            raise ConfigError(
                f"data.tokens: expected {self.suite.data.length:,} to {most:,} (the bytes of the train split), "
                f"found {tokens:,}"
            )

    def reach(self, jobs: Sequence[Job]) -> None:
        """Load what these jobs take from elsewhere, so that its absence is one error before any work starts."""
        if any(job.kind in ("tokenizers", "texts", "tasks") for job in jobs):
            material.reach(self.suite.data, self.base)
        if any(job.kind == "cells" for job in jobs) and self.suite.examine.lm_eval:
            elsewhere.check(self.suite.examine.lm_eval, self.base)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What else decides numbers: versions, device type, precision, threads."""
        return {
            "protocol": kdbench.PROTOCOL,
            "versions": {name: _version(name) for name in ("torch", "transformers", "tokenizers")},
            "device": self.runtime.device,
            "precision": self.runtime.precision,
            "threads": self.runtime.threads,
        }

    def all(self, settle: Settle = lambda cell: (cell, ())) -> list[Job]:
        """Return every job, each after those it needs.

        Args:
            settle: gives a cell the training settings that were chosen for it, and the jobs of the trials that must end
                before they can be. A cell with such is in `cells` alone: its key is not known yet.
        """
        self.cells = [(cell, self.cell(cell, after)) for cell, after in map(settle, cells(self.suite))]
        return list(self.jobs.values())

    def trials(self, points: Sequence[dict[str, Any]]) -> list[tuple[Cell, Job]]:
        """Add the cells by which `tune:` chooses among settings; return them with their jobs."""
        return [(cell, self.cell(cell)) for cell in trials(self.suite, points)]

    def examination(self, folder: Path) -> Job:
        """Return the job that examines a saved model which is no cell of the suite."""
        return self.cell(Cell(folder.name, None, None, None, None, str(folder.resolve())))

    def count_parameters(self) -> dict[str, int]:
        """Return every model's number of parameters."""
        return self.known.count_parameters(self.configs)

    def hidden_size(self, name: str) -> int:
        """Return the width of what enters a model's output head."""
        return models.hidden_size(self.configs[name])

    def _rough_parameters(self, name: str) -> float:
        config = self.configs[name]
        return 12.0 * config.num_hidden_layers * config.hidden_size**2 + self.vocabulary * config.hidden_size

    def _add(self, job: Job) -> Job:
        return self.jobs.setdefault(job.id, job)

    @property
    def documents(self) -> list[Document]:
        """The text, as far as it lies on this machine."""
        return self.material.documents

    def _corpus_context(self) -> dict[str, Any]:
        return material.context(self.suite.data, self.base)

    def _tokenizer(self) -> Job:
        spec = self.suite.data.tokenizer
        inputs: dict[str, Any] = {"protocol": kdbench.PROTOCOL, "tokenizers": _version("tokenizers")}
        context = self._corpus_context()
        if spec.bpe is not None:
            inputs |= {"corpus": self.corpus, "bpe": spec.bpe}
        elif spec.model is not None:
            told, place = origins.gguf_place(self.suite.models[spec.model], self.base)
            inputs, context = inputs | told, context | place
        elif spec.hub is not None:
            inputs["hub"] = context["hub"] = spec.hub.model_dump(exclude={"license"})
        else:
            folder = (self.base / str(spec.path)).resolve()
            inputs |= {"files": origins.tokenizer_files(folder)}
            context["path"] = str(folder)
        return self._add(Job("tokenizers", "tokenizer", inputs, (), context))

    @cached_property
    def _starts_with_bos(self) -> bool:
        """Whether a saved tokenizer has a BOS that is not its EOS, with which plain text starts.

        It is told in the key of such a text, since text once started with EOS whatever the tokenizer.
        """
        spec = self.suite.data
        if spec.corpus is None or spec.tokenizer.path is None:
            return False
        tokenizer = models.load_tokenizer((self.base / spec.tokenizer.path).resolve())
        return start_id(tokenizer) != tokenizer.eos_token_id

    def _text(self) -> Job:
        tokenizer = self._tokenizer()
        inputs = {"corpus": self.corpus, "tokenizer": tokenizer.key, "length": self.suite.data.length}
        if self.suite.data.pack:
            inputs["pack"] = True
        if self._starts_with_bos:
            inputs["start"] = "bos"
        inputs |= material.text_inputs(self.suite.data)
        return self._add(Job("texts", "tokenised text", inputs, (tokenizer.id,), self._corpus_context()))

    def _tasks(self, trial: bool = False) -> Job:
        suite = self.suite
        inputs = {
            "protocol": kdbench.PROTOCOL,
            "corpus": self.corpus,
            "tasks": sorted(suite.examine.tasks),
            "items": suite.examine.items,
            "source": _source(tasks),
        }
        if trial and suite.tune:  # what is reported may never choose
            inputs |= {"tasks": sorted(suite.compare.tasks), "items": suite.tune.items, "split": "dev"}
        title = f"{'tuning' if trial else 'examination'} tasks"
        return self._add(Job("tasks", title, inputs, (), self._corpus_context()))

    def model(self, name: str, seed: int | None) -> Job:
        """Return the job whose weights a model of the suite is: fine-tuned, where the suite says so."""
        found = self._origin(name, seed)
        return found if self.suite.models[name].finetune is None else self._finetuned(name, found)

    def _finetuned(self, name: str, model: Job) -> Job:
        spec, text = self.suite.models[name].finetune, self._text()
        assert spec is not None
        told = training(spec, self.suite.data.length) | {"seed": spec.seed}
        inputs = {"base": model.key, "finetune": told, "text": text.key} | self.environment
        if spec.text == "distillation":
            inputs["tokens"] = self.distillation_tokens()
        context = {"tokens": spec.tokens, "name": name}
        cost = 6.0 * self._rough_parameters(name) * spec.tokens
        return self._add(Job("models", f"{model.title}, fine-tuned", inputs, (model.id, text.id), context, cost=cost))

    def _origin(self, name: str, seed: int | None) -> Job:
        """Return the job that makes a model's weights, takes them over, or cuts them out of another model."""
        spec: Model = self.suite.models[name]
        text = self._text()
        if spec.hub is not None:
            inputs = {"hub": spec.hub.identity, "tokenizer": self._tokenizer().key}
            return self._add(Job("models", f"model {name}", inputs, (text.id,), origins.hub_context(spec)))
        if spec.gguf is not None:
            told, context = origins.gguf_place(spec, self.base)
            inputs = told | {"tokenizer": self._tokenizer().key}
            return self._add(Job("models", f"model {name}", inputs, (text.id,), context))
        if spec.kept is not None:
            source = self.model(spec.kept.source, None)
            inputs = {"from": source.key, "layers": list(spec.kept.layers), "tokenizer": self._tokenizer().key}
            inputs["source"] = _source(warm)
            return self._add(Job("models", f"model {name}", inputs, (text.id, source.id), {"name": name}))
        if spec.path is not None:
            folder = (self.base / spec.path).resolve()
            inputs = {"weights": models.folder_fingerprint(folder), "tokenizer": self._tokenizer().key}
            return self._add(Job("models", f"model {name}", inputs, (text.id,), {"path": str(folder)}))
        assert isinstance(spec.init, Init)
        drawn = (seed or 0) if spec.init_seed == "run" else spec.init_seed
        init = {k: v for k, v in spec.init.model_dump().items() if k != "seed"}
        inputs = {"init": init, "seed": drawn, "text": text.key, "dropout": self.suite.train.dropout} | self.environment
        if spec.pretrain is not None:
            inputs["pretrain"] = training(spec.pretrain, self.suite.data.length) | {"seed": spec.pretrain.seed}
            if spec.pretrain.text == "distillation":  # for the open text nothing is added to keys
                inputs["tokens"] = self.distillation_tokens()
        title = f"model {name}" + (f" · seed {seed}" if spec.init_seed == "run" else "")
        tokens = spec.pretrain.tokens if spec.pretrain else 0
        cost = 6.0 * self._rough_parameters(name) * tokens
        return self._add(Job("models", title, inputs, (text.id,), {"tokens": tokens, "name": name}, cost=cost))

    def distillation_tokens(self) -> int:
        """Return the size of the distillation set: as the suite says, or as much as the training reads."""
        train = self.suite.train
        return self.suite.data.tokens or train.steps * train.batch_tokens

    def _cache(self, teacher: str) -> Job:
        model, text = self.model(teacher, None), self._text()
        told = self.suite.teacher
        auto = self.runtime.precision if told.layout == "hidden" else "float16"
        inputs = {
            "teacher": model.key,
            "text": text.key,
            "tokens": self.distillation_tokens(),
            "dtype": auto if told.dtype == "auto" else told.dtype,
        } | self.environment
        if told.layout != "hidden":  # of hidden states nothing is added: their keys stay what they were
            if told.k >= self.vocabulary:
                raise ConfigError(f"teacher.k: expected fewer than the {self.vocabulary:,} classes, found {told.k:,}")
            inputs |= {"layout": told.layout, "k": told.k, "source": _source(layouts)}
        context = {"teacher": teacher} | self._placement
        return self._add(
            Job("teacher_cache", f"teacher cache {teacher}", inputs | self._quantize, (model.id, text.id), context)
        )

    @property
    def _placement(self) -> dict[str, str]:
        """Return where teachers are put, if not on one device: it changes no number, so keys know nothing of it."""
        return {} if self.suite.teacher.placement == "single" else {"placement": self.suite.teacher.placement}

    @cached_property
    def _quantize(self) -> dict[str, Any]:
        """Return what keys say of teachers in few bits; nothing where they are whole."""
        bits = self.suite.teacher.quantize
        return {} if bits is None else {"quantize": placement.quantizer(bits, self.runtime.device)}

    def _rollouts(self) -> dict[str, int]:
        """Return what bounds the text that models write, without defaults left open."""
        prompt, new = self.suite.written_tokens
        return {"prompt_tokens": prompt, "new_tokens": new}

    def _teacher_text(self, teacher: str, decoding: Sampling) -> Job:
        model, text = self.model(teacher, None), self._text()
        inputs = {
            "teacher": model.key,
            "text": text.key,
            "tokens": self.distillation_tokens(),
            "rollouts": self._rollouts(),
            "decoding": asdict(decoding),
            "source": _source(rollout),
        } | self.environment | self._quantize  # fmt: skip
        context = {"teacher": teacher} | self._placement
        title = f"text by {teacher}"
        cost = 2.0 * self._rough_parameters(teacher) * self.distillation_tokens()
        return self._add(Job("teacher_texts", title, inputs, (model.id, text.id), context, cost=cost))

    def _learning(self, cell: Cell, inputs: dict[str, Any]) -> list[Job]:
        """Add what decides the training of a cell; return the jobs that it needs."""
        suite, chosen = self.suite, objective(cell.spec or {})
        inputs |= {"objective": chosen.spec(), "objective_source": source_digest(chosen)}
        settings = Train.model_validate(suite.train.model_dump() | dict(cell.settings))
        inputs |= {"train": training(settings, suite.data.length), "tokens": self.distillation_tokens()}
        if settings.lora:
            inputs["peft"] = lora.installed()
        needs, wanted = [], chosen.trajectories
        if wanted.rollout is not None or wanted.fixed == "teacher":
            inputs |= {"rollouts": self._rollouts(), "rollout_source": _source(rollout)}
        if wanted.rollout is not None and suite.rollouts.engine == "vllm":
            told = {"name": "vllm", "version": engine.installed(self.runtime.device), "source": _source(engine)}
            inputs["engine"] = told
        if wanted.fixed == "teacher" and wanted.reads_fixed:
            needs.append(self._teacher_text(str(cell.teacher), wanted.decoding))
            inputs["teacher_text"] = needs[-1].key
        if chosen.needs_teacher:
            inputs["signal"], inputs["cache"] = "live", None
            if reads_cache(chosen) and suite.teacher.signal == "cache":
                needs.append(self._cache(str(cell.teacher)))
                inputs["signal"], inputs["cache"] = "cache", needs[-1].key
        return needs

    @cached_property
    def _task_folders(self) -> dict[str, Any]:
        return elsewhere.context(self.suite.examine.lm_eval, self.base)

    def _external(self, cell: Cell, inputs: dict[str, Any], needs: list[Job]) -> Job:
        """Return the examination of a student trained elsewhere; its key knows the weights, neither names nor seed."""
        inputs |= {"arm": ARM, "seed": None}
        labels = {"arm": cell.arm, "student": cell.student, "teacher": cell.teacher}
        context = {"labels": labels} | self._task_folders | self._placement
        folder = (self.base / str(cell.folder)).resolve()
        if not folder.is_dir():
            return self._add(Job("cells", cell.title, inputs | {ABSENT: str(cell.folder)}, (), context, cell))
        try:
            weights = {"weights": external.fingerprint(folder, self.known.saved), "tokenizer": self._tokenizer().key}
        except ConfigError as error:
            raise ConfigError(f"{cell.arm}: {error}") from None
        title = f"student {cell.folder}"
        student = self._add(Job("models", title, weights, (self._text().id,), {"path": str(folder)}))
        roles = {"student": student} | ({"teacher": self.model(cell.teacher, cell.seed)} if cell.teacher else {})
        inputs |= {role: job.key for role, job in roles.items()} | (self._quantize if cell.teacher else {})
        needed = tuple(job.id for job in (*needs, *roles.values()))
        return self._add(Job("cells", cell.title, inputs, needed, context, cell))

    def cell(self, cell: Cell, after: Sequence[Job] = ()) -> Job:
        """Return the job of a cell; one with jobs `after` which its settings are known is not among `jobs`."""
        suite, text, tasks_job = self.suite, self._text(), self._tasks(cell.trial)
        needs = [text, tasks_job]
        examine = suite.examine.model_dump(mode="json", exclude={"items", "tasks", "lm_eval"}) | {
            "tasks": tasks_job.inputs["tasks"]
        }
        if cell.trial:
            examine["split"] = tasks_job.inputs["split"]
        else:
            examine |= elsewhere.inputs(suite.examine.lm_eval, self.base)
        inputs: dict[str, Any] = {
            "arm": cell.arm if cell.spec is None else "objective",
            "seed": cell.seed,
            "text": text.key,
            "tasks": tasks_job.key,
            "examine": examine | {"source": _source(harness), "lm_eval": _version("lm_eval")},
        } | self.environment
        if cell.folder is not None:
            return self._external(cell, inputs, needs)
        for role, name in (("student", cell.student), ("teacher", cell.teacher)):
            if name is not None:
                job = self.model(name, cell.seed)
                needs.append(job)
                inputs[role] = job.key
        if cell.teacher is not None:
            inputs |= self._quantize
        if cell.spec is not None:
            needs += self._learning(cell, inputs)
        context = {
            "labels": {"arm": cell.arm, "student": cell.student, "teacher": cell.teacher},
            "keep": not cell.trial,
        } | self._task_folders | self._placement  # fmt: skip
        if "engine" in inputs:
            context["engine_memory"] = suite.rollouts.engine_memory
        if after:
            inputs[AFTER] = sorted({key for job in after for key in job.inputs.get(AFTER, [job.key])})
        job = Job("cells", cell.title, inputs, tuple(job.id for job in (*needs, *after)), context, cell)
        return job if after else self._add(job)
