"""A captured worker with real, redeemable keymat asks the monitor for what it must not have.

keyd has authenticated the peer, and the keys are good: what stands between them and the data plane is the monitor's
second opinion. Each lie is told to the gateway as shipped, then to one whose monitor leaves out, one after the other,
the checks that stand in its way. As long as one is left, that one says no; without any, the lie is installed.

To get an SPI the worker says of each what passes, so that the installation judges by itself. Told candidly, what needs
no keys is denied with the allocation.
"""

import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgpack
import pytest
from lab import LEFT, RIGHT_HOST, Wiretap
from lies import LIES, Attacker, Lie, endpoint, lax, selectors
from switches import FEW_POLICIES, INSTALLED_THERE, SENDING_THERE, SHIPPED, SWITCHABLE, WEAK_ESP
from world import SECOND, Plan, World

from monitor.authorize import CHECKS, FORESEEABLE
from monitor.numbers import MAX_UNUSED_OF_IDENTITY
from privsep.algorithms import ChildSuite
from privsep.cli.control import ask
from privsep.schema import esp, install
from privsep.schema.install import Denial
from privsep.types import Mode


def there(world: World) -> list[int]:
    """Inbound SPIs of the pairs that the data plane has, whatever the monitor believes."""
    return world.in_esp(INSTALLED_THERE)


@pytest.fixture
def attackers(worlds) -> Iterator[Callable[[Plan], Attacker]]:
    made: dict[Plan, Attacker] = {}

    def get(plan: Plan) -> Attacker:
        if plan not in made:
            made[plan] = Attacker(worlds(plan))
        return made[plan]

    yield get
    for attacker in made.values():
        attacker.withdraw()


@pytest.fixture
def switch(worlds) -> Iterator[Callable[..., None]]:
    """Leave out the checks of these names, and no others."""
    world = worlds(SWITCHABLE)
    file = world.victim.site.directory / "switches"

    def off(*names: str) -> None:
        file.write_text(json.dumps(names))
        world.in_esp(WEAK_ESP, weak="esp" in names)

    yield off
    off()


def refused(attacker: Attacker, lie: Lie, reason: str, tell: Callable[[Attacker, Lie], str] = Attacker.tell) -> None:
    """Told in vain, by the answer, the log and the data plane."""
    world = attacker.world
    mark = world.mark()
    assert tell(attacker, lie) == reason
    if not reason.startswith("keyd"):
        connection, child = lie.child.split("/")
        line = rf"^warning denied reason={reason.lower()} connection={connection} child={child} remote="
        lines = r"^error install-failed" if reason == "DATAPLANE" else line
        if not world.logged(mark, lines):
            # the log takes so many a second, and counts the others; the next one comes after a pause
            attacker.withdraw()
            assert tell(attacker, lie) == reason
            assert world.logged(mark, lines), world.log_since(mark)
    # nothing but what an honest request of the same scenario put there, and the bystander's
    honest = {*attacker.pairs, *spis_of(world, "peer")}
    assert there(world) == sorted({*honest, *attacker.halves})
    assert world.in_esp(SENDING_THERE) == sorted(honest)


def spis_of(world: World, connection: str) -> set[int]:
    """Inbound SPIs of what `status` says is installed."""
    status = ask(str(world.victim.run_dir), {"command": "status", "connection": connection}, seconds=10)["status"]
    children = [*status["adopted"], *(child for sa in status["ike_sas"] for child in sa["children"])]
    return {int(each["spi_in"], 16) for each in children}


@pytest.mark.parametrize("name", LIES)
def test_a_captured_worker_cannot_install(attackers, switch, record, name):
    lie = LIES[name]
    checks = [check for check, _ in lie.layers]
    reasons = [reason.name for _, reason in lie.layers]
    if not lie.scaled:
        attacker = attackers(SHIPPED)
        if lie.keyd:
            refused(attacker, lie, f"keyd: {lie.keyd}")
        else:
            with weakened(attacker.world, lie):
                refused(attacker, lie, reasons[0])
        attacker.withdraw()
        assert attacker.world.bystander_works()
    attacker = attackers(SWITCHABLE)
    always = ("scale",) if lie.scaled else ()
    with weakened(attacker.world, lie):
        for number, reason in enumerate(reasons):
            switch(*always, *checks[:number])
            refused(attacker, lie, reason)
            attacker.withdraw()
        switch(*always, *checks)
        assert attacker.tell(lie) == "INSTALLED"
        assert attacker.pairs[-1] in attacker.world.in_esp(SENDING_THERE)
    assert attacker.world.bystander_works()
    stopped_by = [
        *((f"keyd ({lie.keyd})",) if lie.keyd else ()),
        *(f"{c} ({r})" for c, r in zip(checks, reasons, strict=True)),
    ]
    record(", behind it ".join(stopped_by), "without: installed")


