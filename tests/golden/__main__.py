"""Write the golden trajectory anew; see `tests.golden` for when that may be done."""

from __future__ import annotations

import json

import torch

from tests.golden import facts, path_of, trajectories

torch.set_num_threads(1)
here = facts()
path_of(here["cpu_capability"]).write_text(
    json.dumps({"facts": here, "trajectories": trajectories()}, indent=1) + "\n", encoding="utf-8"
)
print(f"{path_of(here['cpu_capability'])}: written; name the change in CHANGELOG.md under [Results]")
