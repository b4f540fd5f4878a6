"""The operator's commands, from request to result, over a service whose worker is the test."""

import pytest

from monitor.commands import MAX_FOLLOWERS, MAX_NAMED, MAX_ORDER_SECONDS, STATUS_SECONDS, Commands
from privsep.log import Level, Record
from privsep.schema.install import Completed, Describe, Described, Down, Outcome, Progress, Up


class FakeClient:
    """Keeps what it is told."""

    def __init__(self):
        self.said = []
        self.result = None
        self.stays = False
        self.room = True
        self.on_gone = lambda: None

    def progress(self, text):
        self.said.append(text)

    def event(self, event):
        self.said += [event] if self.room else []
        return self.room

    def endless(self, on_room):
        self.stays = True
        self.on_room = on_room

    def finish(self, code, text, **more):
        self.result = {"code": code, "text": text, **more}


@pytest.fixture
def operator(bench):
    ordered = []
    commands = Commands(
        bench.service,
        bench.clock,
        "the kernel has no ESP",
        lambda: {"monitor": 10, "worker": 11},
        lambda level, connection: ordered.append((level, connection)) or len(ordered) < 3,
    )

    def request(**fields):
        client = FakeClient()
        commands.serve(dict(fields), client)
        return client

    request.commands = commands
    request.ordered = ordered
    return request


def answer(bench, kind, message):
    _, sequence = [(sent, sequence) for sent, sequence in bench.sent if isinstance(sent, kind)][-1]
    bench.service.from_worker(message, sequence)


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"command": "explode"},
        {"command": ["status"]},
        {"command": None},
        {"command": "up"},
        {"command": "status", "child": "lan"},
        {"command": "audit", "connection": "paris"},
        {"command": "up", "connection": 7},
        {"command": "up", "connection": True},
        {"command": "up", "connection": "p" * 65},
        {"command": "up", "connection": "paris", "child": None},
        {"command": "up", "connection": "paris", "timeout": 0},
        {"command": "up", "connection": "paris", "timeout": True},
        {"command": "up", "connection": "paris", "timeout": 1.5},
        {"command": "up", "connection": "paris", "timeout": MAX_ORDER_SECONDS + 1},
    ],
)
def test_what_is_no_request_never_reaches_the_worker(operator, bench, request_):
    assert operator(**request_).result["code"] == 2
    assert bench.sent == []


@pytest.mark.parametrize("command", ["up", "down", "status"])
def test_an_unknown_connection_fails_and_names_those_that_exist(operator, bench, command):
    result = operator(command=command, connection="rome\n").result
    assert result["code"] == 1
    assert "paris" in result["text"]
    assert "\n" not in result["text"]
    assert bench.sent == []


def test_of_thousands_of_connections_a_few_are_named(operator, bench, kit):
    many = tuple(kit.connection(name=f"c{number}") for number in range(MAX_NAMED + 3))
    operator.commands._gateway = kit.replace(bench.gateway, connections=many)
    text = operator(command="up", connection="rome").result["text"]
    assert text.endswith(f", c{MAX_NAMED - 1} and 3 more")


def test_an_unknown_child_fails_and_names_those_that_exist(operator):
    result = operator(command="up", connection="paris", child="wan").result
    assert result["code"] == 1
    assert "lan, dmz" in result["text"]


@pytest.mark.parametrize(("command", "kind"), [("up", Up), ("down", Down)])
@pytest.mark.parametrize(("outcome", "code"), [(Outcome.DONE, 0), (Outcome.FAILED, 1)])
def test_an_order_is_forwarded_its_steps_streamed_its_outcome_told(operator, bench, command, kind, outcome, code):
    client = operator(command=command, connection="paris", child="lan")
    order = bench.sent[-1][0]
    assert (type(order), order.connection, order.child) == (kind, "paris", "lan")
    bench.service.from_worker(Progress(order=order.order, text="message 1 sent"), 0)
    answer(bench, kind, Completed(outcome=outcome, text="that is why"))
    assert client.said == ["message 1 sent"]
    assert client.result == {"code": code, "text": "that is why"}


def test_an_order_that_takes_too_long_times_out_and_its_late_end_is_no_violation(operator, bench):
    client = operator(command="up", connection="paris", timeout=5)
    bench.clock.advance(5)
    assert client.result["code"] == 5
    answer(bench, Up, Completed(outcome=Outcome.DONE, text=""))
    assert client.result["code"] == 5


def test_an_order_fails_with_its_worker(operator, bench):
    client = operator(command="up", connection="paris")
    bench.service.epoch_ended()
    assert client.result["code"] == 1
    assert operator(command="up", connection="paris").result["code"] == 1


