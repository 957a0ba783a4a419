"""The rules of the conformance suite; `kdbench.testing` runs them."""

from kdbench.checks import behaviour, maths  # noqa: F401 — importing them fills CHECKS
from kdbench.checks.cases import CHECKS, Broken
from kdbench.checks.declared import exemptions

__all__ = ["CHECKS", "Broken", "exemptions"]
