"""The process in which one measurement runs: a job on stdin, its answer in a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.measure import guarded


def main() -> None:
    """Pin the threads, measure, answer."""
    job = json.load(sys.stdin)
    import torch

    torch.set_num_threads(job["threads"])
    found = guarded(job["function"], job["settings"], job["threads"])
    Path(job["answer"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
