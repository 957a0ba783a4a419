"""kdbench's loss in a trainer of TRL or transformers: override `compute_loss`, keep everything else.

pip install kdbench[reference] && python examples/trl_trainer.py
"""

from __future__ import annotations

from typing import Any

import torch
from trl import SFTTrainer

import kdbench


class DistillationTrainer(SFTTrainer):
    """TRL's SFTTrainer that learns from a teacher by any of kdbench's objectives."""

    def __init__(self, *args: Any, teacher: torch.nn.Module, objective: str = "kl", **options: Any):
        super().__init__(*args, **options)
        self.teacher = teacher.eval().requires_grad_(False).to(self.args.device)
        self.objective = objective

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a batch over all its targets; of a micro-batch, its share of the global batch's loss."""
        asked = {"input_ids": inputs["input_ids"], "attention_mask": inputs.get("attention_mask")}
        hidden = model.base_model(**asked).last_hidden_state[:, :-1]
        with torch.no_grad():
            taught = self.teacher.base_model(**asked).last_hidden_state[:, :-1]
        labels = inputs["labels"][:, 1:]
        parts = kdbench.linear_loss(
            self.objective,
            hidden,
            model.get_output_embeddings().weight,
            taught,
            self.teacher.get_output_embeddings().weight,
            labels.clamp(min=0),
            labels != -100,
        )
        share = 1.0 if num_items_in_batch is None else parts.tokens / num_items_in_batch
        total = share * parts.total
        return (total, {"hidden": hidden}) if return_outputs else total


def main() -> None:
    """Distil a tiny model on a few lines of text, without a network."""
    import tempfile

    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig

    try:
        from examples.plain_loop import tiny
    except ImportError:  # run as a script
        from plain_loop import tiny

    words = ["a", "the", "law", "peace", "nation", "people", "of", "and", "for", "is", "has"]
    vocabulary = {word: index for index, word in enumerate(["<eos>", "<unk>", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106 — no password
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>")  # noqa: S106
    text = [{"text": "the law of the nation is for the people"}, {"text": "a nation has peace and the people"}] * 16
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            folder, max_steps=10, learning_rate=3e-3, use_cpu=True, report_to="none", logging_steps=5, max_length=32
        )
        trainer = DistillationTrainer(
            tiny(32, 0), settings, train_dataset=Dataset.from_list(text), processing_class=tokenizer,
            teacher=tiny(64, 1), objective="reverse_kl+atkd",
        )  # fmt: skip
        trainer.train()


if __name__ == "__main__":
    main()
