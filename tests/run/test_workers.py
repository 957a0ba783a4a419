"""The pool of workers, signalled at the worst moment.

python -m pytest tests/run/test_workers.py
"""

from __future__ import annotations

import signal

import pytest

from kdbench.errors import Interrupted
from kdbench.run.workers import Pool


class Pipe:
    """A worker whose pipe is being written to when the signal comes, as a buffered writer behaves."""

    number, ready, job = 0, True, None

    def __init__(self):
        self.sent, self.busy, self.pool = [], False, None

    def send(self, message):
        assert not self.busy, "reentrant call inside a buffered writer"
        self.busy = True
        if "stop" not in message:
            self.pool._on_signal(signal.SIGTERM)
        self.busy = False
        self.sent.append(message)


def test_a_signal_while_a_job_is_being_sent_is_passed_on_afterwards(tmp_path):
    from kdbench.run.store import Store

    pool, pipe = Pool(Store(tmp_path), 1, 1, (), ()), Pipe()
    pool.workers, pipe.pool = [pipe], pool
    pipe.send({"kind": "cells"})
    assert pool.stop_code == 143 and pipe.sent == [{"kind": "cells"}]
    pool._pass_on()
    pool._pass_on()
    pool.grace.cancel()  # it would kill the pipe in the midst of another test
    assert pipe.sent == [{"kind": "cells"}, {"stop": 143}]


@pytest.mark.fault("B2", "a second SIGINT: at once")
def test_a_second_signal_ends_the_workers_at_once(tmp_path):
    from kdbench.run.store import Store

    killed = []

    class Process:
        def kill(self):
            killed.append(1)

    pool, pipe = Pool(Store(tmp_path), 1, 1, (), ()), Pipe()
    pipe.process = Process()
    pool.workers = [pipe]
    pool._on_signal(signal.SIGINT)
    with pytest.raises(Interrupted) as stopped:
        pool._on_signal(signal.SIGINT)
    assert killed == [1] and stopped.value.exit_code == 130
