"""What is known of a suite's models before any weight is there: their configs, and the vocabulary they share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from kdbench.distill import bounds, models
from kdbench.errors import ConfigError
from kdbench.run import origins
from kdbench.suite.schema import Suite


class Known:
    """The configs of one suite's models; reads what is on disk, asks the Hub only where nothing is declared.

    Args:
        base: folder to which paths in the suite are relative.
    """

    def __init__(self, suite: Suite, base: Path):
        self.suite, self.base = suite, base

    @cached_property
    def vocabulary(self) -> int:
        """Entries of the tokenizer."""
        spec = self.suite.data.tokenizer
        if spec.hub is not None:
            return origins.vocabulary(spec)
        if spec.model is not None:
            source = self.suite.models[spec.model]
            return spec.vocabulary or len(origins.gguf_tokenizer(origins.gguf_file(source, self.base)))
        return spec.bpe or len(self._saved_tokenizer)

    @cached_property
    def _saved_tokenizer(self) -> Any:
        return models.load_tokenizer((self.base / str(self.suite.data.tokenizer.path)).resolve())

    def configs(self) -> dict[str, Any]:
        """Return the transformers config of every model that is used.

        Raises:
            ConfigError: one that cannot be made, is not there, or does not fit the tokenizer.
        """
        return {name: self._config(name) for name in origins.used(self.suite)}

    def _config(self, name: str) -> Any:
        spec = self.suite.models[name]
        try:
            if spec.path is not None:
                return self.saved((self.base / spec.path).resolve())
            if spec.hub is not None:
                return origins.hub_config(spec, self._fitting)
            if spec.gguf is not None:
                return self._fitting(origins.gguf_config(spec, self.base), None)
            if spec.kept is not None:
                return origins.kept_config(spec.kept, self._config(spec.kept.source))
            assert spec.init is not None
            return self._made(spec.init.model_dump())
        except ConfigError as error:
            raise ConfigError(f"models.{name}: {error}") from None

    def _made(self, init: dict[str, Any]) -> Any:
        """Return the config of a model that is made here, if the suite's text fits into it."""
        length = self.suite.data.length
        found = models.architecture_config(init, self.vocabulary, length, (0, 1), False)
        bounds.check(found, "init")
        bounds.check_made(init, found, self.vocabulary, length)
        return found

    def count_parameters(self, configs: Mapping[str, Any]) -> dict[str, int]:
        """Return the number of parameters of each config, from the config alone (imports the architectures).

        Raises:
            ConfigError: a model that cannot be made of its config.
        """
        found = {}
        for name, config in configs.items():
            try:
                found[name] = models.parameters(config)
            except ConfigError as error:
                raise ConfigError(f"models.{name}: {error}") from None
        return found

    def saved(self, folder: Path) -> Any:
        """Return the config of a saved model; refuse what has no safetensors or does not fit the tokenizer."""
        models.check_folder(folder)
        return self._fitting(models.load_config(folder), folder)

    def _fitting(self, config: Any, folder: Path | None) -> Any:
        """Return a config that fits the suite's tokenizer, as does the one in its folder, if there is one."""
        bounds.check(config, str(folder or "config"))
        own = models.entries(folder) if folder else None
        if config.vocab_size < self.vocabulary or (own is not None and len(own) != self.vocabulary):
            found, where = config.vocab_size if own is None else len(own), folder or "the declared config"
            raise ConfigError(
                f"vocabulary mismatch: expected the suite's tokenizer of {self.vocabulary:,} entries, found {found:,} "
                f"in {where}; teacher and student must share one tokenizer (data.tokenizer.path may name it)"
            )
        if own is not None and self.suite.data.tokenizer.path is not None:
            models.check_entries(folder, own, self._saved_tokenizer.get_vocab())
        place = f"max_position_embeddings in {folder or 'the declared config'}"
        bounds.check_positions(config, self.suite.data.length, place)
        return config
