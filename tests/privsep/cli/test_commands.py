"""The commands as an operator runs them, against a made-up daemon; exit codes of CONTRACT.md."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from privsep.cli import control
from privsep.cli.main import main

DONE, FAILED, USAGE, INVALID, UNREACHABLE, TIMED_OUT = range(6)


def result(code: int, text: str = "", **more: object) -> dict:
    return {"kind": "result", "code": code, "text": text, **more}


def test_status_prints_a_table(cli, daemon, run_dir, status_document):
    requests = daemon(result(DONE, status=status_document))
    done = cli("status", "--run-dir", run_dir)
    assert (done.returncode, done.stderr) == (DONE, "")
    assert done.stdout.startswith("data plane: userspace (the kernel has no ESP); worker: running\n")
    assert "paris/lan" in done.stdout
    assert requests == [{"command": "status"}]


def test_status_json_is_the_daemon_s_document(cli, daemon, run_dir, status_document):
    requests = daemon(result(DONE, status=status_document))
    done = cli("status", "paris", "--json", "--run-dir", run_dir)
    assert done.returncode == DONE
    assert json.loads(done.stdout) == status_document
    assert requests == [{"command": "status", "connection": "paris"}]


def test_status_shows_what_there_is_even_if_the_worker_does_not_answer(cli, daemon, run_dir, status_document):
    daemon(result(TIMED_OUT, "the worker does not answer", status=status_document))
    done = cli("status", "--run-dir", run_dir)
    assert done.returncode == TIMED_OUT
    assert "paris/lan" in done.stdout
    assert done.stderr == "the worker does not answer\n"


def test_status_of_an_unknown_connection_fails(cli, daemon, run_dir):
    daemon(result(FAILED, "no connection 'rome' is configured; there is paris"))
    done = cli("status", "rome", "--run-dir", run_dir)
    assert (done.returncode, done.stdout) == (FAILED, "")
    assert done.stderr == "no connection 'rome' is configured; there is paris\n"


def test_up_prints_each_step_and_succeeds(cli, daemon, run_dir):
    steps = [{"kind": "progress", "text": text} for text in ("message 1 sent", "message 2 received")]
    requests = daemon(*steps, result(DONE, "paris/lan is up"))
    done = cli("up", "paris/lan", "--timeout", 7, "--run-dir", run_dir)
    assert done.returncode == DONE
    assert done.stdout == "message 1 sent\nmessage 2 received\nparis/lan is up\n"
    assert requests == [{"command": "up", "connection": "paris", "child": "lan", "timeout": 7}]


@pytest.mark.parametrize("command", ["up", "down"])
def test_orders_say_why_they_fail(cli, daemon, run_dir, command):
    requests = daemon(result(FAILED, "the pre-shared key for gw2.example.org probably differs"))
    done = cli(command, "paris", "--run-dir", run_dir)
    assert done.returncode == FAILED
    assert done.stderr == "the pre-shared key for gw2.example.org probably differs\n"
    assert requests == [{"command": command, "connection": "paris", "child": "", "timeout": 60}]


def test_orders_that_time_out_have_a_code_of_their_own(cli, daemon, run_dir):
    daemon(result(TIMED_OUT, "not done within 1 s"))
    assert cli("up", "paris", "--timeout", 1, "--run-dir", run_dir).returncode == TIMED_OUT


def test_progress_is_printed_as_it_comes(daemon, run_dir):
    daemon({"kind": "progress", "text": "message 1 sent"}, linger=True)
    words = [sys.executable, "-m", "privsep", "up", "paris", "--run-dir", str(run_dir)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "message 1 sent\n"
        assert process.poll() is None
        process.kill()


def test_terminal_sequences_in_answers_are_escaped(cli, daemon, run_dir):
    daemon({"kind": "progress", "text": "\x1b[2J\n"}, result(FAILED, "a\rb\u202e"))
    done = cli("up", "paris", "--run-dir", run_dir)
    assert done.stdout == "\\x1b[2J\\n\n"
    assert done.stderr == "a\\rb\\u202e\n"


def test_events_are_a_line_each_until_interrupted(daemon, run_dir):
    event = {
        "schema_version": 1,
        "time": 0,
        "level": "info",
        "event": "child-installed",
        "fields": {"connection": "paris", "x": 7},
    }
    for words, check in (
        ([], lambda line: line.endswith(" info child-installed connection=paris x=7\n")),
        (["--json"], lambda line: json.loads(line) == event),
    ):
        daemon({"kind": "event", **event}, linger=True)
        command = [sys.executable, "-m", "privsep", "events", *words, "--run-dir", str(run_dir)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert check(process.stdout.readline())
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == DONE
            assert process.stderr.read() == ""
        os.unlink(run_dir / "control.sock")


def test_events_end_with_the_daemon(cli, daemon, run_dir):
    daemon({"kind": "event", "event": "stopping"})
    done = cli("events", "--run-dir", run_dir)
    assert done.returncode == UNREACHABLE
    assert "stopping" in done.stdout
    assert "the daemon ended" in done.stderr


def test_a_reader_that_has_seen_enough_ends_events_quietly(daemon, run_dir):
    daemon(*[{"kind": "event", "event": "x" * 100}] * 2000)
    script = f"{sys.executable} -m privsep events --run-dir {run_dir} | head -n 1"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr == ""


def test_reload_tells_what_the_daemon_says(cli, daemon, run_dir):
    requests = daemon(result(FAILED, "not supported by this release"))
    done = cli("reload", "--plan", "--run-dir", run_dir)
    assert (done.returncode, done.stderr) == (FAILED, "not supported by this release\n")
    assert requests == [{"command": "reload", "plan": True}]


@pytest.mark.parametrize("words", ["status", "up paris", "down paris", "reload", "events", "audit"])
def test_no_daemon_is_a_code_of_its_own_and_says_what_to_do(cli, run_dir, words):
    done = cli(*words.split(), "--run-dir", run_dir)
    assert done.returncode == UNREACHABLE
    assert done.stderr == (
        f"{run_dir}/control.sock: no daemon answers (No such file or directory); "
        "start it with `privsep-ike run`, or name its --run-dir\n"
    )


def test_a_daemon_that_is_gone_left_only_a_name(cli, run_dir):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(run_dir / "control.sock"))
    done = cli("status", "--run-dir", run_dir)
    assert done.returncode == UNREACHABLE
    assert "no daemon answers (Connection refused)" in done.stderr


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "the daemon ended before it had answered"),
        (b'{"kind": "result"', "the daemon ended before it had answered"),
        (b"HTTP/1.1 200 OK\n", "not an answer of privsep-ike"),
        (b"[]\n", "not an answer of privsep-ike"),
        (b'{"kind": "other"}\n', "not an answer of privsep-ike"),
        (b'{"kind": []}\n', "not an answer of privsep-ike"),
        (b'{"kind": "result"}\n', "a result without a code"),
        (b'{"kind": "result", "code": true}\n', "a result without a code"),
        (b"[" * 100_000 + b"\n", "not an answer of privsep-ike"),
        (b"\xff\n", "not an answer of privsep-ike"),
    ],
)
def test_whatever_else_answers_is_no_daemon(cli, daemon, run_dir, answer, words):
    daemon(answer)
    done = cli("status", "--run-dir", run_dir)
    assert done.returncode == UNREACHABLE
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_result_with_an_unknown_code_is_a_failure(cli, daemon, run_dir):
    daemon(result(77, "odd"))
    assert cli("down", "paris", "--run-dir", run_dir).returncode == FAILED


def test_a_daemon_that_is_silent_times_out(daemon, run_dir, monkeypatch):
    monkeypatch.setattr(control, "MARGIN", 0.1)
    daemon(linger=True)
    with pytest.raises(control.TimedOut, match=r"no answer within 0.1 s"):
        control.ask(str(run_dir), {"command": "status"}, seconds=0.1)


def test_a_daemon_that_drips_times_out_as_well(daemon, run_dir, monkeypatch):
    monkeypatch.setattr(control, "MARGIN", 0.1)
    daemon(*[{"kind": "progress", "text": ""}] * 3, linger=True)
    seen = []
    with pytest.raises(control.TimedOut):
        control.ask(str(run_dir), {"command": "up"}, seconds=0.1, told=seen.append)
    assert len(seen) == 3


def test_an_answer_longer_than_the_bound_is_refused(daemon, run_dir, monkeypatch):
    monkeypatch.setattr(control, "MAX_LINE", 100)
    daemon(result(DONE, "x" * 200))
    with pytest.raises(control.NotReachable):
        control.ask(str(run_dir), {"command": "status"}, seconds=5)


@pytest.mark.root
@pytest.mark.parametrize("words", [["clear"], ["run", "--config", "etc/gateway.toml", "--secrets", "etc/secrets.toml"]])
def test_what_only_root_may_do_is_said_to_others(words, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(words) == FAILED
    assert "root" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to listen as somebody else")
def test_a_socket_on_which_another_user_listens_is_not_trusted(cli, run_dir):
    script = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); os.chmod(sys.argv[1], 0o666);"
        "os.setuid(61999); s.listen(); print('ready', flush=True); s.accept()"
    )
    run_dir.chmod(0o777)
    words = [sys.executable, "-c", script, str(run_dir / "control.sock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as impostor:
        assert impostor.stdout.readline() == "ready\n"
        done = cli("status", "--run-dir", run_dir)
        impostor.kill()
    assert done.returncode == UNREACHABLE
    assert "uid 61999 listens there, not root" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("stauts",),
        ("up",),
        ("up", ""),
        ("up", "/lan"),
        ("up", "paris/"),
        ("up", "x" * 65),
        ("up", "paris", "--timeout", "0"),
        ("up", "paris", "--timeout", "601"),
        ("up", "paris", "--timeout", "soon"),
        ("status", "a", "b"),
        ("run", "--cofnig", "x"),
    ],
)
def test_usage_errors_have_a_code_of_their_own(cli, words):
    done = cli(*words)
    assert done.returncode == USAGE
    assert done.stderr.startswith("usage: privsep-ike")


@pytest.mark.parametrize("command", ["run", "status", "up paris", "events"])
def test_a_run_dir_whose_socket_would_have_too_long_a_path_is_told_before_anything_is_done(cli, tmp_path, command):
    """unix(7): sun_path has 108 octets with the final zero."""
    directory = tmp_path / ("d" * (107 - len(str(tmp_path / "/control.sock"))))
    done = cli(*command.split(), "--run-dir", f"{directory}{'d' * 107}")
    assert done.returncode == USAGE
    assert "the kernel knows 107" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_longest_run_dir_that_the_kernel_knows_is_taken(cli):
    fits = "/" + "d" * (107 - len("//control.sock"))
    assert cli("status", "--run-dir", fits).returncode == UNREACHABLE
    assert cli("status", "--run-dir", f"{fits}d").returncode == USAGE


def test_the_help_of_reload_says_that_this_release_has_none(cli):
    words = " ".join(cli("reload", "--help").stdout.split())
    assert "Not in this release" in words
    assert "restart the daemon" in words
    assert "reload not in this release: restart the daemon" in " ".join(cli("--help").stdout.split())


def test_a_full_disk_behind_standard_output_is_told_in_a_line(daemon, run_dir, status_document):
    daemon(result(DONE, "", status=status_document))
    words = [sys.executable, "-m", "privsep", "status", "--run-dir", run_dir]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (FAILED, "standard output: No space left on device\n")


def test_help_and_version_need_nothing(cli):
    for word in ("--help", "--version"):
        done = cli(word)
        assert done.returncode == DONE
        assert done.stdout.split()[0] in ("usage:", "privsep-ike")
    for command in ("run", "check", "selftest", "status", "up", "down", "reload", "events", "audit", "demo"):
        assert cli(command, "--help").stdout.startswith(f"usage: privsep-ike {command}")
