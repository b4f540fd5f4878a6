"""The audit against live processes: the designed one passes, every loosening is named."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from privsep.audit import AuditError, Kind, inspect, judge
from privsep.config.model import Layer, Users

pytestmark = pytest.mark.root

USERS = Users(worker=(64721, 64721), keyd=(64722, 64722), userspace=(64723, 64723))

CODE = """
import os, socket, sys, threading, time
import prctl
import keyd.sandbox, monitor.sandbox, monitor.userspace.sandbox, worker.sandbox
from privsep.config.model import Layer
from privsep.sandbox import confine, seccomp, status, capabilities, identity, memory
KIND, ROOT, USER = sys.argv[1], sys.argv[2], int(sys.argv[3])
make = {
    "worker": worker.sandbox, "keyd": keyd.sandbox, "userspace": monitor.userspace.sandbox, "monitor": monitor.sandbox,
}[KIND].confinement
c = make(USER, USER, ROOT, frozenset())
BEFORE
CONFINE
AFTER
print("ready", flush=True)
sys.stdin.read()
"""

PROPER = """
if KIND != "monitor":
    confine.begin()
confine.become_user(c)
confine.lock_down(c)
"""


@pytest.fixture
def facts_of(tmp_path: Path):
    """Start a process of a kind, look at it, end it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    root = tmp_path / "empty"
    root.mkdir(mode=0o555)

    def look(kind: Kind, *, confine: str = PROPER, before: str = "", after: str = ""):
        uid = 0 if kind is Kind.MONITOR else getattr(USERS, kind.value)[0]
        code = CODE.replace("BEFORE", before).replace("CONFINE", confine).replace("AFTER", after)
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", code, kind.value, "/" if kind is Kind.MONITOR else str(root), str(uid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={},
        )
        if process.stdout.readline() != "ready\n":
            pytest.fail(process.communicate()[1])
        try:
            return inspect(process.pid)
        finally:
            process.communicate()

    return look


def weak(kind: Kind, facts, absent=frozenset()) -> set[str]:
    return {finding.what for finding in judge(kind, facts, USERS, absent)}


@pytest.mark.parametrize("kind", Kind)
def test_a_process_as_designed_has_no_weakness(facts_of, kind):
    assert judge(kind, facts_of(kind), USERS, frozenset()) == ()


def test_facts_and_findings_go_into_json(facts_of):
    facts = facts_of(Kind.WORKER)
    text = json.dumps(
        [dataclasses.asdict(facts), *map(dataclasses.asdict, judge(Kind.KEYD, facts, USERS, frozenset()))]
    )
    assert '"landlock"' in text


def test_an_unconfined_process_is_weak_in_everything(facts_of):
    found = weak(Kind.KEYD, facts_of(Kind.KEYD, confine=""))
    assert found >= {
        "uid",
        "gid",
        "no_new_privs",
        "seccomp mode",
        "permitted capabilities",
        "effective capabilities",
        "bounding capabilities",
        "dumpable",
        "root",
        "Landlock (reported)",
        "empty network namespace",
        "locked memory, KB",
    }


HALF = "confine.begin()\nconfine.become_user(c)\n"
LOOSENINGS = {
    "seccomp mode": {"confine": HALF},
    "dumpable": {"confine": HALF, "after": "prctl.set_dumpable(1)\nconfine.lock_down(c)"},
    "descriptor 40": {"before": "os.dup2(os.open('/', os.O_RDONLY), 40); os.close(3)"},
    "Landlock (reported)": {"before": "c = make(USER, USER, ROOT, frozenset({Layer.LANDLOCK}))"},
    "empty network namespace": {"before": "c = make(USER, USER, ROOT, frozenset({Layer.NETNS}))"},
    "locked memory, KB": {"before": "c = make(USER, USER, ROOT, frozenset({Layer.MLOCK}))"},
}


@pytest.mark.parametrize(("what", "change"), LOOSENINGS.items(), ids=LOOSENINGS)
def test_each_loosening_is_named(facts_of, what, change):
    assert weak(Kind.KEYD, facts_of(Kind.KEYD, **change)) == {what}


@pytest.mark.parametrize("layer", Layer)
def test_a_layer_that_the_configuration_names_is_not_missed(facts_of, layer):
    absent = frozenset({layer})
    facts = facts_of(Kind.KEYD, before=f"c = make(USER, USER, ROOT, frozenset({{Layer({layer.value!r})}}))")
    assert judge(Kind.KEYD, facts, USERS, absent) == ()


def test_a_single_thread_that_kept_more_is_found(facts_of):
    """Capabilities and filters belong to threads."""
    kept = """
import dataclasses
stop = threading.Event()
confine.memory.hide()
thread = threading.Thread(target=stop.wait, daemon=True)
thread.start()
confine._read = lambda fd: dataclasses.replace(status.parse(os.pread(fd, 65536, 0).decode()), threads=1)
"""
    facts = facts_of(Kind.WORKER, before=kept, confine="confine.become_user(c)\nprctl.set_dumpable(0)")
    assert len(facts.credentials) == 2
    assert weak(Kind.WORKER, facts) >= {"bounding capabilities", "no_new_privs"}


def test_a_monitor_that_can_be_traced_is_weak(facts_of):
    """It is root's anyway, so the owner of its /proc entry says nothing."""
    facts = facts_of(Kind.MONITOR, confine="confine.become_user(c)\nprctl.set_dumpable(1)\nconfine.lock_down(c)")
    assert weak(Kind.MONITOR, facts) == {"dumpable"}


def test_a_process_that_is_gone_is_an_error():
    with pytest.raises(AuditError, match="cannot be inspected"):
        inspect(2**22 + 1)
