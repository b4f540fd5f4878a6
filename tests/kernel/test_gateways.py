"""The whole daemon with ESP in the kernel: the demo, counters, deletion. The variety is in test_matrix.py."""

import json
import subprocess
import sys

import pytest
from lab import launch

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]

IKE = "aes256-sha256-modp2048"
GCM = "aes256gcm16-modp2048"


def start_both(ours, theirs, esp):
    ours.configure(IKE, esp)
    theirs.configure(IKE, esp, uid=62011)
    launch(ours, theirs)


def test_the_demo_chooses_the_kernel_and_passes(network):
    words = [sys.executable, "-I", "-m", "privsep", "demo", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["dataplane"] == "kernel"
    assert document["traffic"]["cleartext_packets_seen"] == 0
    assert document["traffic"]["encrypted_packets_seen"] == 12


def test_pings_pass_until_down_and_a_clean_stop_leaves_nothing_rfc4303(network, ours, theirs, wiretap, row):
    line = row("aes256gcm16 tunnel IPv4, up, down, clean stop", "ourselves", "we")
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
    line.sent, line.received, line.protected, line.clear = 8, 6, counts["encrypted"], counts["cleartext"]
    assert (counts["encrypted"], counts["cleartext"]) == (12, 0)
    for gateway in (ours, theirs):
        assert gateway.stop() == 0
        assert (gateway.xfrm("state"), gateway.xfrm("policy")) == ("", "")
