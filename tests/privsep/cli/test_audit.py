"""`audit` against a made-up daemon, whose processes are ours to choose."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from privsep.audit import Kind, expected
from privsep.cli import audit, main
from privsep.config.model import Layer, Users
from privsep.procfs import AuditError, Facts, Thread
from privsep.sandbox.capabilities import mask

DONE, FAILED, USAGE, INVALID, UNREACHABLE = range(5)
USERS = {"worker": [61001, 61001], "keyd": [61002, 61002], "userspace": [61003, 61003]}


def answer(*processes: tuple[str, int], absent: tuple[str, ...] = (), **more: object) -> dict:
    listed = [{"name": name, "pid": pid} for name, pid in processes]
    return {"kind": "result", "code": 0, "text": "", "processes": listed, "users": USERS, "absent": absent, **more}


def as_designed(kind: Kind, pid: int) -> Facts:
    """What a process looks like that is confined as it should be; the monitor is 101."""
    want = expected(kind, Users(**{name: tuple(ids) for name, ids in USERS.items()}), frozenset())
    child = kind is not Kind.MONITOR
    thread = Thread(
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
        filters=2 if child else 1,
    )
    return Facts(
        pid=pid,
        parent=101 if child else 1,
        session=pid,
        command=want.command.replace("( N)+", " N N"),
        environment=0,
        threads=want.threads,
        credentials=(thread,),
        dumpable=False,
        limits=want.limits,
        landlock=7 if Layer.LANDLOCK in want.layers else None,
        root="/run/empty" if child else "/",
        root_is_empty=child,
        network=f"net:[{pid}]",
        empty_network=child,
        locked_kb=4096 if Layer.MLOCK in want.layers else 0,
        libraries=(),
        descriptors={0: "/dev/null", 2: "pipe", 3: "unix"},
    )


@pytest.fixture
def confined(monkeypatch):
    """Process 101 is the monitor, 102 the worker, 103 keyd; all as designed."""
    kinds = {101: Kind.MONITOR, 102: Kind.WORKER, 103: Kind.KEYD}
    monkeypatch.setattr(audit, "inspect", lambda pid, _: as_designed(kinds[pid], pid))
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
    assert {field.name for field in dataclasses.fields(Facts)} <= worker.keys()
    assert worker["limits"]["nofile"] == 4
    assert document["missing"] == []


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_process_that_does_not_run_is_a_failure(confined, daemon, run_dir, capsys, monkeypatch, missing):
    monkeypatch.setattr(audit, "SETTLE_SECONDS", -1.0)
    name = confined["processes"].pop(missing)["name"]
    daemon(confined)
    assert main(["audit", "--json", "--run-dir", str(run_dir)]) == FAILED
    assert json.loads(capsys.readouterr().out)["missing"] == [name]
    (run_dir / "control.sock").unlink()
    daemon(confined)
    assert main(["audit", "--run-dir", str(run_dir)]) == FAILED
    printed = capsys.readouterr().out
    assert f"{name} is not running\n" in printed
    assert "WEAKER" not in printed


def test_what_the_configuration_names_as_absent_is_mentioned(confined, daemon, run_dir, capsys):
    daemon(confined | {"absent": ["landlock"]})
    assert main(["audit", "--run-dir", str(run_dir)]) == DONE
    assert "named as absent by the configuration: landlock\n" in capsys.readouterr().out


def test_processes_are_judged_beside_each_other(confined, daemon, run_dir, capsys, monkeypatch):
    monkeypatch.setattr(audit, "SETTLE_SECONDS", -1.0)
    orphan = dataclasses.replace(as_designed(Kind.WORKER, 102), parent=1)
    inspect = audit.inspect
    monkeypatch.setattr(audit, "inspect", lambda pid, monitor: orphan if pid == 102 else inspect(pid, monitor))
    daemon(confined)
    assert main(["audit", "--run-dir", str(run_dir)]) == FAILED
    printed = capsys.readouterr().out
    assert "worker: parent is 1, designed is 101\n" in printed
    assert printed.count("WEAKER") == 1


def test_a_process_that_has_just_started_gets_time_to_confine_itself(confined, monkeypatch, capsys):
    answers, looks = [confined, confined], []
    unfinished = as_designed(Kind.WORKER, 102)

    def inspect(pid, _):
        looks.append(pid)
        first = len(looks) <= 3
        kind = {101: Kind.MONITOR, 102: Kind.WORKER, 103: Kind.KEYD}[pid]
        return dataclasses.replace(unfinished, root_is_empty=False) if first and pid == 102 else as_designed(kind, pid)

    monkeypatch.setattr(audit, "inspect", inspect)
    monkeypatch.setattr(audit, "ask", lambda *_, **__: answers.pop())
    assert main(["audit", "--run-dir", "unused"]) == DONE
    assert looks == [101, 102, 103] * 2
    assert "WEAKER" not in capsys.readouterr().out


def test_a_process_that_ends_meanwhile_is_looked_for_again(confined, monkeypatch, capsys):
    answers, gone = [confined, answer(("monitor", 101), ("worker", 104), ("keyd", 103))], []
    kinds = {101: Kind.MONITOR, 102: Kind.WORKER, 103: Kind.KEYD}

    def inspect(pid, _):
        if pid not in kinds:
            gone.append(pid)
            raise AuditError(f"process {pid} cannot be inspected: gone")
        return as_designed(kinds[pid], pid)

    monkeypatch.setattr(audit, "inspect", inspect)
    monkeypatch.setattr(audit, "ask", lambda *_, **__: answers.pop())
    assert main(["audit", "--run-dir", "unused"]) == DONE
    assert gone == [104]
    # not for ever
    monkeypatch.setattr(audit, "SETTLE_SECONDS", -1.0)
    monkeypatch.setattr(audit, "ask", lambda *_, **__: answer(("monitor", 101), ("worker", 104), ("keyd", 103)))
    assert main(["audit", "--run-dir", "unused"]) == FAILED
    assert "process 104 cannot be inspected: gone" in capsys.readouterr().err


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
