"""Shunts beside a tunnel: what passes in clear, what is refused, what is still protected, what is left behind."""

import re
import subprocess
import sys

import pytest
from lab import Wiretap, launch

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

IKE, ESP = "aes256-sha256-modp2048", "aes256gcm16-modp2048"
PROTECTED, PASSED, DROPPED, REST = "10.2.0.1", "10.2.3.1", "10.2.4.1", "10.9.0.1"
SHUNTS = """
[shunt.spare]
local_ts  = ["10.1.0.0/16"]
remote_ts = ["10.2.3.0/24"]
action    = "pass"

[shunt.none]
local_ts  = ["10.1.0.0/16"]
remote_ts = ["10.2.4.0/24"]
action    = "drop"

[shunt.rest]
local_ts  = ["10.1.0.0/16"]
remote_ts = ["0.0.0.0/0"]
action    = "drop"
order     = "last"
"""


@pytest.fixture(scope="module")
def shunted(couple):
    """The left gateway and its network; nothing is up."""
    for address in (PASSED, DROPPED, REST):
        couple.network.ip(couple.network.right, "address", "add", f"{address}/32", "dev", "lo")
    for gateway, uid in ((couple.ours, 62001), (couple.theirs, 62011)):
        gateway.configure(IKE, ESP, uid=uid)
        text = gateway.config.read_text().replace("10.1.0.1/32", "10.1.0.0/16").replace("10.2.0.1/32", "10.2.0.0/16")
        mirrored = SHUNTS.replace("local_ts ", "LOCAL").replace("remote_ts", "local_ts").replace("LOCAL", "remote_ts")
        gateway.config.write_text(text + (SHUNTS if gateway is couple.ours else mirrored.split("[shunt.rest]")[0]))
    launch(couple.ours, couple.theirs)
    return couple


def answers(site, target):
    return site.ping(target, count=2)


def test_what_a_shunt_selects_passes_or_not_and_the_rest_is_protected(shunted, row):
    network, ours, wiretap = shunted.network, shunted.ours, Wiretap(shunted.network)
    line = row("shunts beside a tunnel", "ourselves", "we")
    assert [answers(network.left, target) for target in (PROTECTED, PASSED, DROPPED, REST)] == [0, 2, 0, 0]
    ours.order("up")
    assert [answers(network.left, target) for target in (PROTECTED, PASSED, DROPPED, REST)] == [2, 2, 0, 0]
    (child,) = ours.children()
    assert (child["packets_out"], child["packets_in"]) == (2, 2)
    counts = wiretap.counts()
    assert (counts["encrypted"], counts["cleartext"]) == (4, 8)
    line.sent, line.received, line.protected, line.clear = 16, 6, 4, 8
    words = [sys.executable, "-I", "-m", "privsep", "status", "--run-dir", str(ours.run_dir)]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert re.search(r"^SHUNT +ACTION +ORDER", text, re.M)
    assert re.search(r"^rest +drop +last +10.1.0.0/16 +0.0.0.0/0$", text, re.M)
    assert [shunt["name"] for shunt in ours.status()["shunts"]] == ["spare", "none", "rest"]
    assert ours.xfrm("policy").count("dir ") == 3 + 9


def test_the_successor_of_a_killed_daemon_keeps_its_shunts_and_clears_those_that_are_gone(shunted):
    network, ours = shunted.network, shunted.ours
    ours.kill()
    assert [answers(network.left, target) for target in (PROTECTED, PASSED, DROPPED)] == [2, 2, 0]
    text = ours.config.read_text()
    ours.config.write_text(text[: text.index("[shunt.none]")])
    ours.launch()
    assert "adopted=1" in ours.text()
    policies = ours.xfrm("policy")
    assert policies.count("dir ") == 3 + 3
    assert "action block" not in policies
    assert [answers(network.left, target) for target in (PROTECTED, PASSED)] == [2, 2]
    assert ours.stop() == 0
    assert (ours.xfrm("state"), ours.xfrm("policy")) == ("", "")
