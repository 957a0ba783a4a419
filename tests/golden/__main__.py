"""Write the golden trajectory anew; see `tests.golden` for when that may be done."""

from __future__ import annotations

import json

import torch

from tests.golden import FILE, facts, trajectories

torch.set_num_threads(1)
FILE.write_text(json.dumps({"facts": facts(), "trajectories": trajectories()}, indent=1) + "\n", encoding="utf-8")
print(f"{FILE}: written; name the change in CHANGELOG.md under [Results]")
