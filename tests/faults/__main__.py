"""`make faults`: run the marked tests of all tiers and print the table. Options of pytest may follow."""

from __future__ import annotations

import sys

import pytest

from tests.faults.table import Plugin

if __name__ == "__main__":
    options = sys.argv[1:]
    write = "--write" in options
    rest = [option for option in options if option != "--write"]
    sys.exit(pytest.main(["-m", "fault", "tests", *rest], plugins=[Plugin(write)]))
