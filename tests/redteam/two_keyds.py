"""Two gateways' keyds, and the conversations that honest workers, and peers without manners, have with them."""

import dataclasses
import ipaddress
from collections.abc import Callable, Iterator
from collections.abc import Generator as Steps
from random import Random
from typing import Any, NamedTuple

from handle_table import ANSWERS

from keyd import handles, ikev1
from keyd.ciphers import CbcChain
from keyd.handles import Entry, State
from keyd.messages import put_hash
from keyd.phase1 import IkeSa
from keyd.phase2 import Keymat, Quick
from keyd.secret import Secret
from keyd.service import Service
from privsep.algorithms import ChildSuite, IkeSuite
from privsep.config.model import Child, Connection, Encap, Gateway, RemoteAny, Start
from privsep.iana import IdType, PayloadType
from privsep.payloads import Chain, join_chain
from privsep.schema import keyd as ops
from privsep.schema import keymat
from privsep.types import Auth, Identity, Mode, TrafficSelector

LEFT, RIGHT, LIAR, BARE, ROAD = (ipaddress.ip_address(f"192.0.2.{n}") for n in (1, 2, 3, 4, 9))
IKE_SUITES = tuple(map(IkeSuite.parse, ("aes256-sha256-curve25519", "aes128-sha1-ecp256", "3des-sha512-ecp256")))
CHILD_SUITES = tuple(
    map(ChildSuite.parse, ("aes256gcm16", "aes256gcm16-curve25519", "aes128-sha256-ecp256", "aes256-sha512"))
)
PLAIN = ((0, b""), (PayloadType.NOTIFY, b"\0\0\0\x0cabcdefgh"), (PayloadType.VENDOR_ID, b"\0\0\0\x04"))
SELECTORS = tuple(TrafficSelector(ipaddress.ip_network(each)) for each in ("10.0.0.0/8", "10.1.0.0/16", "10.2.3.4/32"))
"""All inside of both children's, on both sides."""
ORIGINALS = ((), (LEFT, RIGHT))


def _connection(name: str, remote: Any, remote_id: bytes | None, suites: tuple[IkeSuite, ...]) -> Connection:
    selectors = (TrafficSelector(ipaddress.ip_network("10.0.0.0/8")),)
    children = tuple(
        Child(
            name=child,
            local_ts=selectors,
            remote_ts=selectors,
            mode=Mode.TUNNEL,
            suites=its_suites,
            lifetime=3600,
            start=Start.WAIT,
        )
        for child, its_suites in (("lan", CHILD_SUITES[:3]), ("dmz", CHILD_SUITES[3:]))
    )
    return Connection(
        name=name,
        local=LEFT,
        remote=remote,
        local_id=Identity(IdType.FQDN, b"left"),
        remote_id=None if remote_id is None else Identity(IdType.FQDN, remote_id),
        auth=Auth.PSK,
        suites=suites,
        lifetime=3600,
        encap=Encap.AUTO,
        children=children,
    )


OURS = (
    _connection("paris", RIGHT, b"right", IKE_SUITES[:2]),
    _connection("liar", LIAR, b"honest", IKE_SUITES[:1]),
    _connection("bare", BARE, b"bare", IKE_SUITES[:1]),
    _connection("road", RemoteAny(), None, IKE_SUITES[2:]),
)
THEIRS = tuple(
    dataclasses.replace(
        each,
        local=address,
        remote=LEFT,
        local_id=Identity(IdType.FQDN, b"liar" if each.name == "liar" else b"right"),
        remote_id=each.local_id,
    )
    for each, address in zip(OURS, (RIGHT, LIAR, BARE, ROAD), strict=True)
)


class Psks:
    """One for each connection but `bare`."""

    def __init__(self, by_name: dict[str, bytes]) -> None:
        self.by_name = by_name

    def psk_for(self, connection: Connection) -> Secret | None:
        found = self.by_name.get(connection.name)
        return None if found is None else Secret(found)


class Seen(NamedTuple):
    """An entry as it was before a request."""

    entry: Entry
    state: State
    expires: float
    parent: Entry | None