FORESEEN = [check.__name__ for check in FORESEEABLE]


def foreseen(lie: Lie) -> list[tuple[str, Denial]]:
    """What can be told of it before there are keys, in the order in which it is."""
    return sorted((layer for layer in lie.layers if layer[0] in FORESEEN), key=lambda layer: FORESEEN.index(layer[0]))


@pytest.mark.parametrize("name", [name for name, lie in LIES.items() if foreseen(lie)])
def test_what_needs_no_keys_is_denied_with_the_allocation(attackers, switch, record, name):
    """An honest worker learns it before its peer does, and no message leaves."""
    lie = LIES[name]
    layers = foreseen(lie)
    checks = [f"foreseen {check}" for check, _ in layers]
    always = ("scale",) if lie.scaled else ()
    if not lie.scaled:
        refused(attackers(SHIPPED), lie, layers[0][1].name, Attacker.foretell)
        attackers(SHIPPED).withdraw()
    attacker = attackers(SWITCHABLE)
    for number, (_, reason) in enumerate(layers):
        switch(*always, *checks[:number])
        refused(attacker, lie, reason.name, Attacker.foretell)
        attacker.withdraw()
    switch(*always, *checks)
    assert attacker.foretell(lie) == "ALLOCATED"
    assert attacker.world.bystander_works()
    record(", behind it ".join(f"{c} ({r.name})" for c, (_, r) in zip(checks, layers, strict=True)), "without: an SPI")


def test_it_cannot_use_up_the_policies_of_others_by_ever_other_selectors(attackers, switch, record):
    """What has no pair yields: its own first, then what its connection has, and never what somebody uses."""
    attacker = attackers(SWITCHABLE)
    neighbour = lax(layers=(), address="192.0.2.12", local_ts="10.1.9.0/24", remote_ts="10.8.9.0/24")

    def churn() -> int:
        """How many of its networks are led into the tunnel after that."""
        for number in range(3 * FEW_POLICIES):
            lie = lax(layers=(), local_ts="10.1.8.0/24", remote_ts=f"10.8.{100 + number}.0/24")
            assert attacker.tell(lie) == "INSTALLED"
            spi = attacker.pairs.pop()
            attacker.remove(spi)
        network = attacker.world.network
        routes = network.ip(network.left, "route", "show", "table", "4500", "type", "unicast")
        assert "10.8.9.0/24" in routes
        return len(re.findall(r"^10\.8\.1\d\d\.", routes, re.M))

    assert attacker.tell(neighbour) == "INSTALLED"
    assert churn() == MAX_UNUSED_OF_IDENTITY
    switch("identity")
    lifted = churn()
    assert lifted == 3 * FEW_POLICIES > MAX_UNUSED_OF_IDENTITY
    assert attacker.tell(Lie(layers=())) == "INSTALLED"
    assert attacker.world.bystander_works()
    record("what has no pair yields its number", f"bound for an identity lifted: {lifted} policies")


@contextmanager
def weakened(world: World, lie: Lie) -> Iterator[None]:
    """keyd without its check, or helpful, for so long."""
    out, back = lie.weaken
    if out:
        assert world.in_keyd(out, **lie.facts) == "succeeded"
    try:
        yield
    finally:
        if back:
            assert world.in_keyd(back, **lie.facts) == "succeeded"


ELSEWHERE = {"_not_ah", "_compression", "_cpi_is_ours", "_cpi_is_new"}
"""AH and IPComp need a kernel that has them: tests/monitor/test_authorize.py lies about them."""


def test_every_check_of_the_second_opinion_has_its_lie():
    told = {check for lie in LIES.values() for check, _ in lie.layers}
    assert {check.__name__ for check in CHECKS} - told == ELSEWHERE
    assert told.issuperset(FORESEEN)


# no words


