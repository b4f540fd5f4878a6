"""A network of the test's own: fixed addresses and ports in it are nobody else's, in whatever runs beside."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def own_network() -> Iterator[None]:
    """This thread, and whatever it starts, is in a new network that has a loopback device only."""
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        assert _LIBC.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        subprocess.run(("ip", "link", "set", "lo", "up"), check=True)
        yield
    finally:
        assert _LIBC.setns(before, CLONE_NEWNET) == 0
        os.close(before)
