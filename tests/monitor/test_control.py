"""The operator's socket: one honest client, and all the others."""

import contextlib
import fcntl
import json
import os
import socket
import stat
from itertools import count

import pytest

from monitor import control as control_module
from monitor.control import MAX_CLIENTS, MAX_REQUEST, Control, listen
from privsep.errors import OperatorError


class Operator:
    """A client that never blocks the loop it shares a thread with."""

    def __init__(self, run_dir):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(run_dir / "control.sock"))
        self.sock.setblocking(False)
        self.received = b""
        self.ended = False

    def say(self, data):
        self.sock.send(data if isinstance(data, bytes) else json.dumps(data).encode() + b"\n")
        return self

    def poll(self):
        try:
            data = self.sock.recv(1 << 20)
        except BlockingIOError:
            return self.ended
        except ConnectionResetError:
            data = b""
        self.received += data
        self.ended = self.ended or not data
        return self.ended

    @property
    def lines(self):
        return [json.loads(line) for line in self.received.splitlines()]


@pytest.fixture
def server(tmp_path, loop):
    """A control socket whose requests and clients are listed; made as `make()`, closed at the end."""

    class Server:
        def start(self, uid):
            self.requests, self.logged = [], []
            self.control = Control(
                listen(tmp_path),
                loop,
                lambda request, client: self.requests.append((request, client)),
                lambda level, code, **fields: self.logged.append(code),
                uid,
            )
            return self

        def operator(self):
            return Operator(tmp_path)

        def served(self, request):
            """An operator whose request has arrived, and the client that stands for it."""
            operator = self.operator().say(request)
            known = len(self.requests)
            loop.until(lambda: len(self.requests) > known)
            return operator, self.requests[-1][1]

    server = Server().start(os.geteuid())
    yield server
    server.control.close()


def test_the_socket_is_its_owners_alone(server, tmp_path):
    mode = (tmp_path / "control.sock").stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_a_request_gets_its_steps_its_result_and_the_end(server, loop):
    operator, client = server.served({"command": "up", "connection": "paris"})
    assert server.requests[-1][0] == {"command": "up", "connection": "paris"}
    client.progress("message 1")
    client.progress("message 2")
    client.finish(0, "up", extra=[1])
    loop.until(operator.poll)
    assert operator.lines == [
        {"kind": "progress", "text": "message 1"},
        {"kind": "progress", "text": "message 2"},
        {"kind": "result", "code": 0, "text": "up", "extra": [1]},
    ]


def test_a_request_in_many_pieces_is_one_request(server, loop):
    operator = server.operator()
    for piece in (b'{"comm', b'and": "sta', b'tus"}', b"\n"):
        operator.say(piece)
        loop.during(0.01)
    loop.until(lambda: server.requests)
    assert server.requests[0][0] == {"command": "status"}


@pytest.mark.parametrize(
    "garbage",
    [
        b"\n",
        b"not json\n",
        b"[1]\n",
        b"\xff\xfe\n",
        b"[" * 4000 + b"\n",
        b"x" * (MAX_REQUEST + 1),
        b'{"command": "status"}\n{"command": "status"}\n',
    ],
)
def test_garbage_gets_a_usage_error_and_is_never_served(server, loop, garbage):
    operator = server.operator().say(garbage)
    loop.until(operator.poll)
    assert [line["code"] for line in operator.lines] == [2]
    assert server.requests == []


def test_a_huge_request_is_answered_and_cut_off(server, loop):
    operator = server.operator().say(b"x" * 100_000)
    loop.until(operator.poll)
    assert server.requests == []


def test_a_client_that_says_nothing_is_sent_away(server, loop, monkeypatch):
    monkeypatch.setattr(control_module, "REQUEST_SECONDS", 0.05)
    operator = server.operator().say(b'{"command"')
    loop.until(operator.poll)
    assert operator.lines == []


def test_a_request_is_not_served_for_ever(server, loop, monkeypatch):
    monkeypatch.setattr(control_module, "TOTAL_SECONDS", 0.05)
    operator, _ = server.served({"command": "up"})
    loop.until(operator.poll)


def test_a_follower_of_events_may_stay(server, loop, monkeypatch):
    monkeypatch.setattr(control_module, "TOTAL_SECONDS", 1.0)
    operator, client = server.served({"command": "events"})
    client.endless(lambda: None)
    loop.during(1.2)
    client.event({"event": "installed"})
    loop.until(lambda: operator.poll() or operator.received)
    assert operator.lines == [{"kind": "event", "event": "installed"}]


