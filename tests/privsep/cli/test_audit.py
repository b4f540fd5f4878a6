"""`audit` against a made-up daemon, whose processes are ours to choose."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from privsep import audit as facts_of
from privsep.cli import audit, main
from privsep.config.model import Layer, Users
from privsep.sandbox.capabilities import mask

DONE, FAILED, USAGE, INVALID, UNREACHABLE = range(5)
USERS = {"worker": [61001, 61001], "keyd": [61002, 61002], "userspace": [61003, 61003]}


def answer(*processes: tuple[str, int], absent: tuple[str, ...] = (), **more: object) -> dict:
    listed = [{"name": name, "pid": pid} for name, pid in processes]
    return {"kind": "result", "code": 0, "text": "", "processes": listed, "users": USERS, "absent": absent, **more}


def as_designed(kind: facts_of.Kind, pid: int) -> facts_of.Facts:
    """What a process looks like that is confined as it should be."""
    want = facts_of.expected(kind, Users(**{name: tuple(ids) for name, ids in USERS.items()}), frozenset())
    thread = facts_of.Thread(
        uids=(want.uid,) * 4,
        gids=(want.gid,) * 4,
        groups=(),
        permitted=mask(want.permitted),
        effective=mask(want.effective),
        inheritable=0,
        ambient=0,
        bounding=mask(want.permitted),
        no_new_privs=1,
        seccomp=2,
    )
    return facts_of.Facts(
        pid=pid,
        threads=1,
        credentials=(thread,),
        dumpable=False,
        core_limit=0,
        landlock=7 if Layer.LANDLOCK in want.layers else None,
        root="/run/empty" if want.empty_root else "/",
        root_is_empty=want.empty_root,
        empty_network=Layer.NETNS in want.layers,
        locked_kb=4096 if Layer.MLOCK in want.layers else 0,
        descriptors={0: "/dev/null", 2: "pipe", 3: "socket", 4: "socket"},
    )


@pytest.fixture
def confined(monkeypatch):
    """Process 101 is the monitor, 102 the worker, 103 keyd; all as designed."""
    kinds = {101: facts_of.Kind.MONITOR, 102: facts_of.Kind.WORKER, 103: facts_of.Kind.KEYD}
    monkeypatch.setattr(audit, "inspect", lambda pid: as_designed(kinds[pid], pid))
    return answer(("monitor", 101), ("worker", 102), ("keyd", 103))


def test_processes_that_are_as_designed_pass(confined, daemon, run_dir, capsys):
    requests = daemon(confined)
    assert main(["audit", "--run-dir", str(run_dir)]) == DONE
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert requests == [{"command": "audit"}]
    assert [(line[0], line[1], line[2], " ".join(line[-2:])) for line in lines[1:]] == [
        ("monitor", "101", "0", "as designed"),
        ("worker", "102", "61001", "as designed"),
        ("keyd", "103", "61002", "as designed"),
    ]
    assert lines[2][3:8] == ["none", "filter", "v7", "empty", "empty"]


def test_the_document_names_capabilities_and_every_fact(confined, daemon, run_dir, capsys):
    daemon(confined)
    assert main(["audit", "--json", "--run-dir", str(run_dir)]) == DONE
    document = json.loads(capsys.readouterr().out)
    assert (document["schema_version"], document["absent"]) == (1, [])
    monitor, worker, keyd = document["processes"]
    assert (worker["name"], worker["pid"], worker["weaker"]) == ("worker", 102, [])
    assert worker["credentials"][0]["permitted"] == []
    assert keyd["credentials"][0]["permitted"] == ["CAP_IPC_LOCK"]
    assert monitor["credentials"][0]["effective"] == ["CAP_KILL", "CAP_NET_ADMIN"]
    assert {"uids", "gids", "groups", "seccomp", "no_new_privs"} <= worker["credentials"][0].keys()
    assert {"dumpable", "core_limit", "landlock", "root", "empty_network", "locked_kb", "descriptors"} <= worker.keys()


def test_a_process_that_does_not_run_is_mentioned(confined, daemon, run_dir, capsys):
    confined["processes"].pop(1)
    confined["absent"] = ["landlock"]
    daemon(confined)
    main(["audit", "--run-dir", str(run_dir)])
    printed = capsys.readouterr().out
    assert "worker is not running\n" in printed
    assert "named as absent by the configuration: landlock\n" in printed


def test_a_process_that_has_just_started_gets_time_to_confine_itself(confined, monkeypatch, capsys):
    answers, looks = [confined, confined], []
    unfinished = as_designed(facts_of.Kind.WORKER, 102)

    def inspect(pid):
        looks.append(pid)
        first = len(looks) <= 3
        kind = {101: facts_of.Kind.MONITOR, 102: facts_of.Kind.WORKER, 103: facts_of.Kind.KEYD}[pid]
        return dataclasses.replace(unfinished, root_is_empty=False) if first and pid == 102 else as_designed(kind, pid)

    monkeypatch.setattr(audit, "inspect", inspect)
    monkeypatch.setattr(audit, "ask", lambda *_, **__: answers.pop())
    assert main(["audit", "--run-dir", "unused"]) == DONE
    assert looks == [101, 102, 103] * 2
    assert "WEAKER" not in capsys.readouterr().out


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to look at processes")
def test_an_unconfined_process_is_found_weaker(daemon, run_dir, capsys, monkeypatch):
    monkeypatch.setattr(audit, "SETTLE_SECONDS", -1.0)
    printed = []
    script = "print('ready', flush=True); input()"
    words = [sys.executable, "-c", script]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as impostor:
        # an interpreter that still starts opens and closes files all the time
        assert impostor.stdout.readline() == b"ready\n"
        for words in ([], ["--json"]):
            daemon(answer(("worker", impostor.pid)))
            assert main(["audit", *words, "--run-dir", str(run_dir)]) == FAILED
            printed.append(capsys.readouterr().out)
            (run_dir / "control.sock").unlink()
        impostor.communicate(b"\n")
    assert "WEAKER" in printed[0]
    assert "worker: uid is (0, 0, 0, 0), designed is (61001, 61001, 61001, 61001)\n" in printed[0]
    weaker = {finding["what"] for finding in json.loads(printed[1])["processes"][0]["weaker"]}
    assert {"uid", "seccomp mode", "no_new_privs", "empty network namespace"} <= weaker


@pytest.mark.parametrize(
    "wrong",
    [
        {"processes": [{"name": "helper", "pid": 1}]},
        {"processes": [{"name": "worker"}]},
        {"processes": None},
        {"users": {}},
        {"users": []},
        {"absent": ["luck"]},
    ],
)
def test_an_answer_of_another_release_is_a_failure(cli, daemon, run_dir, wrong):
    daemon(answer() | wrong)
    done = cli("audit", "--run-dir", run_dir)
    assert done.returncode == FAILED
    assert done.stderr.startswith("audit: the daemon's answer is of another release")


def test_a_daemon_that_refuses_is_a_failure(cli, daemon, run_dir):
    daemon({"kind": "result", "code": 2, "text": "no such command"})
    done = cli("audit", "--run-dir", run_dir)
    assert (done.returncode, done.stderr) == (FAILED, "audit: no such command\n")
