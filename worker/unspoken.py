"""Messages in what we do not speak: IKEv2, Aggressive Mode, XAUTH and Mode Config, fragments.

A configured peer that uses them is misconfigured, or we are: one line in the log says so, and the peer gets one short
answer. Anybody can send such messages, so they change nothing.
"""

import struct

from privsep.errors import PeerError
from privsep.iana import ExchangeType, NotifyType
from privsep.log import Level
from privsep.types import Endpoint
from worker.codec.header import HEADER_OCTETS, ZERO_COOKIE, encode_message, read_header
from worker.context import Context
from worker.exchange import Received
from worker.ikev1.informational import notify_in_clear
from worker.isakmp_sa import NOBODY, IkeSa

IKE_SA_INIT = 34
"""RFC 7296 section 3.1: the exchange that an initiator of IKEv2 begins with."""
_INITIATOR, _RESPONSE = 0x08, 0x20
"""RFC 7296 section 3.1: flags."""
_NOTIFY = 41
"""RFC 7296 section 3.2: the payload type."""
VERSION_2 = 0x20
FRAGMENT = 132
"""The payload type of a piece of an IKEv1 message, as Cisco began it; private, and announced by a vendor id."""

_EXCHANGES: dict[int, str] = {
    ExchangeType.BASE: "the Base exchange",
    ExchangeType.AUTHENTICATION_ONLY: "an Authentication Only exchange",
    ExchangeType.AGGRESSIVE_MODE: "Aggressive Mode",
    ExchangeType.TRANSACTION: "XAUTH or Mode Config (a Transaction exchange, type 6)",
    ExchangeType.NEW_GROUP_MODE: "New Group Mode",
}
_FRAGMENTS = "fragmentation of IKE messages"
_WANTS_XAUTH = "the peer wants XAUTH or Mode Config (a Transaction exchange, type 6), which it is not asked for here"


_NOTIFY_BODY = struct.Struct(">BBHBBH")
"""RFC 7296 section 3.10: next payload, reserved, length; protocol, SPI size, type."""


def wanted(received: Received) -> str:
    """What this message is that we do not speak; empty if we do, or if it is nothing at all."""
    if received.header.next_payload == FRAGMENT and not received.header.encrypted:
        return _FRAGMENTS
    return _EXCHANGES.get(received.header.exchange, "")


def refuse(context: Context, sa: IkeSa | None, received: Received, what: str) -> None:
    """Say so in the log and to the sender; of what is nobody's, PeerError says it to whoever debugs."""
    told = _tell(context, received.local, received.remote, what)
    if received.header.exchange == ExchangeType.TRANSACTION and sa is not None:
        for exchange in sa.exchanges.values():
            exchange.suspect(_WANTS_XAUTH)
    if not told:
        raise PeerError(f"{what} is not supported", NotifyType.UNSUPPORTED_EXCHANGE_TYPE)
    if received.header.cky_r == ZERO_COOKIE and received.header.exchange in _EXCHANGES:
        notify_in_clear(context, received, NotifyType.UNSUPPORTED_EXCHANGE_TYPE)


def refuse_version_2(context: Context, data: bytes, local: Endpoint, remote: Endpoint) -> None:
    """RFC 7296 sections 1.5 and 2.5: to a peer's IKE_SA_INIT, INVALID_MAJOR_VERSION, as its own kind of response.

    A header of version 1 would be right by the letter, but what an initiator of IKEv2 reads is version 2.
    """
    if len(data) < HEADER_OCTETS:
        return
    header = read_header(data)
    request = header.flags & (_INITIATOR | _RESPONSE) == _INITIATOR and header.cky_r == ZERO_COOKIE
    if header.version >> 4 != VERSION_2 >> 4 or header.exchange != IKE_SA_INIT or not request:
        return
    if not _tell(context, local, remote, "IKEv2") or not context.notifications.admit(context.now):
        return
    message = encode_message(
        cky_i=header.cky_i,
        cky_r=ZERO_COOKIE,
        version=VERSION_2,
        exchange=IKE_SA_INIT,
        flags=_RESPONSE,
        message_id=header.message_id,
        first=_NOTIFY,
        body=_NOTIFY_BODY.pack(0, 0, _NOTIFY_BODY.size, 0, 0, NotifyType.INVALID_MAJOR_VERSION),
    )
    if len(message) <= len(data):
        context.send(local, remote, message)


def _tell(context: Context, local: Endpoint, remote: Endpoint, what: str) -> bool:
    """Whether a connection admits the sender's address; then the log has a line, a warning if it names that address."""
    if not context.gateway.candidates(local.address, remote.address):
        return False
    label = context.sender(local, remote)
    level = Level.INFO if label["connection"] == NOBODY else Level.WARNING
    context.log_rarely(level, "not-spoken", **label, wants=what)
    return True
