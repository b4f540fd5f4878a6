"""etc/: the unit and its companions agree with the code and with each other."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from privsep.cli.control import DEFAULT_RUN_DIR
from privsep.cli.daemon import DEFAULT_CONFIG
from privsep.config.loader import DEFAULT_USERS

ETC = Path(__file__).parents[3] / "etc"


@pytest.fixture
def unit():
    """Settings of the service; those that are given several times are joined."""
    found: dict[str, str] = {}
    for line in (ETC / "privsep-ike.service").read_text().splitlines():
        if match := re.fullmatch(r"(\w+)=(.*)", line):
            found[match[1]] = f"{found.get(match[1], '')} {match[2]}".strip()
    return found


def test_the_unit_starts_what_the_command_line_knows(unit, cli):
    words = unit["ExecStart"].split()
    assert words[:2] == ["/usr/bin/privsep-ike", "run"]
    options = re.findall(r"--[a-z-]+", cli("run", "--help").stdout)
    assert {word for word in words if word.startswith("--")} <= set(options)
    assert DEFAULT_CONFIG in words
    assert f"/run/{unit['RuntimeDirectory']}" == DEFAULT_RUN_DIR
    assert (unit["Type"], unit["KillMode"]) == ("notify", "mixed")


def test_the_unit_leaves_what_the_monitor_keeps_for_itself_and_its_children(unit):
    from monitor import sandbox

    names = {f"CAP_{name.removeprefix('CAP_')}" for name in unit["CapabilityBoundingSet"].split()}
    prctl = pytest.importorskip("prctl", reason="needs python-prctl for the numbers of capabilities")
    numbers = {getattr(prctl, name) for name in names}
    assert sandbox.confinement(0, 0, "/", frozenset()).permitted <= numbers


def test_the_unit_tries_again_for_as_long_as_it_takes_what_waiting_can_mend(unit, cli):
    """An address that comes late ends `run` with 1; what stands in the files, with 2 or 3."""
    assert (unit["Restart"], unit["RestartPreventExitStatus"]) == ("on-failure", "2 3")
    # by default systemd gives up after five starts within 10 s
    assert unit["StartLimitIntervalSec"] == "0"
    assert int(unit["RestartSec"]) >= 1


@pytest.mark.parametrize(
    "setting", ["PrivateDevices", "PrivateNetwork", "PrivateUsers", "RestrictSUIDSGID", "MemoryDenyWriteExecute"]
)
def test_the_unit_does_not_take_what_the_daemon_needs(unit, setting):
    assert setting not in unit


def test_systemd_finds_no_fault_with_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    copy = tmp_path / "privsep-ike.service"
    # the command is not installed where the unit expects it
    copy.write_text((ETC / "privsep-ike.service").read_text().replace("/usr/bin/privsep-ike", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60, check=False)
    assert [line for line in done.stderr.splitlines() if "privsep-ike" in line] == []


def test_the_package_creates_the_users_that_the_loader_looks_for():
    lines = (ETC / "privsep-ike.sysusers.conf").read_text().splitlines()
    created = {line.split()[1] for line in lines if line.startswith("u ")}
    assert created == {name for name, _ in DEFAULT_USERS.values()}


def test_the_secrets_are_kept_from_others_by_the_package():
    assert "z /etc/privsep-ike/secrets.toml 0600 root root -" in (ETC / "privsep-ike.tmpfiles.conf").read_text()
