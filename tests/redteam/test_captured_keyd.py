"""A captured keyd: it holds every secret, so what counts is that it has no network, no system calls and no last word.

The monitor's second opinion is all that stands between a lying keyd and an installed SA. Lies are told while an honest
worker negotiates with a peer that the test plays.
"""

import re
from dataclasses import dataclass

import pytest
from lab import LEFT, LEFT_HOST, PSK, RIGHT, RIGHT_HOST, wait_for
from reach import BARE, COMMON, PREPARED, SHIPPED, TRUSTING, facts, negotiate, pairs, reach
from test_reach_out import DONE, PROGRAMS, Attempt
from world import IKE_PORT, NATT_PORT, SECOND, SECOND_PSK, Killed

from privsep.cli.control import ask
from privsep.procfs import inspect

pytestmark = pytest.mark.filterwarnings("ignore:Diffie-Hellman over finite fields")

SEND = "through_a_new_socket(socket.AF_INET, socket.SOCK_DGRAM, lambda sock: sock.sendto(b'x', {to}))"
NO_WAY = "ENETUNREACH"

ATTEMPTS = COMMON | {
    "start a thread": PROGRAMS["a thread"],
    "send to a peer": Attempt(SEND.format(to=(RIGHT, IKE_PORT)), NO_WAY),
    "send to the worker": Attempt(SEND.format(to=(LEFT, IKE_PORT)), NO_WAY),
    "send to the ESP process": Attempt(SEND.format(to=(LEFT, NATT_PORT)), NO_WAY),
    "knock at the operator's socket": Attempt(
        "through_a_new_socket(socket.AF_UNIX, socket.SOCK_STREAM, lambda sock: sock.connect(control))", "ENOENT"
    ),
}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_captured_keyd_cannot(worlds, record, name):
    def one(world, code):
        mark = world.mark()
        try:
            outcome = world.in_keyd(PREPARED + code, **facts(world, "userspace"))
        except Killed as killed:
            outcome = killed.how
            world.recover()
        if outcome == "killed by SIGSYS":
            assert world.logged(mark, r'^error process-ended process=keyd pid=\d+ how="killed by SIGSYS"$')
        assert world.bystander_works()
        return outcome

    stopped_by = reach(worlds, ATTEMPTS[name], one)
    record(stopped_by, f"unconfined: {ATTEMPTS[name].bare}")


def test_it_has_no_socket_of_the_network_and_a_network_of_its_own_that_is_empty(worlds, record):
    world = worlds(SHIPPED)
    keyd, worker, monitor = (inspect(world.pid(name), world.pid("monitor")) for name in ("keyd", "worker", "monitor"))
    networked = re.compile("udp|tcp|raw|packet|netlink")
    assert [kind for kind in keyd.descriptors.values() if networked.match(kind)] == []
    assert {f"udp {IKE_PORT}", f"udpv6 {IKE_PORT}"} <= set(worker.descriptors.values())
    assert keyd.empty_network
    assert keyd.network != monitor.network
    assert not monitor.empty_network

    bare = worlds(BARE)
    keyd, monitor = (inspect(bare.pid(name), bare.pid("monitor")) for name in ("keyd", "monitor"))
    assert keyd.network == monitor.network
    record("no descriptor, empty network namespace", "unconfined: it shares the monitor's network")


# lies about keys

LIE = """
def lie(request):
    true = type(me.service).redeem(me.service, request)
    if isinstance(true, keymat.Redeemed):
        return dataclasses.replace(true, {instead})
    return dataclasses.replace(true, {then}) if isinstance(true, keymat.RedeemedOutbound) else true

me.service.redeem = lie
"""
HONEST = "del me.service.redeem"
WEAK = """suite=algorithms.ChildSuite.parse("aes128-sha1"), encryption_in=bytes(16), integrity_in=bytes(20)"""
OF_ANOTHER = "identity=types.Identity(true.identity.type, ipaddress.ip_address(peer).packed)"
OF_THE_ACCOMPLICE = "the accomplice's own, and nobody else's"
INSTALLED, REFUSED = "installed", "denied reason=dataplane"
HALF = "installed as far as it receives"
"""Nothing is logged: the worker asks for what sends by the SPI that it knows, which is another."""


