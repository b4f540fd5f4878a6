"""A look-up with a real resolver process, and with one that does not do what it should."""

import gc
import ipaddress
import os
from pathlib import Path

import pytest

from monitor import lookup
from monitor.lookup import Resolvers
from monitor.resolver.sandbox import modules
from privsep.config.model import Users
from privsep.schema.codec import SchemaError
from privsep.schema.names import ANSWERS, Found, NotFound

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="root is missing: the resolver becomes another user"),
]
USERS = Users(worker=(62001, 62001), keyd=(62002, 62002), userspace=(62003, 62003))


@pytest.fixture
def ask(loop):
    lines = []
    resolvers = Resolvers(USERS, frozenset(), loop, lambda line, record: lines.append(line))

    def ask(name, version=4):
        answers = []
        gc.collect()
        before = os.listdir("/proc/self/fd")
        resolvers.ask(name, version, answers.append)
        loop.until(lambda: bool(answers), 20)
        assert len(os.listdir("/proc/self/fd")) <= len(before)
        return answers[0], lines

    return ask


def test_a_name_of_etc_hosts_is_found(ask):
    answer, lines = ask("localhost")
    assert (answer, lines) == (Found(addresses=(ipaddress.ip_address("127.0.0.1"),)), [])


def test_a_name_that_nobody_has_is_not_found(ask):
    answer, lines = ask("no-such-host.invalid")
    assert isinstance(answer, NotFound)
    assert lines == []


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("pass", "without an answer"),
        ("raise SystemExit(1)", "without an answer"),
        ("import os; os.write(3, b'rubbish')", "without an answer"),
        ("import os; os.write(3, bytes(4000))", "without an answer"),
        ("import time; time.sleep(60)", "without an answer"),
        ("import os; os.close(3); import time; time.sleep(60)", "without an answer"),
        # more than a pipe takes: it waits there until it is ended
        ("import os\nwhile True: os.write(3, bytes(65536))", "without an answer"),
    ],
)
def test_whatever_a_resolver_does_there_is_one_answer_in_bounded_time(ask, monkeypatch, script, why):
    real = lookup.spawn

    def spawn(module, *, args, fds):
        """Another program in its place, started in the same way."""
        directory = Path(lookup.__file__).parent
        assert (directory / module.partition(".")[2]).is_dir()
        return real("timeit", args=["-n1", "-r1", script], fds=fds)

    monkeypatch.setattr(lookup, "spawn", spawn)
    monkeypatch.setattr(lookup, "LOOKUP_SECONDS", 1.0)
    answer, _ = ask("localhost")
    assert isinstance(answer, NotFound)
    assert why in answer.why


def test_an_answer_is_typed_and_bounded():
    """What a captured resolver can say: at most sixteen addresses, or a line."""
    address = ipaddress.ip_address("192.0.2.2")
    for wrong in (Found(addresses=(address,) * 17), Found(addresses=()), NotFound(why="x" * 2000)):
        with pytest.raises(SchemaError):
            ANSWERS.decode(ANSWERS.encode(wrong, 0))


def test_modules_of_name_services_are_those_that_nsswitch_has_for_hosts():
    text = "passwd: files systemd\n# hosts: x\nhosts:  files mdns4_minimal [NOTFOUND=return] dns  # and no more\n"
    assert modules(text) == ("libnss_files.so.2", "libnss_mdns4_minimal.so.2", "libnss_dns.so.2")
    assert modules("hosts: ../../evil files") == ("libnss_files.so.2",)
    assert modules("") == ()
