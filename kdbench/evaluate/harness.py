"""Examines a causal language model in memory with lm-eval: its scores as they are, without its start-up costs.

The numbers are those of plain `lm_eval --model hf --include_path <folder>` on the same model, tasks and batch size;
`tasks.write_lm_eval_folder` writes that folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.distill.models import body, check_head
from kdbench.errors import ConfigError, KdbenchError
from kdbench.evaluate.tasks import lm_eval_config
from kdbench.files import read_text, sha256_file
from kdbench.seeding import fenced

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_NOISY = ("lm_eval", "datasets", "transformers")
_Request = tuple[Any, list[int], list[int]]  # what lm-eval calls it by, the context's tokens, the continuation's
CHUNK_BYTES = 24 * 2**20  # of logits at a time: what stays near the processor, and far from a batch's [B, T, V]


@dataclass(frozen=True)
class Examination:
    """What one model scored.

    metrics: `<task>/acc` (share of 1) or `<task>/word_perplexity` (exp of nats per word), as lm-eval aggregates them.
    items: one dict per test item with `task`, `metric` (`acc`: 0 or 1; `word_nll`: nats per word), `item` (lm-eval's
        doc_id), `score` and `item_hash`, which is equal in two examinations only when they asked the same thing.
    """

    metrics: dict[str, float]
    items: list[dict[str, Any]]


def examine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Mapping[str, Path],
    *,
    batch_size: int,
    seed: int = 0,
    limit: int | None = None,
) -> Examination:
    """Score `model`, on the device where it is, on each task (short name -> its `.jsonl`); print nothing.

    The global random state, the model's training mode and the tokenizer's padding token stay as they were.

    Args:
        batch_size: sequences per forward pass. Scores depend on it, and on which tasks run together, only through
            the rounding of sums.
        limit: score only the first `limit` items of each task.

    Raises:
        ConfigError: when there is no task, an unknown one, a rows file is missing or not valid, or an item is longer
            than the model can read.
        KdbenchError: when the model's log-likelihoods are not finite.
    """
    if not tasks or batch_size < 1 or (limit is not None and limit < 1):
        raise ConfigError(
            f"examine: expected a task, and batch_size and limit of at least 1; found tasks {sorted(tasks)}, "
            f"batch_size {batch_size}, limit {limit}"
        )
    training = [module for module in model.modules() if module.training]
    pad_token = tokenizer.pad_token
    try:
        with _quiet(), fenced(seed, "examine"):
            from lm_eval.evaluator import evaluate

            loaded = {f"kdbench_{name}": _task(name, path) for name, path in tasks.items()}
            lm = _language_model()(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
            # Not simple_evaluate: that one also runs git, pip and nvidia-smi to describe the machine each time.
            found = evaluate(lm=lm, task_dict={"tasks": loaded}, limit=limit, bootstrap_iters=0, log_samples=True)
    except OverflowError as error:  # lm-eval's exp() of a loss beyond 709 nats per word
        raise KdbenchError(f"examine: the model's word perplexity is not finite ({error})") from error
    except AssertionError as error:  # lm-eval's bare assert on the length of what it scores
        raise ConfigError(
            f"examine: lm-eval cannot score an item of {', '.join(tasks)} with a model of at most "
            f"{getattr(model.config, 'max_position_embeddings', 'unknown')} positions; give the model more positions"
        ) from error
    finally:
        _put_back(model, training, tokenizer, pad_token)
    return _examination(tasks, found)


def _put_back(model: PreTrainedModel, training: list[Any], tokenizer: PreTrainedTokenizerFast, pad: str | None) -> None:
    """Undo what HFLM changes in the objects that it is given."""
    model.eval()
    for module in training:
        module.training = True
    if tokenizer.pad_token != pad:
        tokenizer.pad_token = pad


def _examination(tasks: Mapping[str, Path], found: Mapping[str, Any]) -> Examination:
    metrics, items = {}, []
    for name in tasks:
        samples = found["samples"][f"kdbench_{name}"]
        _check_finite(name, samples)
        metric = "word_perplexity" if name == "perplexity" else "acc"
        metrics[f"{name}/{metric}"] = float(found["results"][f"kdbench_{name}"][f"{metric},none"])
        items += [_item(name, metric, sample) for sample in samples]
    return Examination(metrics, items)


def _item(name: str, metric: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    score = sample[metric]
    if metric == "word_perplexity":
        log_likelihood, words = score
        metric, score = "word_nll", -log_likelihood / words
    hashes = "".join(sample[part] for part in ("doc_hash", "prompt_hash", "target_hash"))
    item_hash = hashlib.sha256(hashes.encode()).hexdigest()[:16]
    return {"task": name, "metric": metric, "item": sample["doc_id"], "score": float(score), "item_hash": item_hash}


def _check_finite(name: str, samples: list[Mapping[str, Any]]) -> None:
    """Refuse NaN: lm-eval would call it the greatest of the choices, and score the item 0 or 1."""
    bad = sum(not all(map(math.isfinite, _log_likelihoods(sample))) for sample in samples)
    if bad:
        raise KdbenchError(
            f"task {name!r}: expected finite log-likelihoods, found others in {bad} of {len(samples)} items; "
            "the model's weights are damaged or its training diverged"
        )


def _log_likelihoods(sample: Mapping[str, Any]) -> Iterator[float]:
    for response in sample["filtered_resps"]:
        yield response[0] if isinstance(response, tuple | list) else response


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what lm-eval prints: bars on stderr, and warnings about what is meant here (a model in memory)."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _task(name: str, path: Path) -> ConfigurableTask:
    config = lm_eval_config(name, path)  # before reading the file, so that a wrong name is what the user hears of
    try:
        return _task_of(name, path, sha256_file(path), json.dumps(config))
    except OSError as error:
        raise ConfigError(f"task {name!r}: cannot read its rows in {path}: {error.strerror}") from error


@lru_cache(maxsize=64)
def _task_of(name: str, path: Path, sha256: str, config_json: str) -> ConfigurableTask:
    """Build the task once per process for the same rows.

    The rows go to lm-eval through `custom_dataset`, since loading JSON by `dataset_path` writes an Arrow copy into the
    user's cache under a lock; `sha256` and `config_json` make the memory of this function notice changes.
    """
    import datasets
    from lm_eval.api.task import ConfigurableTask

    config = json.loads(config_json)
    del config["dataset_path"], config["dataset_kwargs"]
    try:
        rows = [json.loads(line) for line in read_text(path).splitlines()]
        data = datasets.Dataset.from_list(rows)
        task = ConfigurableTask(config={**config, "custom_dataset": lambda **_: {"test": data}})
        task.dataset = {"test": list(data)}  # the same rows, decoded once instead of twice for each examination
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"task {name!r}: {path} does not hold rows of this task: {error!r}") from error
    return task


@cache
def _language_model() -> type[HFLM]:
    from lm_eval.models.huggingface import HFLM

    class InMemoryLM(HFLM):
        """HFLM that tokenizes a text once per process, and makes logits only where a token is scored."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self._max_length = self.max_length
            self._splits = _splits(self.model)
            self._tokens = _tokens_of(_identity(self.tokenizer), self.prefix_token_id)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
            if self._tokens is None or options:
                return super().tok_encode(string, add_special_tokens, **options)
            key = string, add_special_tokens
            if key not in self._tokens:
                self._tokens[key] = tuple(super().tok_encode(string, add_special_tokens))
            return list(self._tokens[key])

        def _loglikelihood_tokens(self, requests: Sequence[_Request], **options: Any) -> list[tuple[float, bool]]:
            fits = all(0 < len(continuation) <= self._max_length for _, _, continuation in requests)
            if not (fits and self._splits):  # HFLM's own way, and its own refusals
                return super()._loglikelihood_tokens(requests, **options)
            return _score(self.model, requests, self.batch_size, self._max_length)

    return InMemoryLM