def test_a_follower_that_does_not_read_has_no_room_and_keeps_its_place(server, loop, monkeypatch):
    monkeypatch.setattr(control_module, "STALL_SECONDS", 0.05)
    operator, client = server.served({"command": "events"})
    gone, room = [], []
    client.on_gone = lambda: gone.append(1)
    client.endless(lambda: room.append(1))
    numbers, taken = count(), []

    def fill():
        while client.event({"number": (number := next(numbers)), "text": "x" * 1000}):
            taken.append(number)

    fill()
    loop.during(0.2)
    # what the kernel had room for is on its way
    fill()
    assert taken
    assert gone == room == []
    loop.until(lambda: operator.poll() or room)
    loop.during(0.05)
    operator.poll()
    assert [line["number"] for line in operator.lines] == taken
    assert client.event({"text": "x"})


def test_a_client_that_does_not_read_its_steps_is_sent_away(server, loop):
    _, client = server.served({"command": "up"})
    gone = []
    client.on_gone = lambda: gone.append(1)
    for _ in range(3000):
        client.progress("x" * 1000)
    assert gone == [1]
    client.progress("dropped")


def test_a_result_that_nobody_reads_is_given_up(server, loop, monkeypatch):
    monkeypatch.setattr(control_module, "STALL_SECONDS", 0.05)
    _, client = server.served({"command": "status"})
    gone = []
    client.on_gone = lambda: gone.append(1)
    client.finish(0, "x" * 2_000_000)
    loop.until(lambda: gone)


def test_a_long_result_reaches_a_slow_reader_whole(server, loop, monkeypatch):
    operator, client = server.served({"command": "status"})
    client.finish(0, "x" * 2_000_000)
    loop.until(operator.poll)
    assert len(operator.lines[0]["text"]) == 2_000_000


def test_a_client_that_hangs_up_is_noticed(server, loop):
    operator, client = server.served({"command": "up"})
    gone = []
    client.on_gone = lambda: gone.append(1)
    operator.sock.close()
    loop.until(lambda: gone)
    client.progress("nobody hears")
    client.finish(0, "nobody hears")


def test_the_others_are_served_while_some_are_silent(server, loop):
    silent = [server.operator() for _ in range(MAX_CLIENTS - 1)]
    operator, client = server.served({"command": "status"})
    client.finish(0, "")
    loop.until(operator.poll)
    assert not any(each.poll() for each in silent)


def test_one_client_too_many_is_refused(server, loop):
    kept = []
    for _ in range(MAX_CLIENTS):
        kept.append(server.operator())
        loop.during(0.002)
    late = server.operator()
    loop.until(late.poll)
    assert server.logged == ["operator-refused"]
    assert not kept[0].poll()


def test_another_uid_is_refused_without_a_word(server, loop):
    server.control.close()
    server.start(uid=os.geteuid() + 1)
    operator = server.operator()
    loop.until(operator.poll)
    assert operator.received == b""
    assert server.logged == ["operator-refused"]


def test_a_second_instance_is_told_so(server, tmp_path):
    with pytest.raises(OperatorError, match="another instance"):
        listen(tmp_path)


def test_a_socket_left_over_by_a_dead_instance_is_replaced(tmp_path):
    listen(tmp_path).close()
    listen(tmp_path).close()


def test_an_instance_that_is_too_busy_to_accept_anybody_still_counts(tmp_path):
    """Its backlog is full: who asks by connecting would wait for as long as it is stuck."""
    with listen(tmp_path) as first, contextlib.ExitStack() as waiting:
        path = first.getsockname()
        for _ in range(MAX_CLIENTS + 2):
            sock = waiting.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            sock.connect_ex(path)
        with pytest.raises(OperatorError, match="another instance runs"):
            listen(tmp_path)
        assert os.path.exists(path)


def test_of_two_that_start_at_once_one_gives_way(tmp_path):
    """The other may have bound its socket and not listen yet, which looks like one that was left behind."""
    with open(tmp_path / "lock", "w") as held, socket.socket(socket.AF_UNIX) as bound:
        fcntl.flock(held, fcntl.LOCK_EX)
        bound.bind(str(tmp_path / "control.sock"))
        with pytest.raises(OperatorError, match="another instance is starting"):
            listen(tmp_path)
        assert (tmp_path / "control.sock").exists()
    listen(tmp_path).close()


def test_nobody_else_can_hold_the_lock(tmp_path):
    listen(tmp_path).close()
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_a_path_that_is_too_long_for_a_socket_is_told_as_that(tmp_path):
    directory = tmp_path / ("d" * 100)
    directory.mkdir()
    with pytest.raises(OperatorError, match="too long"):
        listen(directory)


def test_a_directory_that_is_not_there_is_the_operators_error(tmp_path):
    with pytest.raises(OperatorError, match="run-dir"):
        listen(tmp_path / "missing")
