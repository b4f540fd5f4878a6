"""keyd and monitor with layers taken out, for controls: each block names what it removes, each plan what it joins."""

from world import Plan

NO_ORDER = """
from keyd import handles, phase1, phase2

# any operation in any state; what has been used stays
class Anything(dict):
    def __contains__(self, key):
        return True

    def get(self, key, default=None):
        return super().get(key, key[0])

handles.TRANSITIONS = Anything(handles.TRANSITIONS)
handles.Registry.drop = lambda self, entry: None
from keyd.secret import Secret
Secret.wipe = lambda self: None

# the address is proof enough of the identity
new = phase1.Phase1._new

def assumed(self, request, *arguments):
    sa = new(self, request, *arguments)
    sa.connection = self._context.gateway.candidates(request.local, request.remote)[0]
    sa.identity = sa.connection.remote_id
    return sa

phase1.Phase1._new = assumed

# keymat may be redeemed, both halves, when it is derived
derive = phase2.Phase2._derive
phase2.Phase2._derive = lambda self, quick, role, state, agreed: derive(
    self, quick, role, handles.State.CONFIRMED, agreed
)

# whoever has not answered has agreed
import random
from keyd.agreement import Agreement
accept = phase2.Phase2.accept

def silence_gives_consent(self, request):
    quick = self._context.registry.get(request.quick)
    if quick.agreement is None:
        offer = quick.offer
        quick.agreement = Agreement(
            child=offer.child, suite=offer.child.suites[0], encap=offer.encap, spi_in=offer.spi,
            spi_out=random.randrange(2**24, 2**32), cpi_in=None, cpi_out=None, local_ts=offer.local_ts,
            remote_ts=offer.remote_ts, lifetime=3600,
        )
    return accept(self, request)

phase2.Phase2.accept = silence_gives_consent
"""

NO_LIST_OF_PAYLOADS = """
from privsep.iana import PayloadType

phase1.AUTH_EXTRAS = phase2.INFO_EXTRAS = frozenset(PayloadType)
"""

SIGNING = """
from dataclasses import dataclass
from keyd import ikev1
from privsep.schema import keyd as ops
from privsep.schema.codec import Blob, Handle, Table

@dataclass(slots=True, frozen=True, kw_only=True)
class Sign:
    ike: Handle
    digest: Blob

ops.REQUESTS = Table({number: layout.make for number, layout in ops.REQUESTS._by_number.items()} | {15: Sign})
made = entry.Service.__init__

def more(self, *arguments):
    def sign(request):
        sa = self._registry.get(request.ike)
        return ops.Sealed(ciphertext=ikev1.prf(sa.suite.hash, sa.skeyid_a, request.digest))

    made(self, *arguments)
    self._operations[Sign] = sign

entry.Service.__init__ = more
"""

OWN_VALUES_COME_BACK = """
phase1.Phase1._agree = lambda self, keypair, peer: keypair.agree(peer)
"""

NO_CHECK_OF_PUBLIC_VALUES = """
from keyd import phase1, phase2
from keyd.groups import ecp, modp, x25519
from keyd.secret import Secret

P256 = 2**256 - 2**224 + 2**192 + 2**96 - 1

def add(p, q):
    # the curve's b is in no formula, which is why a point off the curve must never get here
    if None in (p, q):
        return p or q
    (x1, y1), (x2, y2) = p, q
    if x1 == x2 and (y1 + y2) % P256 == 0:
        return None
    slope = (3 * x1 * x1 - 3) * pow(2 * y1, -1, P256) if p == q else (y2 - y1) * pow(x2 - x1, -1, P256)
    x3 = (slope * slope - x1 - x2) % P256
    return x3, (slope * (x1 - x3) - y1) % P256

def times(scalar, point):
    result = None
    for bit in bin(scalar)[2:]:
        result = add(result, result)
        result = add(result, point) if bit == "1" else result
    return result or (0, 0)

def of_modp(pair, peer):
    p = modp.PRIMES[pair._group]
    return pow(int.from_bytes(peer, "big"), pair._private.private_numbers().x, p).to_bytes(256, "big")

def of_ecp(pair, peer):
    point = int.from_bytes(peer[:32], "big"), int.from_bytes(peer[32:], "big")
    return times(pair._private.private_numbers().private_value, point)[0].to_bytes(32, "big")

def of_x25519(pair, peer):
    try:
        return pair._private.exchange(x25519.X25519PublicKey.from_public_bytes(peer[:32].ljust(32, b"\\0")))
    except ValueError:
        return bytes(32)

AGREE = {modp.ModpKeyPair: of_modp, ecp.EcpKeyPair: of_ecp, x25519.X25519KeyPair: of_x25519}
phase1.Phase1._agree = lambda self, pair, peer: Secret(AGREE[type(pair)](pair, peer))
"""

NO_CHOICE_OF_CONNECTION = """
from privsep.config.model import Connection, Gateway

Connection.describes = lambda self, local, remote: True
select, candidates = phase1.Phase1._select, Gateway.candidates
phase1.Phase1._select = lambda self, sa, main, identity: (
    select(self, sa, main, identity) or main.claimed or self._context.gateway.connection("lax")
)
Gateway.candidates = lambda self, local, remote: tuple(dict.fromkeys((*candidates(self, local, remote),
                                                                     *self.connections)))
Gateway.accepting = lambda self, local, remote, identity: tuple(
    each for each in Gateway.candidates(self, local, remote) if each.remote_id in (None, identity)
)
"""

