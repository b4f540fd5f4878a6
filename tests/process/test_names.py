"""Peers by name: the daemon runs whatever a name server says, and nothing passes in clear while it says nothing."""

import re
from pathlib import Path

import pytest
from lab import LEFT, LEFT_HOST, RIGHT, Wiretap, run, wait_for
from nameserver import NameServer

from privsep import procfs

pytestmark = pytest.mark.root

DONE, FAILED = 0, 1
IKE, ESP = "aes256-sha256-modp2048", "aes256gcm16-modp2048"
NAME = "gw2.example.net"
OTHER = f"""
[connection.other]
local     = "{LEFT}"
remote    = "other.example.net"
remote_id = "other.example.net"

[connection.other.child.net]
local_ts  = ["{LEFT_HOST}/32"]
remote_ts = ["10.9.0.1/32"]
"""


@pytest.fixture
def names(network):
    server = NameServer(network.left)
    yield server
    server.close()


def by_name(ours, name=NAME, *, more="") -> None:
    ours.configure(IKE, ESP)
    text = ours.config.read_text().replace(f'remote    = "{RIGHT}"', f'remote    = "{name}"')
    ours.config.write_text(text + more)
    secrets = ours.secrets.read_text()
    ours.secrets.write_text(
        f'{secrets}[[psk]]\nconnection = "other"\nsecret = "only for this test"\n' if more else secrets
    )


def test_a_name_that_does_not_resolve_costs_its_own_connection_time_and_others_nothing(network, ours, theirs, names):
    names.addresses[NAME] = (RIGHT,)
    by_name(ours, more=OTHER)
    ours.launch()
    theirs.start(IKE, ESP, uid=62011)
    assert wait_for(lambda: f"name-resolved connection=peer name={NAME} to={RIGHT}" in ours.text()), ours.text()
    ours.up(theirs)
    assert network.left.ping(network.right.inner) == 3
    done = ours.cli("up", "other", check=False)
    assert done.returncode == FAILED
    assert re.search(r"^other\.example\.net does not resolve: Name or service not known; it is asked for", done.stderr)
    (other,) = (each for each in ours.status()["connections"] if each["name"] == "other")
    assert other["remote"] == "other.example.net"
    assert "name-unresolved name=other.example.net" in ours.text()
    # nothing of what the connection is to protect leaves meanwhile, though there is a default route
    tap = Wiretap(network)
    assert network.left.ping("10.9.0.1") == 0
    assert tap.counts()["cleartext"] == 0


def test_a_name_that_resolves_later_brings_its_tunnel_up(network, ours, theirs, names):
    """The pauses between two attempts begin with five seconds."""
    by_name(ours)
    ours.when = "up"
    ours.config.write_text(ours.config.read_text().replace('start     = "wait"', 'start     = "up"'))
    ours.launch()
    theirs.start(IKE, ESP, uid=62011)
    assert wait_for(lambda: "name-unresolved" in ours.text())
    tap = Wiretap(network)
    assert network.left.ping(network.right.inner, count=1) == 0
    assert tap.counts()["cleartext"] == 0
    names.addresses[NAME] = (RIGHT,)
    assert wait_for(ours.children, 30), ours.text()
    assert network.left.ping(network.right.inner) == 3


def test_a_name_server_that_never_answers_holds_nothing_up(network, ours, names):
    names.addresses[NAME] = None
    by_name(ours)
    ours.launch()
    assert "name-unresolved" not in ours.text(), "it serves while the look-up goes on"
    assert ours.stop() == DONE


def test_who_looks_names_up_is_nobody_and_may_do_nothing_else(network, ours, names):
    names.addresses[NAME] = None
    by_name(ours)
    ours.launch()
    pid = resolver(ours)
    facts = procfs.inspect(pid, ours.processes()["monitor"])
    (thread,) = facts.credentials
    assert set(thread.uids) == set(thread.gids) == {1_900_000_004}
    assert (thread.groups, thread.permitted, thread.effective, thread.bounding) == ((), 0, 0, 0)
    # its own filter beside the monitor's
    assert (thread.no_new_privs, thread.seccomp, facts.dumpable, facts.environment) == (1, 2, False, 0)
    assert thread.filters in (None, 2)
    assert facts.landlock is not None
    assert {facts.limits[name] for name in ("core", "nproc", "fsize", "msgqueue")} == {0}
    kinds = sorted(kind.split()[0] for kind in facts.descriptors.values())
    assert kinds == ["/dev/null", "pipe", "pipe", "pipe", "udp"]
    # and it is gone after its one answer
    assert wait_for(lambda: not Path(f"/proc/{pid}").exists(), 40)
    assert wait_for(lambda: "name-unresolved" in ours.text())


def resolver(ours) -> int:
    """The process that the monitor has for a name, once it waits for the name server."""
    monitor, found = ours.processes()["monitor"], []

    def look() -> bool:
        children = Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()
        for pid in children:
            if b"monitor.resolver" in Path(f"/proc/{pid}/cmdline").read_bytes():
                status = Path(f"/proc/{pid}/status").read_text()
                if re.search(r"^Seccomp:\s+2$", status, re.M) and "ike-names" in status:
                    sockets = [str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()]
                    found[:] = [int(pid)] if any(each.startswith("socket:") for each in sockets) else []
        return bool(found)

    assert wait_for(look, 20), ours.text()
    return found[0]


def test_a_peer_whose_name_leads_elsewhere_is_followed(network, ours, theirs, names):
    """Nobody answers at the old address: the name is asked for again, and the tunnel comes up at the new one."""
    names.addresses[NAME] = ("192.0.2.77",)
    by_name(ours)
    ours.config.write_text(ours.config.read_text().replace('start     = "wait"', 'start     = "up"'))
    ours.launch()
    theirs.start(IKE, ESP, uid=62011)
    assert wait_for(lambda: "to=192.0.2.77" in ours.text())
    names.addresses[NAME] = (RIGHT,)
    # 41 s until the peer counts as silent
    assert wait_for(lambda: f"to={RIGHT}" in ours.text(), 70), ours.text()
    assert wait_for(ours.children, 30), ours.text()
    assert network.left.ping(network.right.inner) == 3
    assert ours.status()["connections"][0]["remote"] == f"{NAME} ({RIGHT})"


def test_check_warns_of_a_name_that_does_not_resolve(network, ours, names):
    names.addresses[NAME] = ()
    by_name(ours)
    files = ["--config", str(ours.config), "--secrets", str(ours.secrets)]
    command = [*ours.words()[:-2], "check", *files]
    done = run(*command, check=False)
    line = next(n for n, text in enumerate(ours.config.read_text().splitlines(), 1) if NAME in text)
    assert done.returncode == DONE, done.stderr
    assert f"{ours.config}:{line}: {NAME} does not resolve (Name or service not known)" in done.stderr
    names.addresses[NAME] = (RIGHT,)
    assert "does not resolve" not in run(*command).stderr
