"""The hot channel before lockdown."""

import os

from proc import thread_names

from privsep.rpc import Wire


def threads(name: str) -> int:
    """How many threads of this process have begun and bear that name."""
    return thread_names(os.getpid()).count(name)


def test_when_the_handshake_is_over_both_threads_of_zeromq_run(tmp_path):
    """A thread that begins after lockdown would end the process: the C library registers rseq in it."""
    for number in range(20):
        before = threads("ZMQbg/Reaper"), threads("ZMQbg/IO/0")
        keyd, worker = Wire(), Wire()
        keyd.bind(str(tmp_path / f"{number}.sock"), os.getuid())
        worker.connect(str(tmp_path / f"{number}.sock"))
        assert keyd.await_handshake(5)
        assert worker.await_handshake(5)
        assert (threads("ZMQbg/Reaper"), threads("ZMQbg/IO/0")) == (before[0] + 2, before[1] + 2)
        for wire in (keyd, worker):
            wire.context.destroy()
