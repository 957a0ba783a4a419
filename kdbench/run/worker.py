"""A warm worker process: takes jobs as JSON lines on stdin, tells events as JSON lines on stdout.

Imports and CUDA start once; many jobs follow. It ends when stdin closes, so it never outlives its parent; everything
that libraries print goes to its log, never into the protocol.
"""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from kdbench.run.store import Store
    from kdbench.run.work import Hooks

from kdbench import failpoints, signals


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
    faulthandler.register(signal.SIGUSR1)  # the parent asks where we stand before it ends us as hung
    signals.leave_to_parent()
    outward = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    link = Link(outward)
    threading.Thread(target=link.listen, daemon=True).start()

    store = prepare(settings)
    link.tell({"event": "ready"})
    while True:
        link.tell(serve(store, link.jobs.get(), link.tell, lambda: link.stop_code))


def prepare(settings: dict[str, Any]) -> Store:
    """Make this process ready for jobs, once: threads, determinism, objectives; return the store.

    Args:
        settings: store, threads, objective folders.
    """
    import torch

    torch.set_num_threads(settings["threads"])
    torch.set_num_interop_threads(1)
    if torch.cuda.is_available():  # on a CPU with pinned threads the operations used are deterministic as they are
        torch.use_deterministic_algorithms(True, warn_only=True)
    from kdbench import registry
    from kdbench.run.store import Store

    for folder in settings["folders"]:
        registry.use_folder(Path(folder))
    for reason in registry.broken():
        print(f"left out: {reason}", file=sys.stderr)
    return Store(Path(settings["store"]))


def serve(
    store: Store, job: dict[str, Any], tell: Callable[[dict[str, Any]], None], should_stop: Callable[[], int]
) -> dict[str, Any]:
    """Run one job and return how it ended, as an event."""
    from kdbench.distill import memory, models
    from kdbench.run.work import Hooks

    models.allow_tf32(job["inputs"])
    ended = _serve(store, job, Hooks(tell, should_stop))
    if ended["event"] == "failed":
        memory.give_back()  # what the frames that failed held: the next job may need the room
    return ended


def _serve(store: Store, job: dict[str, Any], hooks: Hooks) -> dict[str, Any]:
    from kdbench.errors import Interrupted, KdbenchError
    from kdbench.run.cell import Damaged, execute
    from kdbench.run.locks import Busy

    try:
        return {"event": "finished", "done": execute(store, job, hooks)}
    except Damaged as error:
        return {"event": "failed", "message": str(error), "exit_code": error.exit_code, "damaged": error.need}
    except Busy as error:
        return {"event": "busy", "message": str(error)}
    except Interrupted as error:
        return {"event": "interrupted", "message": str(error)}
    except KdbenchError as error:
        return {"event": "failed", "message": str(error), "exit_code": error.exit_code}
    except Exception as error:
        traceback.print_exc()
        told = {"event": "failed", "message": f"{type(error).__name__}: {error}", "exit_code": 1}
        return told | {"trace": traceback.format_exc()}


if __name__ == "__main__":
    main()
