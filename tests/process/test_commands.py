"""The commands against live daemons: exit codes, documents and refusals as docs/commands.md promises them."""

import json
import os
import pty
import re
import select
import sys
import time
from pathlib import Path

import pytest
from lab import LEFT, RIGHT, run, wait_for

pytestmark = pytest.mark.root

DONE, FAILED, USAGE, INVALID, UNREACHABLE, TIMED_OUT = range(6)
IKE, ESP = "aes256-sha256-modp2048", "aes256gcm16-modp2048"

CHILD_FIELDS = {
    "name": str, "state": str, "protocol": str, "mode": str, "spi_in": str, "spi_out": str, "proposal": str,
    "local_ts": list, "remote_ts": list, "bytes_in": int, "bytes_out": int, "packets_in": int, "packets_out": int,
    "expires_in_s": int,
}  # fmt: skip
IKE_SA_FIELDS = {
    "connection": str, "version": str, "role": str, "mode": str, "state": str, "local": str, "remote": str,
    "local_id": str, "remote_id": str, "auth": str, "cookies": list, "proposal": str, "nat": str,
    "established_s": int, "rekey_in_s": int, "children": list,
}  # fmt: skip
TRAFFIC_FIELDS = {
    "pings_sent": int, "pings_received": int, "cleartext_packets_seen": int, "encrypted_packets_seen": int,
}  # fmt: skip


def assert_fields(document: dict, fields: dict[str, type]) -> None:
    assert {name: type(document.get(name)) for name in fields} == fields


def assert_status(document: dict) -> None:
    """CONTRACT.md, "What demo --json and status --json hold at least", of a daemon with one tunnel."""
    assert_fields(document, {"schema_version": int, "dataplane": str, "ike_sas": list})
    assert document["schema_version"] == 1
    assert document["dataplane"] in ("userspace", "kernel")
    (sa,) = document["ike_sas"]
    assert_fields(sa, IKE_SA_FIELDS)
    assert (sa["version"], sa["mode"], sa["state"], sa["auth"], sa["nat"]) == (
        "ikev1", "main", "established", "psk", "none",
    )  # fmt: skip
    assert sa["role"] in ("initiator", "responder")
    for end in ("local", "remote"):
        assert re.fullmatch(r"192\.0\.2\.[12]\[500\]", sa[end])
    assert len(sa["cookies"]) == 2
    assert all(re.fullmatch("0x[0-9a-f]{16}", cookie) for cookie in sa["cookies"])
    assert 0 <= sa["established_s"] < 120
    assert 3600 < sa["rekey_in_s"] <= 8 * 3600
    (child,) = sa["children"]
    assert_fields(child, CHILD_FIELDS)
    assert (child["state"], child["protocol"], child["mode"]) == ("installed", "esp", "tunnel")
    assert all(re.fullmatch("0x[0-9a-f]{8}", child[name]) for name in ("spi_in", "spi_out"))
    assert all(type(selector) is str for name in ("local_ts", "remote_ts") for selector in child[name])
    assert 0 < child["expires_in_s"] <= 3700


def test_status_json_holds_what_is_documented(network, tunnel, theirs):
    network.left.ping(network.right.inner)
    mine, other = tunnel.status(), theirs.status()
    for document in (mine, other):
        assert_status(document)
    (sa,), (mirrored,) = mine["ike_sas"], other["ike_sas"]
    assert (sa["role"], mirrored["role"]) == ("initiator", "responder")
    assert (sa["local"], sa["local_id"], sa["cookies"]) == (
        mirrored["remote"], mirrored["remote_id"], mirrored["cookies"],
    )  # fmt: skip
    (child,), (reflected,) = sa["children"], mirrored["children"]
    assert (child["spi_in"], child["local_ts"]) == (reflected["spi_out"], reflected["remote_ts"])
    assert child["packets_out"] == reflected["packets_in"] == 4
    assert child["bytes_out"] == reflected["bytes_in"] > 0
    # for people, the same
    text = tunnel.cli("status").stdout
    assert all(word in text for word in ("peer/net", IKE, ESP, RIGHT))
    assert json.loads(tunnel.cli("status", "peer", "--json").stdout)["ike_sas"][0]["cookies"] == sa["cookies"]


def test_demo_json_holds_what_is_documented_and_leaves_nothing_behind():
    namespaces = run("ip", "netns", "list").stdout
    done = run(sys.executable, "-I", "-m", "privsep", "demo", "--json", timeout=60)
    document = json.loads(done.stdout)
    assert_status(document)
    traffic = document["traffic"]
    assert_fields(traffic, TRAFFIC_FIELDS)
    assert traffic["pings_received"] == traffic["pings_sent"] > 0
    assert traffic["cleartext_packets_seen"] == 0
    assert traffic["encrypted_packets_seen"] >= 2 * traffic["pings_sent"]
    assert len(document["gateways"]) == 2
    for status in document["gateways"].values():
        assert_status(status)
    left_behind = set(run("ip", "netns", "list").stdout.split()) - set(namespaces.split())
    assert not [name for name in left_behind if name.startswith("pike")]


