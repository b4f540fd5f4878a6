"""When names are looked up, and what becomes of the answers: a fake clock, and a name service that the test plays."""

import ipaddress
import itertools
from dataclasses import replace

import pytest

from monitor.names import (
    FIRST_RETRY,
    HASTE_SECONDS,
    JITTER,
    MAX_RETRY,
    MAX_RUNNING,
    REFRESH_SECONDS,
    REFRESH_SECONDS_A_NAME,
    Names,
)
from privsep.config.names import RemoteName
from privsep.schema.names import Found, NotFound

FIRST, SECOND, OURS = (ipaddress.ip_address(f"192.0.2.{n}") for n in (2, 3, 1))
SIX = ipaddress.ip_address("2001:db8::2")
UNKNOWN = NotFound(why="Name or service not known")


class House:
    """Names under test; `answers` says what is found by name, None that nobody answers yet."""

    def __init__(self, kit, clock, *remotes, chance=0.5):
        self.clock = clock
        self.answers = {}
        self.asked = []
        self.open = []
        self.located = []
        self.logged = []
        self.chance = chance
        connections = tuple(
            kit.connection(name=f"c{number}", remote=remote, local=None) for number, remote in enumerate(remotes)
        )
        self.gateway = replace(kit.gateway(), connections=connections, listen=(OURS,))
        self.names = Names(
            self.gateway,
            clock,
            lambda level, code, **fields: self.logged.append((level.value, code, fields)),
            self.look_up,
            lambda: self.chance,
            self.locate,
        )

    def look_up(self, name, version, told):
        self.asked.append((self.clock.now(), name, version))
        answer = self.answers.get(name, UNKNOWN)
        if isinstance(answer, OSError):
            raise answer
        if answer is None:
            self.open.append(told)
        else:
            self.clock.after(0.001, lambda: told(answer))

    def locate(self, connection, address):
        self.gateway.locate(connection, address)
        self.located.append((connection.name, address))

    def times(self):
        return [round(time - 1000.0) for time, _, _ in self.asked]


@pytest.fixture
def house(kit, clock):
    return lambda *remotes, **more: House(kit, clock, *(remotes or (RemoteName("a.example", 4),)), **more)


@pytest.fixture
def clock(bench):
    return bench.clock


def found(*addresses):
    return Found(addresses=addresses)


def test_a_name_is_asked_for_at_the_start_and_every_five_minutes(house):
    made = house()
    made.answers["a.example"] = found(FIRST)
    made.names.start()
    made.clock.advance(3 * REFRESH_SECONDS + 1)
    assert made.times() == [0, 300, 600, 900]
    assert made.asked[0][1:] == ("a.example", 4)
    # told once: nothing has changed since
    assert made.located == [("c0", FIRST)]


def test_what_does_not_resolve_is_asked_for_after_five_seconds_at_first_and_five_minutes_at_last(house):
    made = house()
    made.names.start()
    made.clock.advance(2000)
    pauses = [later - earlier for earlier, later in itertools.pairwise(made.times())]
    assert pauses[:8] == [5, 10, 20, 40, 80, 160, 300, 300]
    assert (FIRST_RETRY, MAX_RETRY) == (5, 300)
    assert made.located == []
    # one line for the kind of failure, not one a look-up
    assert [code for _, code, _ in made.logged] == ["name-unresolved"]
    assert made.names.missing("c0") == "a.example does not resolve: Name or service not known"
    made.answers["a.example"] = found(FIRST)
    made.clock.advance(400)
    assert made.located == [("c0", FIRST)]
    assert made.names.missing("c0") == ""


@pytest.mark.parametrize(("chance", "factor"), [(0.0, 1 - JITTER), (0.999999, 1 + JITTER)])
def test_pauses_differ_by_chance_so_that_many_gateways_do_not_ask_in_step(house, chance, factor):
    made = house(chance=chance)
    made.names.start()
    made.clock.advance(FIRST_RETRY * factor + 1)
    assert len(made.asked) == 2
    assert made.asked[1][0] - made.asked[0][0] == pytest.approx(FIRST_RETRY * factor, abs=0.2)


def test_the_last_address_stays_until_another_one_is_found(house):
    made = house()
    made.answers["a.example"] = found(FIRST)
    made.names.start()
    made.clock.advance(1)
    made.answers["a.example"] = UNKNOWN
    made.clock.advance(REFRESH_SECONDS)
    assert (made.located, made.names.missing("c0")) == ([("c0", FIRST)], "")
    made.answers["a.example"] = found(SECOND)
    made.clock.advance(10)
    assert made.located == [("c0", FIRST), ("c0", SECOND)]