class Side:
    """One keyd, with what its watcher remembers."""

    def __init__(self, name: str, gateway: Gateway, psks: Psks, fuzzer: Any) -> None:
        self.name, self.gateway = name, gateway
        self.service = Service(gateway, psks, lambda: fuzzer.now, fuzzer.random.randbytes)
        self.minted = self.unknown = 0
        self.opened: set[tuple[bytes, int]] = set()
        """(IKE SA, message id) of messages that were opened."""

    @property
    def allowance(self) -> int:
        """How many unknown handles may be asked for."""
        return handles.UNKNOWN_MARGIN + handles.UNKNOWN_PER_HANDLE * self.minted

    def entries(self) -> dict[bytes, Seen]:
        found = self.service._registry._entries
        return {handle: Seen(each, each.state, each.expires, each.parent) for handle, each in found.items()}


class _Over(Exception):
    """An honest conversation did not get the answer that it needs."""


Conversation = Steps[tuple[Side, Any], Any, None]


class Talk:
    """What two honest workers ask, one request at a time, until one of them does not get what it needs."""

    def __init__(self, random: Random, sides: tuple[Side, ...], check: Callable[[bool, str], None]) -> None:
        self.random, self.sides, self.check = random, sides, check

    def begin(self) -> Conversation:
        try:
            yield from self._gateways_talk()
        except _Over:
            return

    def _gateways_talk(self) -> Conversation:
        random, (left, right) = self.random, self.sides
        name, near, far, here, there = random.choice(
            (
                ("paris", left, right, LEFT, RIGHT),
                ("paris", left, right, LEFT, RIGHT),
                ("paris", right, left, RIGHT, LEFT),
                ("road", right, left, ROAD, LEFT),
                ("liar", left, right, LEFT, LIAR),
                ("liar", right, left, LIAR, LEFT),
            )
        )
        connection = near.gateway.connection(name)
        common = {
            "suite": random.choice(connection.suites),
            "cky_i": random.randbytes(8),
            "cky_r": random.randbytes(8),
            "sai_b": random.randbytes(48),
        }
        ours = yield from _ask(near, ops.IkeOffer(connection=name, local=here, remote=there, **common))
        theirs = yield from _ask(far, ops.IkeAnswer(local=there, remote=here, ke=ours.ke, nonce=ours.nonce, **common))
        yield from _ask(near, ops.IkeAgree(ike=ours.ike, ke=theirs.ke, nonce=theirs.nonce))
        fifth = yield from _ask(near, ops.AuthSeal(ike=ours.ike, **self._extras()))
        yield from _ask(far, ops.AuthOpen(ike=theirs.ike, ciphertext=fifth.ciphertext))
        sixth = yield from _ask(far, ops.AuthSeal(ike=theirs.ike, **self._extras()))
        yield from _ask(near, ops.AuthOpen(ike=ours.ike, ciphertext=sixth.ciphertext))
        ends = [(near, ours.ike), (far, theirs.ike)]
        while random.random() < 0.85:
            random.shuffle(ends)
            yield from random.choice((self._quick_mode, self._quick_mode, self._informational))(*ends[0], *ends[1])
        for side, ike in ends:
            yield from _ask(side, ops.Drop(handle=ike))

    def _extras(self) -> dict[str, Any]:
        next_payload, payloads = self.random.choice(PLAIN)
        return {"next_payload": next_payload, "payloads": payloads}

    def _informational(self, near: Side, ours: bytes, far: Side, theirs: bytes) -> Conversation:
        sealed = yield from _ask(near, ops.InfoSeal(ike=ours, **self._extras()))
        message_id, ciphertext = sealed.message_id, sealed.ciphertext
        sa = near.service._registry._entries.get(ours)
        if self.random.random() < 0.2 and isinstance(sa, IkeSa) and sa.chain is not None:
            # a peer that has the keys, but not our manners
            message_id = self.random.getrandbits(32)
            ciphertext = _forged(sa, sa.chain.branch(sa.suite.hash, message_id), message_id, self._odd_chain())
        kind = self.random.choice((ops.InfoOpen, ops.InfoOpen, ops.QuickOpen))
        yield from _ask(far, kind(ike=theirs, message_id=message_id, ciphertext=ciphertext))

    def _odd_chain(self) -> Chain:
        random = self.random
        kinds = (PayloadType.SA, PayloadType.NONCE, PayloadType.KE, PayloadType.ID, PayloadType.NOTIFY, 200)
        lengths = (0, 1, 7, 8, 32, 64, 257)
        return join_chain(
            (random.choice(kinds), random.randbytes(random.choice(lengths))) for _ in range(random.randrange(5))
        )

    def _quick_mode(self, near: Side, ours: bytes, far: Side, theirs: bytes) -> Conversation:
        random = self.random
        child, suites = random.choice((("lan", CHILD_SUITES[:3]), ("dmz", CHILD_SUITES[3:])))
        suite, encap = random.choice(suites), random.random() < 0.2
        spis = {"spi_in": random.randrange(0x1000, 0x1100), "spi_out": random.randrange(0x2000, 0x2100)}
        first = yield from _ask(
            near,
            ops.QuickOffer(
                ike=ours,
                child=child,
                group=suite.group,
                encap=encap,
                spi_in=spis["spi_in"],
                cpi_in=None,
                local_ts=random.choice(SELECTORS),
                remote_ts=random.choice(SELECTORS),
                originals=random.choice(ORIGINALS),
            ),
        )
        opened = yield from _ask(
            far, ops.QuickOpen(ike=theirs, message_id=first.message_id, ciphertext=first.ciphertext)
        )
        ciphertext = self._forged_second(far, opened.quick) if random.random() < 0.15 else None
        keyed = yield from _ask(
            far,
            ops.QuickAnswer(
                quick=opened.quick,
                child=child,
                suite=suite,
                encap=encap,
                spi_in=spis["spi_out"],
                cpi_in=None,
                originals=random.choice(ORIGINALS),
            ),
        )
        half = yield far, keymat.RedeemInbound(keymat=keyed.keymat)
        yield from _ask(near, ops.QuickFinish(quick=first.quick, ciphertext=ciphertext or keyed.ciphertext))
        third = yield from _ask(near, ops.QuickAccept(quick=first.quick))
        yield from _ask(far, ops.QuickConfirm(quick=opened.quick, ciphertext=third.ciphertext))
        mine = yield near, keymat.RedeemInbound(keymat=third.keymat)
        yours = half
        sends = yield near, keymat.RedeemOutbound(keymat=third.keymat)
        theirs_sends = yield far, keymat.RedeemOutbound(keymat=keyed.keymat)
        halves = (mine, yours, sends, theirs_sends)
        if not any(isinstance(each, keymat.NotRedeemable) for each in halves):
            same_sa = (mine.suite, mine.spi_in, mine.spi_out) == (yours.suite, yours.spi_out, yours.spi_in)
            same_keys = (mine.encryption_in, mine.integrity_in) == (
                theirs_sends.encryption_out,
                theirs_sends.integrity_out,
            )
            self.check(same_keys or not same_sa, "the two ends of an SA have different keys")
            agreed = [
                (each.suite, each.mode, each.encap, each.lifetime, *ends, *selectors)
                for each, ends, selectors in (
                    (mine, (mine.spi_in, mine.spi_out), (mine.local_ts, mine.remote_ts)),
                    (yours, (yours.spi_out, yours.spi_in), (yours.remote_ts, yours.local_ts)),
                )
            ]
            self.check(agreed[0] == agreed[1], "the two ends have agreed to different things")

    def _forged_second(self, side: Side, handle: bytes) -> bytes | None:
        """Message 2 of a peer that has the keys, with a chain of its own invention."""
        quick = side.service._registry._entries.get(handle)
        if not isinstance(quick, Quick):
            return None
        if self.random.random() < 0.5:
            rest = self._odd_chain()
        else:
            rest = join_chain([(PayloadType.NONCE, bytes(32)), (PayloadType.KE, bytes(32))])
        return _forged(quick.sa, quick.chain, quick.message_id, rest, quick.ni_b)


def _ask(side: Side, request: Any) -> Steps[tuple[Side, Any], Any, Any]:
    reply = yield side, request
    if type(reply) is not ANSWERS[type(request)]:
        raise _Over
    return reply


def _forged(sa: IkeSa, chain: CbcChain, message_id: int, rest: Chain, ni_b: bytes = b"") -> bytes:
    """A message with a HASH that is right."""
    value = ikev1.hash_1(sa.suite.hash, sa.skeyid_a, message_id, ni_b + rest[1])
    return type(chain)(chain._algorithm, chain.iv).seal(put_hash(value, rest))


def secrets_of(entry: Entry) -> Iterator[bytes]:
    """What nobody else may ever see of it."""
    match entry:
        case IkeSa():
            held = [entry.skeyid_d, entry.skeyid_a, entry.cipher_key]
            held += [entry.main.skeyid] if entry.main is not None else []
        case Quick():
            held = [entry.g_qm_xy or Secret()]
        case Keymat():
            pairs = (entry.inbound, entry.outbound)
            held = [key for pair in pairs for key in (pair.encryption, pair.integrity)]
        case _:
            raise TypeError(type(entry))
    return map(bytes, held)