def test_demo_keep_says_what_it_keeps_and_how_to_end_it():
    done = run(sys.executable, "-I", "-m", "privsep", "demo", "--json", "--keep", timeout=60)
    assert_status(json.loads(done.stdout))
    told = done.stderr.splitlines()
    looks = [line.strip() for line in told[told.index("Look with:") + 1 : told.index("End it with:")]]
    ends = [line.strip() for line in told[told.index("End it with:") + 1 :]]
    pids, directory = [int(word) for word in ends[0].split()[1:]], Path(ends[-1].split()[-1])
    try:
        assert len(pids) == len(looks) == 2
        for look in looks:
            assert "established" in run("sh", "-c", look).stdout
        assert {f"{each}/secrets.toml" for each in ("left", "right")} <= {
            str(path.relative_to(directory)) for path in directory.glob("*/*")
        }
    finally:
        for end in ends:
            run("sh", "-c", end, check=False)
    assert wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 20)
    assert not directory.exists()
    left_behind = run("ip", "netns", "list").stdout.split()
    assert not [end for end in ends if end.startswith("ip netns del") and end.split()[-1] in left_behind]


class Terminal:
    """`run` in the foreground of a terminal, where Ctrl-C goes to the whole group."""

    def __init__(self, daemon) -> None:
        files = ["--config", str(daemon.config), "--secrets", str(daemon.secrets)]
        words = daemon.words("run", *files)
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.execvp(words[0], words)
        self.text = ""

    def interrupt(self) -> None:
        os.write(self._terminal, b"\x03")

    def read(self, until: str = "", seconds: float = 20) -> None:
        """On, until the text is there or, without one, the program has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not (until and until in self.text):
            readable, _, _ = select.select([self._terminal], [], [], 0.1)
            try:
                data = os.read(self._terminal, 4096) if readable else b"\0"
            except OSError:
                # the terminal's other end is closed
                break
            self.text += data.strip(b"\0").decode()

    def end(self) -> int:
        self.read()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_ctrl_c_ends_run_as_sigterm_does(network, ours, theirs):
    """With DELETE to the peer (RFC 2408 section 3.15), and without a trace of an interpreter."""
    ours.configure(IKE, ESP)
    theirs.start(IKE, ESP, uid=62011)
    terminal = Terminal(ours)
    terminal.read("epoch-began")
    assert wait_for(ours.is_ready, 30), terminal.text
    ours.up(theirs)
    terminal.interrupt()
    assert (terminal.end(), "Traceback" in terminal.text) == (DONE, False), terminal.text
    assert wait_for(lambda: theirs.status()["ike_sas"] == [])
    assert not (ours.run_dir / "control.sock").exists()


def test_ctrl_c_while_run_starts_waits_until_it_can_end_cleanly(ours):
    """From when the monitor's interpreter begins: it has not even imported what would catch a signal."""
    ours.configure(IKE, ESP)
    terminal = Terminal(ours)
    command = Path(f"/proc/{terminal.pid}/cmdline")
    assert wait_for(lambda: b"\0-m\0monitor\0" in command.read_bytes(), 20)
    terminal.interrupt()
    assert (terminal.end(), "Traceback" in terminal.text) == (DONE, False), terminal.text
    assert not (ours.run_dir / "control.sock").exists()


def test_exit_codes_with_and_without_a_daemon(ours):
    ours.configure(IKE, ESP)
    for words in (
        ["status"],
        ["status", "--json"],
        ["up", "peer"],
        ["down", "peer"],
        ["reload"],
        ["events"],
        ["audit"],
    ):
        done = ours.cli(*words, check=False)
        assert (words, done.returncode, done.stdout) == (words, UNREACHABLE, "")
        assert str(ours.run_dir) in done.stderr
    ours.launch()
    expected = {
        ("status",): DONE,
        ("status", "peer", "--json"): DONE,
        ("audit",): DONE,
        # nothing to take down is down
        ("down", "peer"): DONE,
        ("status", "nobody"): FAILED,
        ("up", "nobody"): FAILED,
        ("up", "peer/nothing"): FAILED,
        ("down", "nobody/net"): FAILED,
        ("up",): USAGE,
        ("up", "peer", "--timeout", "0"): USAGE,
        ("up", "peer", "--timeout", "soon"): USAGE,
        ("frobnicate",): USAGE,
        ("status", "--frobnicate"): USAGE,
        # there is no peer
        ("up", "peer/net", "--timeout", "1"): TIMED_OUT,
    }
    assert {words: ours.cli(*words, check=False).returncode for words in expected} == expected
    assert "there is peer" in ours.cli("up", "nobody", check=False).stderr
    assert "there is net" in ours.cli("up", "peer/nothing", check=False).stderr
    assert ours.stop() == DONE
    assert ours.cli("status", check=False).returncode == UNREACHABLE