def test_of_several_addresses_in_changing_order_the_one_that_serves_stays(house):
    made = house()
    made.answers["a.example"] = found(FIRST, SECOND)
    made.names.start()
    made.clock.advance(1)
    made.answers["a.example"] = found(SECOND, FIRST)
    made.clock.advance(2 * REFRESH_SECONDS)
    assert made.located == [("c0", FIRST)]


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", OURS, SIX])
def test_a_name_server_cannot_make_a_peer_of_what_is_none(house, address):
    """Ourselves, everybody, nobody, or an address of another IP version than `local`."""
    made = house()
    made.answers["a.example"] = found(ipaddress.ip_address(address))
    made.names.start()
    made.clock.advance(1)
    assert made.located == []
    assert "is not the address of another host" in made.names.missing("c0")
    made.answers["a.example"] = found(ipaddress.ip_address(address), FIRST)
    made.clock.advance(10)
    assert made.located == [("c0", FIRST)]


def test_connections_of_one_name_share_one_look_up(house):
    made = house(*(RemoteName("a.example", 4) for _ in range(5)), RemoteName("a.example", 6))
    made.answers["a.example"] = found(FIRST, SIX)
    made.names.start()
    made.clock.advance(1)
    assert sorted(asked[1:] for asked in made.asked) == [("a.example", 4), ("a.example", 6)]
    assert made.located == [*((f"c{n}", FIRST) for n in range(5)), ("c5", SIX)]


def test_a_few_processes_at_once_however_many_names_there_are(house):
    made = house(*(RemoteName(f"{n}.example", 4) for n in range(10)))
    made.answers = {f"{n}.example": None for n in range(10)}
    made.names.start()
    assert len(made.asked) == MAX_RUNNING
    made.open.pop(0)(found(FIRST))
    assert len(made.asked) == MAX_RUNNING + 1
    while made.open:
        made.open.pop(0)(found(FIRST))
    assert len({name for _, name, _ in made.asked}) == 10


def test_ten_thousand_names_are_asked_for_at_a_pace_that_one_processor_bears(house):
    made = house(*(RemoteName(f"{n}.example", 4) for n in range(1200)))
    made.answers = {f"{n}.example": found(FIRST) for n in range(1200)}
    made.names.start()
    made.clock.advance(1200 * REFRESH_SECONDS_A_NAME - 10)
    assert len(made.asked) == 1200


def test_a_negotiation_without_an_answer_hastens_the_next_look_up_and_cannot_make_a_storm(house):
    """A captured worker says so as often as it likes, of all names."""
    made = house(*(RemoteName(f"{n}.example", 4) for n in range(3)), FIRST)
    made.answers = {f"{n}.example": found(FIRST) for n in range(3)}
    made.names.start()
    for _ in range(10 * 120):
        for name in ("c0", "c1", "c2", "c3", "nobody"):
            made.names.hasten(name)
        made.clock.advance(0.1)
    wanted = 3 * (120 / HASTE_SECONDS)
    assert 3 < len(made.asked) <= wanted


def test_a_name_that_is_being_looked_up_is_not_looked_up_twice(house):
    made = house()
    made.answers["a.example"] = None
    made.names.start()
    for _ in range(10):
        made.clock.advance(HASTE_SECONDS)
        made.names.hasten("c0")
    assert len(made.asked) == 1


def test_a_machine_that_can_start_no_process_is_tried_again(house):
    made = house()
    made.answers["a.example"] = OSError(11, "Resource temporarily unavailable")
    made.names.start()
    assert "no resolver can be started (Resource temporarily unavailable)" in made.names.missing("c0")
    made.answers["a.example"] = found(FIRST)
    made.clock.advance(10)
    assert made.located == [("c0", FIRST)]


def test_after_the_stop_nothing_is_looked_up_or_believed(house):
    made = house(RemoteName("a.example", 4), RemoteName("b.example", 4))
    made.answers = {"a.example": None, "b.example": UNKNOWN}
    made.names.start()
    made.clock.advance(1)
    made.names.stop()
    made.open.pop()(found(FIRST))
    made.names.hasten("c1")
    made.clock.advance(10 * REFRESH_SECONDS)
    assert (len(made.asked), made.located) == (2, [])
