"""The whole daemon with ESP in the kernel: counters, deletion, crashes. The variety is in test_matrix.py."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]

IKE = "aes256-sha256-modp2048"
GCM = "aes256gcm16-modp2048"


def start_both(ours, theirs, esp):
    ours.configure(IKE, esp)
    theirs.configure(IKE, esp, uid=62011)
    with ThreadPoolExecutor() as pool:
        for started in [pool.submit(gateway.launch) for gateway in (ours, theirs)]:
            started.result()


def test_the_demo_chooses_the_kernel_and_passes(network):
    words = [sys.executable, "-I", "-m", "privsep", "demo", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["dataplane"] == "kernel"
    assert document["traffic"]["cleartext_packets_seen"] == 0
    assert document["traffic"]["encrypted_packets_seen"] == 12


def test_pings_pass_until_down_and_a_clean_stop_leaves_nothing_rfc4303(network, ours, theirs, wiretap):
    start_both(ours, theirs, GCM)
    assert network.left.ping(network.right.inner, count=1) == 0
    ours.order("up")
    assert network.left.ping(network.right.inner) == 3
    assert network.right.ping(network.left.inner) == 3
    for gateway in (ours, theirs):
        (child,) = gateway.children()
        assert (child["packets_in"], child["packets_out"]) == (6, 6)
        assert (child["bytes_in"], child["bytes_out"]) == (6 * 84, 6 * 84)
        assert gateway.xfrm("state").count("replay-window") == 2
    ours.order("down")
    assert network.wait_for(lambda: not ours.xfrm("state") and not theirs.xfrm("state"))
    assert network.left.ping(network.right.inner, count=1) == 0
    assert "proto esp" in ours.xfrm("policy")
    counts = wiretap.counts()
    assert (counts["encrypted"], counts["cleartext"]) == (12, 0)
    for gateway in (ours, theirs):
        assert gateway.stop() == 0
        assert (gateway.xfrm("state"), gateway.xfrm("policy")) == ("", "")


def test_killed_children_cost_no_packet_and_no_sa(network, ours, theirs, pinging):
    start_both(ours, theirs, GCM)
    ours.order("up")
    before = ours.processes()
    states = ours.xfrm("state").count("proto esp")
    pings = pinging()
    for victim in ("worker", "keyd"):
        present = ours.processes()
        network.kill(present[victim])
        assert network.wait_for(lambda gone=present[victim]: not network.alive(gone))
        assert ours.xfrm("state").count("proto esp") == states == 2
        assert network.wait_for(lambda gone=present: ours.is_ready() and ours.processes()["keyd"] != gone["keyd"], 40)
    sent, received = pings.end()
    assert sent == received > 20
    assert ours.processes()["monitor"] == before["monitor"]
    ours.order("up")
    assert network.left.ping(network.right.inner) == 3


def test_a_killed_monitor_leaves_no_clear_text_and_its_successor_takes_over_unasked(network, ours, theirs, wiretap):
    ours.when = "up"
    start_both(ours, theirs, GCM)
    assert network.wait_for(ours.children, 40)
    assert network.left.ping(network.right.inner) == 3
    pids = list(ours.processes().values())
    network.kill(ours.processes()["monitor"])
    ours.process.wait(10)
    assert network.wait_for(lambda: not any(network.alive(pid) for pid in pids))
    assert network.left.ping(network.right.inner) == 3
    ours.launch()
    assert network.wait_for(ours.children, 40)
    assert network.left.ping(network.right.inner) == 3
    assert ours.stop() == 0
    assert ours.xfrm("policy") == ""
    assert wiretap.counts()["cleartext"] == 0