BROKEN = {
    "no TOML": ("gateway.toml", "[connection.peer]", "[connection.peer", "this is not TOML"),
    "an unknown key": ("gateway.toml", "encap ", "encaps ", "encaps"),
    "a wrong value": ("gateway.toml", '"wait"', '"weight"', "weight"),
    "a weak proposal": ("gateway.toml", ESP, "null", "'null' lacks integrity"),
    "secrets that are no TOML": ("secrets.toml", "[[psk]]", "[[psk]", "this is not TOML"),
    "secrets with an unknown key": ("secrets.toml", "secret", "sercet", "sercet"),
    "a connection without a secret": ("secrets.toml", RIGHT, "192.0.2.77", "peer"),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_run_refuses_with_the_words_of_check_file_line_what_is_wrong(ours, mistake):
    ours.configure(IKE, ESP)
    files = ["--config", str(ours.config), "--secrets", str(ours.secrets)]
    privsep = ours.site.command(sys.executable, "-I", "-m", "privsep")
    name, right, wrong, word = BROKEN[mistake]
    run(*privsep, "check", *files)
    broken = ours.site.directory / name
    broken.write_text(broken.read_text().replace(right, wrong))
    checked = run(*privsep, "check", *files, check=False)
    assert (checked.returncode, checked.stdout) == (INVALID, "")
    assert any(
        re.match(rf"{re.escape(str(broken))}:\d+: .", line) and word in line for line in checked.stderr.splitlines()
    ), checked.stderr
    ran = run(*privsep, "run", *files, "--run-dir", str(ours.run_dir), check=False, timeout=10)
    assert ran.returncode == INVALID, ran.stderr
    assert ran.stderr == checked.stderr


def test_secrets_that_others_may_read_are_refused_by_run_as_by_check(ours):
    ours.configure(IKE, ESP)
    ours.secrets.chmod(0o644)
    files = ["--config", str(ours.config), "--secrets", str(ours.secrets)]
    privsep = ours.site.command(sys.executable, "-I", "-m", "privsep")
    checked = run(*privsep, "check", *files, check=False)
    ran = run(*privsep, "run", *files, "--run-dir", str(ours.run_dir), check=False, timeout=10)
    assert (checked.returncode, ran.returncode) == (INVALID, INVALID)
    assert ran.stderr == checked.stderr
    assert ran.stderr.startswith(f"{ours.secrets}:1: has mode 0644; ")


def test_two_instances_in_two_namespaces_do_not_meet(network, tunnel, theirs):
    assert tunnel.run_dir != theirs.run_dir
    mine, other = tunnel.processes(), theirs.processes()
    assert not set(mine.values()) & set(other.values())
    assert tunnel.status()["ike_sas"][0]["local"] == f"{LEFT}[500]"
    assert theirs.status()["ike_sas"][0]["local"] == f"{RIGHT}[500]"
    assert theirs.stop() == DONE
    assert tunnel.processes() == mine
    assert tunnel.cli("status").returncode == DONE


def test_a_second_instance_in_the_same_place_is_refused_clearly(ours):
    ours.start(IKE, ESP)
    routes = ("ip", "-n", ours.site.namespace, "route", "show", "table", "4500")
    before, led = ours.processes(), run(*routes).stdout
    assert led
    files = ["--config", str(ours.config), "--secrets", str(ours.secrets)]
    privsep = ours.site.command(sys.executable, "-I", "-m", "privsep")
    same_place = run(*privsep, "run", *files, "--run-dir", str(ours.run_dir), check=False, timeout=10)
    assert same_place.returncode == FAILED
    assert re.search(r"^error cannot-start .*another instance runs.*--run-dir", same_place.stderr, re.M)
    other_place = run(*privsep, "run", *files, "--run-dir", str(ours.site.directory / "other"), check=False, timeout=10)
    assert other_place.returncode == FAILED
    assert re.search(r"^error cannot-start .*\b500\b", other_place.stderr, re.M), other_place.stderr
    # what failed leaves no socket at which nobody answers
    assert not (ours.site.directory / "other" / "control.sock").exists()
    # the first has not noticed, and its traffic is still led into its tunnel
    assert ours.processes() == before
    assert run(*routes).stdout == led
    assert ours.cli("status").returncode == DONE
    assert "pike1" not in run("ip", "-n", ours.site.namespace, "link").stdout
