"""A warm worker process: takes jobs as JSON lines on stdin, tells events as JSON lines on stdout.

Imports and CUDA start once; many jobs follow. It ends when stdin closes, so it never outlives its parent; everything
that libraries print goes to its log, never into the protocol.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

from kdbench import failpoints


class Link:
    """The worker's end of the pipe."""

    def __init__(self, outward: TextIO):
        self.outward = outward
        self.jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        self.stop_code = 0

    def listen(self) -> None:
        """Read commands for ever; runs in a thread of its own."""
        for line in sys.stdin:
            command = json.loads(line)
            if "stop" in command:
                self.stop_code = command["stop"]
            else:
                self.jobs.put(command)
        os._exit(0)  # the parent is gone; files are safe at any moment

    def tell(self, event: dict[str, Any]) -> None:
        """Send one event."""
        self.outward.write(json.dumps(event, allow_nan=False) + "\n")
        self.outward.flush()


def main() -> None:
    """Serve jobs until stdin closes. argv: one JSON object with store, threads, objective folders."""
    settings = json.loads(sys.argv[1])
    failpoints.arm_from_environment()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; it tells us to stop
    outward = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    link = Link(outward)
    threading.Thread(target=link.listen, daemon=True).start()

    import torch

    torch.set_num_threads(settings["threads"])
    torch.set_num_interop_threads(1)
    if torch.cuda.is_available():  # on a CPU with pinned threads the operations used are deterministic as they are
        torch.use_deterministic_algorithms(True, warn_only=True)
    from kdbench import registry
    from kdbench.run.cell import execute
    from kdbench.run.store import Store
    from kdbench.run.work import Hooks

    for folder in settings["folders"]:
        registry.use_folder(Path(folder))
    registry.objectives()
    store = Store(Path(settings["store"]))
    link.tell({"event": "ready"})
    while True:
        job = link.jobs.get()
        link.tell(_serve(store, job, Hooks(link.tell, lambda: link.stop_code), execute))


def _serve(store: Any, job: dict[str, Any], hooks: Any, execute: Any) -> dict[str, Any]:
    """Run one job and say how it ended."""
    from kdbench.errors import Interrupted, KdbenchError
    from kdbench.run.store import Busy

    try:
        return {"event": "finished", "done": execute(store, job, hooks)}
    except Busy as error:
        return {"event": "busy", "message": str(error)}
    except Interrupted as error:
        return {"event": "interrupted", "message": str(error)}
    except KdbenchError as error:
        return {"event": "failed", "message": str(error), "exit_code": error.exit_code}
    except Exception as error:
        traceback.print_exc()
        return {"event": "failed", "message": f"{type(error).__name__}: {error}", "exit_code": 1}


if __name__ == "__main__":
    main()