def _splits(model: PreTrainedModel) -> bool:
    """Whether the model's logits are proved to be its output head times its final hidden states."""
    try:
        check_head(model)
    except (ConfigError, IndexError):  # IndexError: fewer positions than the proof needs
        return False
    return True


def _score(model: Any, requests: Sequence[_Request], batch_size: int, most: int) -> list[tuple[float, bool]]:
    """Return each continuation's log-likelihood in nats, and whether it is the model's own choice throughout.

    In HFLM's batches, so that the numbers are its own but for rounding: longest first, and requests that differ in
    their last token alone share a row. Unlike there, only scored positions get logits, and only a chunk at a time.
    """
    import torch

    alike: dict[tuple[int, ...], list[int]] = {}
    for number, (_, context, continuation) in enumerate(requests):
        alike.setdefault((*context, *continuation[:-1]), []).append(number)
    groups = [(max(group, key=lambda n: len(requests[n][2])), group) for group in alike.values()]
    groups.sort(key=lambda pair: _longest_first(requests[pair[0]]))
    found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
    for begin in range(0, len(groups), batch_size):
        batch = groups[begin : begin + batch_size]
        texts = [torch.tensor((requests[n][1] + requests[n][2])[-(most + 1) : -1]) for n, _ in batch]
        with torch.no_grad():
            hidden = body(model, torch.nn.utils.rnn.pad_sequence(texts, batch_first=True).to(model.device))
            asked = [
                (n, row[: len(ids)]) for (_, group), ids, row in zip(batch, texts, hidden, strict=True) for n in group
            ]
            states = torch.cat([row[-len(requests[n][2]) :] for n, row in asked])
            target = torch.tensor([token for n, _ in asked for token in requests[n][2]], device=model.device)
            log_probs, chosen = _picked(states, model.get_output_embeddings().weight, target)
        sizes = [len(requests[n][2]) for n, _ in asked]
        for (n, _), one, own in zip(asked, log_probs.split(sizes), chosen.split(sizes), strict=True):
            found[n] = float(one.sum()), bool(own.all())
    return found


def _longest_first(request: _Request) -> tuple[int, list[int]]:
    tokens = request[1] + request[2]
    return -len(tokens), tokens


def _picked(states: Tensor, head: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the targets' log-probabilities `[N]`, and whether each is the likeliest, from hidden states `[N, H]`."""
    import torch

    parts = []
    size = max(1, CHUNK_BYTES // (4 * head.shape[0]))
    for some, asked in zip(states.split(size), target.split(size), strict=True):
        log_probs = torch.log_softmax(some @ head.t(), dim=-1)
        parts.append((log_probs.gather(1, asked[:, None])[:, 0], log_probs.argmax(-1) == asked))
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _identity(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """Return the sha256 of all that decides how a fast tokenizer splits text; None for one written in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return hashlib.sha256(backend.to_str().encode()).hexdigest() if backend is not None else None


@lru_cache(maxsize=4)
def _tokens_of(identity: str | None, prefix_token_id: int) -> dict[tuple[str, bool | None], tuple[int, ...]] | None:
    """Return the memory of one tokenizer, found by content: the same for an equal copy, new once it was changed."""
    return {} if identity is not None else None