NO_MEMORY = """
# of message ids
phase1.MessageIds.add = lambda self, message_id: None

# any SPIs
import dataclasses
from keyd import agreement
accepted_child = agreement.accepted_child

def with_any_spi(offer, answer):
    proposals = tuple(dataclasses.replace(each, spi=bytes(4)) for each in offer.proposals)
    return accepted_child(dataclasses.replace(offer, proposals=proposals), answer)

agreement.accepted_child = with_any_spi
agreement._keys_differ = lambda ours, theirs: True
"""

STALE = """
# the same key pair and nonce each time
from keyd.groups import pool

pairs, service = {}, entry.Service
pool.Pool.take = lambda self, group: pairs.setdefault(group, None) or pairs.update(
    {group: pool.generate(group)}) or pairs[group]
entry.Service = lambda gateway, secrets, clock, random: service(
    gateway, secrets, clock, lambda octets: bytes(32) if octets == 32 else random(octets)
)
"""

ANY_MESSAGE_ID = """
from keyd.message_ids import MessageIds
# the IV and HASH of any message id that was used before will do
first = phase2.Phase2._open_first

def any_first(self, sa, message_id, ciphertext):
    used, sa.message_ids = sa.message_ids, MessageIds()
    try:
        for each in (message_id, *used._used):
            try:
                return first(self, sa, each, ciphertext)
            except handles.Refuse as refuse:
                reason = refuse
        raise reason
    finally:
        for each in used._used:
            sa.message_ids.add(each)

phase2.Phase2._open_first = any_first
"""

PATIENCE = """
# wrong proofs are not counted
from keyd import guesses
guesses.MAX_WRONG, guesses._MEASURES = 2**30, {4: (), 6: ()}
"""

HASTE = """
from keyd import phase1, phase2
from keyd.handles import Refuse
from privsep.errors import PeerError
from privsep.schema.keyd import Refusal

# what does not parse is refused at once
def at_once(parse, why):
    def parsed(*arguments, **more):
        try:
            return parse(*arguments, **more)
        except PeerError:
            raise Refuse(why) from None

    return parsed

split_chain, take_hash = phase1.split_chain, phase2.take_hash
phase1.split_chain = at_once(split_chain, Refusal.AUTHENTICATION_FAILED)
phase2.take_hash = at_once(take_hash, Refusal.BAD_HASH)
"""

TALKATIVE = """
# and that is said
from keyd.ciphers import CbcChain
from keyd.messages import put_hash, with_extras
from privsep.schema.keyd import SealedNew

phase1.split_chain = at_once(split_chain, Refusal.BAD_MESSAGE)
phase2.take_hash = at_once(take_hash, Refusal.BAD_MESSAGE)

# a message that fails moves the chain on and uses its message id up
opened, first = CbcChain.open, phase2.Phase2._open_first

def open_and_move(self, ciphertext):
    plaintext = opened(self, ciphertext)
    if plaintext is not None:
        self.accept(ciphertext)
    return plaintext

def open_first(self, sa, message_id, ciphertext):
    try:
        return first(self, sa, message_id, ciphertext)
    finally:
        sa.message_ids.add(message_id)

CbcChain.open, phase2.Phase2._open_first = open_and_move, open_first

# one message id for all of ours, and Informational messages in clear
phase2.Phase2._new_message_id = lambda self, sa: 7

def info_seal(self, request):
    sa = self._context.registry.get(request.ike)
    rest = with_extras((), request.next_payload, request.payloads, phase2.INFO_EXTRAS)
    value = phase2.ikev1.hash_1(sa.suite.hash, sa.skeyid_a, 7, rest[1])
    return SealedNew(message_id=7, ciphertext=put_hash(value, rest))

phase2.Phase2.info_seal = info_seal
"""

NO_SECOND_OPINION = """
from monitor import authorize

OFF = ("_most_specific", "_spis_differ", "_spi_is_ours", "_spi_addresses")
for name in ("CHECKS", "FORESEEABLE"):
    setattr(authorize, name, tuple(check for check in getattr(authorize, name) if check.__name__ not in OFF))
"""

NO_LOOK_AT_SELECTORS = """
from keyd import agreement
agreement.Child.covers = lambda *_: True
"""

SEALS_UNREAD = """
# message 2 as the worker composes it: with whatever SPI it likes
import dataclasses
from keyd import agreement
answered = agreement.answer

def with_another_spi(child, theirs, request):
    agreed, sa, rest = answered(child, theirs, request)
    if request.spi_in != 0x1001:
        # the bystander's peer has an honest answer
        return agreed, sa, rest
    return agreed, sa.replace(agreed.spi_in.to_bytes(4), agreed.spi_out.to_bytes(4)), rest

agreement.answer = with_another_spi
"""

OPEN = Plan().without(keyd=NO_ORDER + NO_LIST_OF_PAYLOADS + SIGNING + OWN_VALUES_COME_BACK + ANY_MESSAGE_ID)
"""Any order, any payload, any operation."""
FREE = Plan().without(keyd=NO_CHECK_OF_PUBLIC_VALUES + NO_CHOICE_OF_CONNECTION + NO_MEMORY + STALE)
"""Any value, any connection, any repetition."""
UNREAD = Plan().without(keyd=SEALS_UNREAD)
"""keyd seals an SA payload that says something else than what it derives for."""
ANY_TRAFFIC = Plan().without(keyd=NO_LOOK_AT_SELECTORS)
"""keyd seals client identities outside of the child's."""
FREE_MONITOR = FREE.without(monitor=NO_SECOND_OPINION)
PATIENT = Plan().without(keyd=PATIENCE)
"""As many guesses as one likes."""
HASTY = Plan().without(keyd=HASTE)
"""Time tells what parses."""
TELLING = HASTY.without(keyd=PATIENCE + TALKATIVE)
"""Answers tell it too, and refusals leave traces."""
