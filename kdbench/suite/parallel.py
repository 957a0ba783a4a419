"""What a suite may not ask of models that are spread over devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbench.suite.schema import Suite


def problems(suite: Suite) -> list[str]:
    """Return a sentence for everything in `fsdp` and `rollouts.engine` that does not fit the suite's rest."""
    return _together(suite) + _engine(suite)


def _engine(suite: Suite) -> list[str]:
    """vLLM holds the student alone, whole, on a GPU; it draws from one model, a token at a time."""
    from kdbench.registry import objective

    if suite.rollouts.engine != "vllm":
        return []
    found = []
    if suite.train.fsdp or suite.train.lora:
        name = "fsdp" if suite.train.fsdp else "lora"
        found.append(f"rollouts.engine: vllm takes the weights of a whole student; take train.{name} or engine out")
    for entry in suite.objectives:
        wanted = objective(entry["spec"]).trajectories.rollout
        if wanted is not None and (wanted.by != "student" or wanted.beams > 1):
            how = f"{wanted.by} sampling" if wanted.by != "student" else f"{wanted.beams} beams"
            found.append(
                f"rollouts.engine: vllm cannot write for {entry['label']!r}, whose text is made by {how}: it draws from"
                " the student alone; leave the objective out, or take engine out"
            )
    return found


def _together(suite: Suite) -> list[str]:
    tuned = {f"models.{name}.finetune": one.finetune for name, one in suite.models.items() if one.finetune}
    found, length = [], suite.data.length
    for where, training in {"train": suite.train, **tuned}.items():
        if training.fsdp is None:
            continue
        rows = training.batch_tokens // length
        if suite.device == "mps":
            found.append(f"{where}.fsdp: expected device: cuda, or cpu to try it; found mps")
        if rows < 2 * training.fsdp:  # an objective may replace one of two rows by a text of its own
            found.append(
                f"{where}.fsdp: expected at least two rows for each of {training.fsdp} processes, found batch_tokens "
                f"{training.batch_tokens:,} // length {length:,} = {rows} rows"
            )
    if suite.train.fsdp and suite.teacher.placement != "single":
        found.append("teacher.placement: auto would spread a teacher of each process of train.fsdp over all devices")
    return found