def test_status_is_a_document(operator, bench):
    client = operator(command="status")
    answer(bench, Describe, Described(cursor=0, ike_sas=()))
    assert client.result["code"] == 0
    status = client.result["status"]
    assert (status["schema_version"], status["dataplane"], status["worker"]) == (1, "fake", "running")
    assert status["dataplane_reason"] == "the kernel has no ESP"
    assert [each["name"] for each in status["connections"]] == ["paris", "host", "road", "bare", "wrapped"]


def test_a_stuck_worker_does_not_keep_status(operator, bench):
    client = operator(command="status")
    assert client.result is None
    bench.clock.advance(STATUS_SECONDS)
    assert client.result["code"] == 5
    assert client.result["status"]["worker"] == "not answering"
    answer(bench, Describe, Described(cursor=0, ike_sas=()))


def test_a_stuck_data_plane_does_not_keep_status(operator, bench, kit):
    bench.service.sadb.allocate(kit.allocation())
    bench.install(kit.redeemed())
    bench.plane.held = True
    client = operator(command="status")
    answer(bench, Describe, Described(cursor=0, ike_sas=()))
    assert client.result is None
    bench.clock.advance(STATUS_SECONDS)
    assert client.result["status"]["adopted"][0]["spi_in"] == "0x00001000"
    assert client.result["status"]["adopted"][0]["bytes_in"] is None


def test_status_without_a_worker_says_that_it_is_being_restarted(operator, bench):
    bench.service.epoch_ended()
    result = operator(command="status").result
    assert (result["code"], result["status"]["worker"]) == (0, "restarting")


def test_audit_lists_processes_users_and_what_the_configuration_calls_absent(operator):
    result = operator(command="audit").result
    assert result["processes"] == [{"name": "monitor", "pid": 10}, {"name": "worker", "pid": 11}]
    assert result["users"]["keyd"] == (1002, 1002)
    assert result["absent"] == []


def test_reload_is_refused_in_words(operator):
    result = operator(command="reload").result
    assert result["code"] == 1
    assert "not supported by this release" in result["text"]


def test_events_reach_their_followers_escaped_until_they_leave(operator):
    client = operator(command="events")
    assert client.stays
    operator.commands.log(Level.NOTICE, "installed", connection="paris", text="a\nb\x1b")
    operator.commands.log(Level.DEBUG, "datagram-dropped")
    client.on_gone()
    operator.commands.log(Level.NOTICE, "removed")
    assert [event["event"] for event in client.said] == ["installed"]
    assert client.said[0]["fields"] == {"connection": "paris", "text": "a\\nb\\x1b"}
    assert client.said[0]["schema_version"] == 1
    assert client.said[0]["process"] == "monitor"


def test_followers_see_whose_word_a_childs_event_is(operator):
    client = operator(command="events")
    said = Record(Level.NOTICE, "ike-established", {"connection": "paris", "process": "monitor"})
    operator.commands.follow("worker", said)
    operator.commands.follow("worker", Record(Level.DEBUG, "datagram-dropped", {}))
    (event,) = client.said
    assert (event["process"], event["event"]) == ("worker", "ike-established")
    assert event["fields"] == {"connection": "paris", "process": "monitor"}


def test_a_slow_follower_is_told_how_much_it_missed_once_it_has_room(operator):
    slow, quick = operator(command="events"), operator(command="events")
    operator.commands.log(Level.NOTICE, "installed")
    slow.room = False
    for _ in range(5):
        operator.commands.log(Level.NOTICE, "removed")
    slow.room = True
    slow.on_room()
    operator.commands.log(Level.NOTICE, "installed")
    assert [event["event"] for event in slow.said] == ["installed", "left-out", "installed"]
    assert slow.said[1]["fields"]["lines"] == "5"
    assert [event["event"] for event in quick.said] == ["installed"] + ["removed"] * 5 + ["installed"]


def test_followers_leave_places_for_others(operator):
    followers = [operator(command="events") for _ in range(MAX_FOLLOWERS)]
    late = operator(command="events")
    assert late.result["code"] == 1
    followers[0].on_gone()
    assert operator(command="events").result is None


def test_the_level_of_the_log_is_set_for_all_or_for_one_connection(operator):
    assert operator(command="log", level="debug").result == {"code": 0, "text": ""}
    assert operator(command="log", level="warning", connection="paris").result["code"] == 0
    assert operator.ordered == [(Level.DEBUG, ""), (Level.WARNING, "paris")]
    assert operator(command="log", level="info", connection="paris").result["code"] == 1
    assert operator(command="log", level="info", connection="nowhere").result["code"] == 1


@pytest.mark.parametrize("level", ["fatal", "DEBUG", "", 7, None, ["info"]])
def test_a_level_that_is_none_is_refused(operator, level):
    result = operator(command="log", level=level).result
    assert result["code"] == 2
    assert "debug, info, notice, warning, error" in result["text"]
    assert operator.ordered == []