@dataclass(frozen=True)
class Lie:
    """What is said instead of the truth, and why the monitor does not believe it."""

    instead: str
    """Of the half that receives, with all that the peer agreed to."""
    reason: str
    unjudged: str = INSTALLED
    """What becomes of it without the second opinion."""
    then: str = ""
    """Instead of the half that sends."""


LIES = {
    "a connection that does not exist": Lie("connection='nobody'", "no_such_child"),
    "a child that does not exist": Lie("child='nothing'", "no_such_child"),
    "another peer's identity": Lie(OF_ANOTHER, "identity"),
    "another peer's connection": Lie("connection='peer'", "identity"),
    "another peer altogether": Lie(f"connection='peer', {OF_ANOTHER}", "spi"),
    "a laxer connection": Lie("connection='lax'", "identity"),
    "another child of the connection": Lie("child='port'", "spi"),
    "a suite that is not configured": Lie(WEAK, "algorithms", then="encryption_out=bytes(16), integrity_out=bytes(20)"),
    "no PFS": Lie("suite=true.suite.without_group()", "algorithms"),
    "a key that is too short": Lie("", "algorithms", REFUSED, then="encryption_out=true.encryption_out[:-1]"),
    "a key that the suite does not have": Lie("integrity_in=bytes(20)", "algorithms", REFUSED),
    "an SPI that was not allocated": Lie("spi_in=true.spi_in ^ 1", "spi", REFUSED),
    "an SPI of another connection": Lie("spi_in=elsewhere", "spi", HALF),
    "equal SPIs": Lie("spi_out=true.spi_in", "spi"),
    "an outbound SA that exists": Lie("spi_out=existing", "exists", REFUSED),
}


def tell(world, lie: Lie) -> str:
    """What the monitor does with a lie of keyd's; what it takes for it to be a good one is arranged first."""
    allocate = (
        "ends = {side: types.Endpoint(ipaddress.ip_address(each), 500) for side, each in addresses.items()}\n"
        "traffic = {side: types.TrafficSelector(ipaddress.ip_network(each)) for side, each in selectors.items()}\n"
        "who = types.Identity.of_address(ends['remote'].address)\n"
        "result = me.monitor(install.AllocateSpi(connection='peer', child='net', identity=who, **ends, **traffic)).spi"
    )
    instead, known = lie.instead, {"peer": RIGHT}
    if "elsewhere" in instead:
        known["elsewhere"] = world.attack(
            allocate,
            addresses={"local": LEFT, "remote": RIGHT},
            selectors={"local_ts": f"{LEFT_HOST}/32", "remote_ts": f"{RIGHT_HOST}/32"},
        )
    if "existing" in instead:
        known["existing"] = int(re.search(r"spi_out=(\S+)", negotiate(world))[1], 16)
    before = pairs(world)
    assert world.in_keyd(LIE.format(instead=instead, then=lie.then), **known) == DONE
    try:
        verdict = negotiate(world)
    finally:
        world.in_keyd(HONEST)
    found = re.search(r"installed|denied reason=\w+", verdict)
    if found is None:
        assert world.in_esp(f"result = {known['elsewhere']} in me.database._by_spi")
        return HALF
    # a half of it goes when the worker has heard of the refusal
    assert wait_for(lambda: pairs(world) - before == (found[0] == INSTALLED), 5)
    return found[0]


