"""Run a piece of Python in a process of its own that confines itself first."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

USER = 64701

PRELUDE = """
import ctypes, errno, mmap, os, resource, select, signal, socket, sys, threading, time
import prctl
import keyd.sandbox, monitor.sandbox, monitor.userspace.sandbox, worker.sandbox
from privsep.config.model import Layer
from privsep.sandbox import capabilities, confine, interpreter, landlock, memory, namespaces, seccomp, status, system
from privsep.sandbox.errors import SandboxError
from privsep.sandbox.policy import INTERPRETER, SOFT_REFUSALS

libc = ctypes.CDLL(None, use_errno=True)
ROOT, WORKPLACE, USER = sys.argv[1], sys.argv[2], int(sys.argv[3])
POLICIES = {
    "worker": worker.sandbox.confinement,
    "keyd": keyd.sandbox.confinement,
    "esp": monitor.userspace.sandbox.confinement,
}

def policy(name, absent=frozenset(), *sockets):
    if name == "monitor":
        return monitor.sandbox.confinement(0, 0, "/", absent)
    return POLICIES[name](USER, USER, ROOT, absent, *sockets)

def call(number, *arguments):
    return libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments))

def become(name, workplace=None):
    confine.begin()
    confine.become_user(policy(name), workplace)

def lock(name, *sockets):
    confine.lock_down(policy(name, frozenset(), *sockets))

def confine_as(name, *sockets):
    become(name)
    lock(name, *sockets)
"""


@dataclass(frozen=True)
class Sandbox:
    root: Path
    workplace: Path

    def run(self, code: str, *, timeout: float = 20) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-I", "-B", "-c", PRELUDE + code, str(self.root), str(self.workplace), str(USER)],
            capture_output=True,
            text=True,
            env={},
            timeout=timeout,
            check=False,
        )

    def output(self, code: str) -> str:
        """What it prints; it must end well."""
        result = self.run(code)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    root, workplace = tmp_path / "empty", tmp_path / "workplace"
    tmp_path.chmod(0o755)  # as RUN_DIR is: the user goes from it into the workplace
    root.mkdir(mode=0o555)
    workplace.mkdir(mode=0o700)
    os.chown(workplace, USER, USER)
    return Sandbox(root, workplace)