EXTRA = {"selectors": [], "mode": 1, "mark": 7, "if_id": 7, "priority": 0, "lifetime": 2**31, "replay window": 0}


def test_it_has_no_word_for_what_comes_from_the_configuration_only(attackers, record):
    """Selectors, mode, mark, if_id, priority, lifetime, replay window: a frame with a field too many ends the epoch."""
    attacker = attackers(SHIPPED)
    world = attacker.world
    honest = msgpack.unpackb(install.FROM_WORKER.encode(install.InstallInbound(
        keymat=bytes(16), local=endpoint(LEFT), remote=endpoint(SECOND),
    ), 2**41))  # fmt: skip
    send = "me.raw_monitor(bytes.fromhex(frame))\nresult = plain(me.wait(number, me._turn))"
    for value in EXTRA.values():
        violates(world, send, msgpack.packb([*honest, value]), "wrong number of fields")
    violates(world, send, esp.REQUESTS.encode(add_pair(), 2**41), "wrong number of fields")
    # the same frame without them is a request like any other
    outcome = world.attack(send, frame=msgpack.packb(honest).hex(), number=honest[1])
    assert outcome == {"kind": "Denied", "why": str(Denial.KEYMAT)}
    record("the channel's table of operations and fields", "the frame without the field: judged")


def add_pair() -> esp.AddInbound:
    """What the monitor would tell the ESP process."""
    return esp.AddInbound(
        spi_in=0x1000, spi_out=0x2000, suite=ChildSuite.parse("aes256gcm16"), mode=Mode.TUNNEL, policy=1,
        encryption_in=bytes(36), integrity_in=b"", local=endpoint(LEFT),
        remote=endpoint(SECOND), encap=False, local_ts=(selectors("10.1.0.0/24"),),
        remote_ts=(selectors("10.4.0.0/24"),), replay_window=32, lifetime_s=3600,
    )  # fmt: skip


def violates(world: World, code: str, frame: bytes, problem: str) -> None:
    mark = world.mark()
    world.attempt(code, frame=frame.hex(), number=0)
    assert world.logged(mark, rf'^error epoch-ends reason="channel to worker: violation: {problem}"$')
    world.recover()
    assert world.bystander_works()


# deletion


REMOVE_ALL = """
# whatever it was told of, and whatever else it guesses
known = [*me.engine._context.children, *me.engine._context.adopted]
outcomes = [plain(me.monitor(install.Remove(spi_in=spi))) for spi in [*known, *guesses]]
result = [outcome["kind"] for outcome in outcomes]
# from now on it tells its peers nothing and negotiates nothing
me.engine.monitor_message = lambda *_: None
"""
POLICIES_GO_TOO = """
from monitor.service import Service
remove = Service._remove

async def and_its_policy(self, epoch, entry, sequence):
    await self.dataplane.remove_policy(entry.pair.policy)
    await remove(self, epoch, entry, sequence)

Service._remove = and_its_policy
"""


def test_it_cannot_turn_a_deletion_into_clear_text(worlds, record):
    """It may remove every pair, its own and its predecessors', but no policy: traffic stops."""

    def remove_all(world: World) -> tuple[int, int]:
        """Pings that were answered, and clear packets on the wire."""
        spis = spis_of(world, "peer")
        guesses = [*range(256, 300), *random.sample(range(2**24, 2**32), 50)]
        outcomes = world.attack(REMOVE_ALL, guesses=guesses)
        assert outcomes == ["Removed"] * len(spis) + ["Denied"] * len(guesses)
        tap = Wiretap(world.network)
        try:
            answered = world.network.left.ping(RIGHT_HOST, count=2)
            return answered, tap.counts()["cleartext"]
        finally:
            tap.close()

    shipped = worlds(SHIPPED)
    assert remove_all(shipped) == (0, 0)
    assert re.search(r"^notice removed connection=peer ", shipped.victim.text(), re.M)
    restore(shipped)
    weak = worlds(SHIPPED.without(monitor=POLICIES_GO_TOO))
    _, clear = remove_all(weak)
    assert clear > 0
    weak.victim.stop()
    record("policies that no request removes", f"policy removed with its pair: {clear} packets in clear")


def restore(world: World) -> None:
    """A new worker, which negotiates anew with the bystander."""
    world.attempt("os._exit(0)")
    world.recover()
    world.honest.cli("down", "peer")
    world.connect()
