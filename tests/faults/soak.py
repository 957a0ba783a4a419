"""A soak: hundreds of tiny cells, and a SIGKILL every few seconds until all are done; then every byte is compared.

python -m tests.faults.soak --cells 300 --kill-every 8

Mostly a worker is killed, now and then the whole run, which is then started again. At the end every file of every
entry must be that of a run to which nothing happened, no process may be left over, and the memory and the file handles
of the run's own process must have stayed flat.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from kdbench.run.store import KINDS, Store
from tests.conftest import sentences
from tests.faults.house import files_of

SUITE = """\
name: soak
question: Is anything lost, different or left over?
data:
  corpus: {{folder: {corpus}, files: "*.txt"}}
  tokenizer: {{bpe: 300}}
  length: 32
  tokens: 2048
models:
  small:
    init: {{architecture: opt, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1, ffn_dim: 16}}
  big:
    init: {{architecture: opt, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, ffn_dim: 32}}
    pretrain: {{tokens: 2048, lr: 1e-2, batch_tokens: 512}}
students: [small]
teachers: [big]
objectives:
- sft
- kl
- reverse_kl+atkd
- taid
- {{name: distillm, phi: 0.9, capacity: 12, fresh: 0.5, label: replay}}
seeds: {seeds}
train: {{steps: 150, batch_tokens: 128, lr: 1e-2, checkpoint_steps: 15}}
examine: {{tasks: [swap], items: 20, batch_size: 8, intrinsic_tokens: 64}}
compare: {{baseline: kl, tasks: [swap]}}
device: cpu
"""
ARMS = 6  # the five objectives and the untouched student; the teacher's own cell comes once
PARENT_SHARE = 1 / 12  # of the kills hit the whole run
WARM_S, LEAST_S = 45.0, 30.0  # until everything is imported; the shortest life whose slope means something
WORKER_MIB_A_MINUTE = 12.0  # some forty cells: a model, its moments and its text, were they kept, would be as much
MIB_A_MINUTE, HANDLES_A_MINUTE = 4.0, 1.0  # a leak of 64 KiB a cell, or of one pipe a killed worker, is more
GONE_S = 20.0  # in which a worker must notice that its parent is dead, even while it imports torch
MARK = "kdbench.run.worker"
ENDS = (0, 3)  # done, or some cell's worker was killed three times, after which the next run makes it


@dataclass
class Life:
    """What was measured of one process of `kdbench run`: seconds since its start, bytes in memory, open handles."""

    seconds: list[float] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)
    handles: list[int] = field(default_factory=list)

    def look(self, process: psutil.Process) -> None:
        """Add a sample."""
        with process.oneshot():
            rss, handles = process.memory_info().rss, process.num_fds()
        self.seconds.append(time.time() - process.create_time())
        self.rss.append(rss)
        self.handles.append(handles)

    def slopes(self) -> tuple[float, float] | None:
        """Return MiB and handles a minute once it was warm (Theil-Sen); None where it did not live long enough."""
        from scipy.stats import theilslopes

        warm = [index for index, second in enumerate(self.seconds) if second >= WARM_S]
        if len(warm) < 10 or self.seconds[warm[-1]] - self.seconds[warm[0]] < LEAST_S:
            return None
        minutes = [self.seconds[index] / 60 for index in warm]
        mib, handles = ([values[index] for index in warm] for values in (self.rss, self.handles))
        return theilslopes(mib, minutes).slope / 2**20, theilslopes(handles, minutes).slope


@dataclass
class Soaked:
    """What was done to a store, and what was found at its end.

    Attributes:
        lives: of every process of `kdbench run`, in turn.
        workers: of the undisturbed run's workers, which make one cell after another.
        left_over: processes that outlived their parent.
        different: files that differ from those of the undisturbed run, or are there on one side only.
        exit_codes: of the runs that ended by themselves.
    """

    cells: int
    workers_killed: int = 0
    parents_killed: int = 0
    lives: list[Life] = field(default_factory=list)
    workers: list[Life] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    entries: int = 0
    files: int = 0
    different: list[str] = field(default_factory=list)

    @property
    def slopes(self) -> list[tuple[float, float]]:
        """MiB and handles a minute of each run that lived long enough."""
        return [found for life in self.lives if (found := life.slopes()) is not None]

    @property
    def worker_slopes(self) -> list[tuple[float, float]]:
        """The same of workers."""
        return [found for life in self.workers if (found := life.slopes()) is not None]

    def problems(self) -> list[str]:
        """Return what breaks the promise, each as a sentence."""
        found = [f"{name} is not what an undisturbed run makes" for name in self.different]
        found += [f"a process outlived its parent: {name}" for name in self.left_over]
        for who, most, slopes in (
            ("the run", MIB_A_MINUTE, self.slopes),
            ("a worker", WORKER_MIB_A_MINUTE, self.worker_slopes),
        ):
            for mib, handles in slopes:
                if mib > most:
                    found.append(f"{who}'s memory grew by {mib:.1f} MiB a minute")
                if handles > HANDLES_A_MINUTE:
                    found.append(f"{who}'s open handles grew by {handles:.1f} a minute")
        return found

    def __str__(self) -> str:
        """What was killed, how often, what was equal."""
        ends = ", ".join(map(str, self.exit_codes))
        lines = [
            f"killed: {self.workers_killed} workers, {self.parents_killed} whole runs; {len(self.lives)} runs in all, "
            f"{len(self.exit_codes)} ended by themselves (exit codes {ends})",
            f"equal: {self.files - len(self.different)} of {self.files} files of {self.entries} entries, among them "
            f"{self.cells} cells",
            f"left over: {len(self.left_over)} processes",
        ]
        for who, slopes in (("the run's own process", self.slopes), ("an undisturbed worker", self.worker_slopes)):
            for mib, handles in slopes:
                lines.append(f"{who}: {mib:+.2f} MiB and {handles:+.2f} handles a minute once warm")
        peak = max((max(life.rss, default=0) for life in self.lives), default=0)
        most = max((max(life.handles, default=0) for life in self.lives), default=0)
        return "\n".join([*lines, f"at most: {peak / 2**20:,.0f} MiB, {most} handles"])


def write_suite(folder: Path, cells: int) -> Path:
    """Write the suite and its text; it has `cells` cells, rounded up to whole seeds, and the teacher's."""
    for index in range(20):
        rng = random.Random(index)
        text = "\n\n".join(sentences(rng, 12) for _ in range(4))
        path = folder / "corpus" / f"doc-{index:02d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    suite = folder / "soak.yaml"
    seeds = list(range(max(2, -(-cells // ARMS))))
    suite.write_text(SUITE.format(corpus=folder / "corpus", seeds=seeds), encoding="utf-8")
    return suite


def start(suite: Path, results: Path, workers: int) -> subprocess.Popen:
    """Start `kdbench run` as a user does; what it says goes to a log beside the results."""
    command = [sys.executable, "-m", "kdbench.cli", "run", str(suite), "--results-dir", str(results), "--no-mlflow"]
    with open(results.with_suffix(".log"), "ab") as log:
        return subprocess.Popen([*command, f"--workers={workers}"], stdout=log, stderr=log)


def workers_of(results: Path) -> list[psutil.Process]:
    """Return every worker process of a store, whoever its parent is."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
            if MARK in line and str(results) in line[-1] and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_something(run: subprocess.Popen, results: Path, rng: random.Random, soaked: Soaked) -> None:
    """Kill one worker, or now and then the run itself, after which no worker may live on."""
    if rng.random() < PARENT_SHARE:
        run.kill()
        run.wait()
        soaked.parents_killed += 1
        _, alive = psutil.wait_procs(workers_of(results), timeout=GONE_S)
        soaked.left_over += [" ".join(process.cmdline()) for process in alive]
    elif victims := workers_of(results):
        victim = rng.choice(sorted(victims, key=lambda process: process.pid))
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        soaked.workers_killed += 1


def disturb(suite: Path, results: Path, workers: int, kill_every_s: float, rng: random.Random, soaked: Soaked,
            until: float) -> None:  # fmt: skip
    """Run the suite, kill, and start it again, until a run ends by itself with everything made."""
    while not soaked.exit_codes or soaked.exit_codes[-1] != 0:
        say(f"run {len(soaked.lives) + 1}: {finished(results)} cells are done, {soaked.workers_killed} workers killed")
        run, life = start(suite, results, workers), Life()
        soaked.lives.append(life)
        next_kill = time.monotonic() + rng.expovariate(1 / kill_every_s)
        while run.poll() is None:
            if time.monotonic() > until:
                run.kill()
                raise TimeoutError(f"not done in time\n{soaked}")
            try:
                life.look(psutil.Process(run.pid))
            except psutil.Error:
                break  # it has just ended
            if time.monotonic() >= next_kill:
                kill_something(run, results, rng, soaked)
                next_kill = time.monotonic() + rng.expovariate(1 / kill_every_s)
            time.sleep(0.5)
        if run.wait() >= 0:  # else it was killed
            soaked.exit_codes.append(run.returncode)
            if run.returncode not in ENDS:
                raise RuntimeError(results.with_suffix(".log").read_text(encoding="utf-8")[-4000:])
            _, alive = psutil.wait_procs(workers_of(results), timeout=GONE_S)
            soaked.left_over += [" ".join(process.cmdline()) for process in alive]


def watch(run: subprocess.Popen, results: Path, soaked: Soaked, until: float) -> None:
    """Let a run come to its end, and look at its workers' memory and handles meanwhile."""
    lives: dict[int, Life] = {}
    while run.poll() is None:
        if time.monotonic() > until:
            run.kill()
            raise TimeoutError(f"the undisturbed run was not done in time; {finished(results)} cells are")
        for worker in workers_of(results):
            with suppress(psutil.Error):  # it may just have ended
                lives.setdefault(worker.pid, Life()).look(worker)
        time.sleep(1)
    if run.returncode:
        raise RuntimeError(results.with_suffix(".log").read_text(encoding="utf-8"))
    soaked.workers += lives.values()


def say(text: str) -> None:
    """Show how far it has come."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def finished(results: Path) -> int:
    """Return how many cells are complete."""
    return len(list(results.glob("cells/*/DONE.json")))


def products(results: Path) -> dict[str, dict[str, str]]:
    """Return kind/key → file → sha256 of every entry, each of which must be complete."""
    store = Store(results)
    keys = [(kind, path.name) for kind in KINDS for path in sorted((results / kind).glob("[!.]*"))]
    return {f"{kind}/{key}": files_of(store.entry(kind, key)) for kind, key in keys}


def compare(soaked: Soaked, disturbed: Path, undisturbed: Path) -> None:
    """Note which files of the two stores differ."""
    found, expected = products(disturbed), products(undisturbed)
    for name in sorted({*found, *expected}):
        ours, theirs = found.get(name, {}), expected.get(name, {})
        soaked.different += [f"{name}/{one}" for one in sorted({*ours, *theirs}) if ours.get(one) != theirs.get(one)]
    soaked.entries = len(expected)
    soaked.files = sum(map(len, expected.values()))
    soaked.cells = sum(name.startswith("cells/") for name in expected)


def soak(
    folder: Path, cells: int, kill_every_s: float, workers: int = 2, seed: int = 0, limit_s: float = 3600
) -> Soaked:
    """Run a suite undisturbed, run it again under kills, and compare.

    Raises:
        TimeoutError: it was not done within `limit_s`; what was done by then is said.
    """
    suite, soaked = write_suite(folder, cells), Soaked(cells)
    until = time.monotonic() + limit_s
    say(f"{cells} cells, first undisturbed")
    watch(start(suite, folder / "undisturbed", workers), folder / "undisturbed", soaked, until)
    disturb(suite, folder / "disturbed", workers, kill_every_s, random.Random(seed), soaked, until)
    compare(soaked, folder / "disturbed", folder / "undisturbed")
    return soaked


def main() -> None:
    """Soak and print what was killed, how often, and what was equal; exit 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=300)
    parser.add_argument("--kill-every", type=float, default=8.0, metavar="SECONDS", help="on average")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the victims")
    parser.add_argument("--limit", type=float, default=3600.0, metavar="SECONDS", help="after which it has failed")
    asked = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder), asked.cells, asked.kill_every, asked.workers, asked.seed, asked.limit)
    print(f"{found}\nseconds: {time.monotonic() - began:.0f}")
    for problem in found.problems():
        print(f"broken: {problem}")
    sys.exit(bool(found.problems()))


if __name__ == "__main__":
    main()
