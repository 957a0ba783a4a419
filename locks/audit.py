"""`make audit`: ask two databases of known holes about every locked version; say plainly where none could be asked.

python locks/audit.py locks/run.txt       with pip-audit installed; exit 0 none known, 1 holes, 2 nobody could be asked

pip-audit alone ends with "No known vulnerabilities found" where a database knows none of the packages, as a mirror of
the index without its advisories does. That is no answer, and is not taken for one here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

DATABASES = ("pypi", "osv")
COMMAND = [
    sys.executable,
    "-m",
    "pip_audit",
    "--require-hashes",
    "--disable-pip",
    "--progress-spinner=off",
    "--format=json",
]
NONE, HOLES, NOBODY = 0, 1, 2


def ask(lock: str, database: str) -> dict[str, Any] | None:
    """Return pip-audit's document; None where the database could not be reached."""
    ended = subprocess.run(  # noqa: S603 — our own interpreter and module
        [*COMMAND, f"--vulnerability-service={database}", "--requirement", lock], capture_output=True
    )
    try:
        return json.loads(ended.stdout)
    except ValueError:
        last = ended.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        print(f"{database}: not reached: {last[-1]:.200}")
        return None


def judge(document: dict[str, Any]) -> tuple[int, list[str]]:
    """Return the exit code that a database's answer means, and lines that say why."""
    asked = [one for one in document["dependencies"] if "skip_reason" not in one]
    unknown = len(document["dependencies"]) - len(asked)
    holes = [
        f"{one['name']} {one['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'no version yet'}"
        for one in asked
        for hole in one["vulns"]
    ]
    if holes:
        return HOLES, holes
    if not asked:
        return NOBODY, [f"knows none of the {unknown} packages, so it answers nothing"]
    left = f"; {unknown} packages are not known there" if unknown else ""
    return NONE, [f"no known holes in {len(asked)} packages{left}"]


def main(lock: str) -> int:
    """Ask one database after the other until one answers; return the exit code."""
    if find_spec("pip_audit") is None:
        print("audit: expected the package pip-audit beside this Python, found none; `make audit` installs it")
        return NOBODY
    for database in DATABASES:
        document = ask(lock, database)
        if document is not None:
            code, lines = judge(document)
            print("\n".join(f"{database}: {line}" for line in lines))
            if code != NOBODY:
                return code
    print(f"audit: nothing is known about {lock}: no database of holes could be asked from here; ask where one can be")
    return NOBODY


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