@pytest.mark.parametrize("name", LIES)
def test_the_monitor_does_not_believe(worlds, record, name):
    world, lie = worlds(SHIPPED), LIES[name]
    assert tell(world, lie) == f"denied reason={lie.reason}"
    assert world.bystander_works()
    # nothing of the lie is left: the truth is installed
    assert negotiate(world).startswith("notice installed connection=second child=net")
    assert tell(worlds(TRUSTING), lie) == lie.unjudged
    behind = ", behind it the ESP process" if lie.unjudged == REFUSED else ""
    record(f"the monitor's second opinion ({lie.reason}){behind}", f"without it: {lie.unjudged}")


def test_what_remains_it_knows_the_secrets_and_forges_a_peer_inside_the_configuration(worlds, record):
    """docs/threat-model.md, "What the other captured processes have": an accomplice without the secret is let in."""
    world = worlds(SHIPPED)
    read = """
context = me.service._operations[ops.IkeOffer].__self__._context
result = [bytes(context.credentials.psk_for(each)).decode() for each in context.gateway.connections[:2]]
"""
    assert world.in_keyd(read) == [PSK, SECOND_PSK]
    forge = read + "theirs = context.credentials.psk_for(context.gateway.connection('second'))\ntheirs[:] = secret"
    assert negotiate(world, OF_THE_ACCOMPLICE, seconds=2) == ""
    world.in_keyd(forge.replace("secret", repr(OF_THE_ACCOMPLICE.encode())))
    try:
        verdict = negotiate(world, OF_THE_ACCOMPLICE)
    finally:
        world.in_keyd(forge.replace("secret", repr(SECOND_PSK.encode())))
    assert re.match(rf"notice installed connection=second child=net remote={re.escape(SECOND)}\[", verdict)
    assert world.bystander_works()
    record("nothing: the documented residual", "the accomplice fails while keyd is honest")


# what is no answer

OF_ANOTHER_TABLE = "ops.REPLIES.encode(ops.QuickKeyed(keymat=bytes(types.HANDLE_OCTETS), ciphertext=b''), 1)"
FRAMES = {
    "an answer to nothing": ("keymat.REPLIES.encode(keymat.NotRedeemable(), 7)", "keyd answers what nobody asked"),
    "a second Ready": ('keymat.REPLIES.encode(keymat.Ready(same_secret=b""), 0)', "keyd says twice that it is ready"),
    "a message of another table": (OF_ANOTHER_TABLE, "no such operation on this"),
    "an oversize frame": ("bytes(70000)", "frame too long"),
    "no msgpack": ("b'\\xc1' * 64", "not one msgpack value"),
}


@pytest.mark.parametrize("name", FRAMES)
def test_it_ends_the_epoch_by_saying(worlds, record, name):
    code, reason = FRAMES[name]
    world = worlds(SHIPPED)
    mark, before = world.mark(), world.pid("keyd")
    world.attempt("result = me.in_keyd(job)", job={"code": f"me.channel._sock.send({code})", "facts": {}})
    assert world.logged(mark, rf'^error epoch-ends reason="(channel to keyd: )?violation: {reason}')
    world.recover()
    assert world.pid("keyd") != before
    assert world.bystander_works()

    trusting = worlds(TRUSTING)
    before = trusting.pid("keyd")
    trusting.in_keyd(f"me.channel._sock.send({code})")
    assert negotiate(trusting).startswith("notice installed")
    assert trusting.pid("keyd") == before
    record("violations end the epoch", "where they end nothing, keyd goes on")


def test_it_holds_nobody_up_by_never_answering(worlds, record):
    world = worlds(SHIPPED)
    mark = world.mark()
    world.in_keyd("me.channel.send = lambda *_: None")
    assert negotiate(world, seconds=2) == ""
    # the worker is running if it answers within the monitor's patience, so it does not wait for keyd
    status = ask(str(world.victim.run_dir), {"command": "status"}, seconds=10)
    assert status["status"]["worker"] == "running"
    assert world.bystander_works()
    assert "installed connection=second" not in world.log_since(mark)
    world.in_keyd("del me.channel.send")
    assert negotiate(world).startswith("notice installed")
    record("requests to keyd wait, nobody waits for them", "answering again: installed")
