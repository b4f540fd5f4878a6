"""sd_notify(3) without a library."""

import os
import socket

import pytest

from monitor.notify import Notifier


@pytest.fixture
def manager(tmp_path, monkeypatch):
    def make(address):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.settimeout(2)
        sock.bind("\0" + address[1:] if address.startswith("@") else address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        made.append(sock)
        return sock

    made = []
    yield make
    for sock in made:
        sock.close()


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_hears_the_life_of_the_daemon(manager, tmp_path, abstract):
    sock = manager(f"@privsep-ike-test-{os.getpid()}" if abstract else str(tmp_path / "notify"))
    notifier = Notifier.from_environment()
    notifier.ready()
    notifier.status("2 connections")
    notifier.stopping()
    assert [sock.recv(100) for _ in range(3)] == [b"READY=1", b"STATUS=2 connections", b"STOPPING=1"]


def test_no_child_inherits_the_address(manager, tmp_path):
    manager(str(tmp_path / "notify"))
    Notifier.from_environment()
    assert "NOTIFY_SOCKET" not in os.environ


@pytest.mark.parametrize("address", [None, "", "relative", "/nowhere/at/all"])
def test_without_a_manager_nothing_happens(monkeypatch, address):
    if address is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    Notifier.from_environment().ready()


def test_a_manager_that_went_away_does_no_harm(manager, tmp_path):
    sock = manager(str(tmp_path / "notify"))
    notifier = Notifier.from_environment()
    sock.close()
    notifier.ready()
