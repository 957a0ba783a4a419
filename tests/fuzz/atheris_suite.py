"""Coverage-guided fuzzing of the suite loader and of plans: bytes in, a suite or one clear error out.

make fuzz SECONDS=600      atheris is in no extra, since it has wheels for some systems only

Options of `python -m tests.fuzz.atheris_suite` are libFuzzer's. What it finds is written to crash-*
in the working folder; make a test of it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kdbench.suite", "ruamel.yaml"]):
    from kdbench.suite import loader
    from kdbench.suite.schema import Suite

import contextlib

from kdbench import registry
from kdbench.errors import KdbenchError

HOME = Path(tempfile.mkdtemp())
SUITES = Path(__file__).parent.parent.parent / "suites"


def one_input(data: bytes) -> None:
    """Read bytes as a suite's file, and as the value of a `--set`."""
    path = HOME / "fuzz.yaml"
    path.write_bytes(data)
    with contextlib.suppress(KdbenchError):
        loader.validate(Suite, loader.parse(path))
    with contextlib.suppress(KdbenchError):
        loader.override(loader.Parsed(path, {}, {}), [f"train.steps={data.decode('utf-8', 'replace')}"])


def main() -> None:
    """Start from the suites that come with kdbench."""
    corpus = HOME / "corpus"
    corpus.mkdir()
    for suite in SUITES.glob("*.yaml"):
        (corpus / suite.name).write_bytes(suite.read_bytes())
    registry.objectives()
    atheris.Setup([*sys.argv, str(corpus)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
