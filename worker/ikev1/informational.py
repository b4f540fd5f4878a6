"""Informational exchanges: Notify and Delete (RFC 2409 section 5.7, RFC 2408 sections 3.14, 3.15, 5.14 and 5.15).

Under protection of an IKE SA they are acted upon. In clear they change nothing: whoever waits for the exchange they
name is told what somebody says about it.
"""

from collections.abc import Iterable

from privsep.config.model import Connection
from privsep.errors import PeerError
from privsep.iana import Doi, ExchangeType, HeaderFlag, NotifyType, PayloadType, ProtocolId
from privsep.isakmp.payloads import Delete, Notification, Payload, encode_chain, parse_chain, parse_payload
from privsep.log import Level
from privsep.payloads import split_chain
from privsep.schema.keyd import Authenticated, InfoOpen, InfoSeal, Opened, SealedNew
from privsep.types import Identity, MessageId, Role, Spi
from worker.codec import rules
from worker.codec.header import encode_message
from worker.context import Context
from worker.errors import Failed, KeydRefused, NoneChosen, SaClosed
from worker.exchange import Received
from worker.ikev1.diagnosis import notified, notify_name
from worker.isakmp_sa import IkeSa, IkeState, Peer
from worker.moving import authenticated_from
from worker.peers import count_message_id, forget_child, forget_ike, not_opened

SPI_OCTETS = 4
MAX_DELETED_AT_ONCE = 32
"""SPIs in one Delete of ours; peers bound what they take."""
DPD_SEQUENCE_OCTETS = 4
DELETED = "the peer deleted it"


# in clear


def notify_in_clear(context: Context, received: Received, notify: NotifyType | None) -> None:
    """Tell a stranger why its message is refused. Never longer than what it answers, and few in a second."""
    if notify is None or not context.notifications.admit(context.now):
        return
    header = received.header
    first, body = encode_chain([Notification(protocol=ProtocolId.ISAKMP, type=notify, spi=header.cky_i + header.cky_r)])
    message = encode_message(
        cky_i=header.cky_i,
        cky_r=header.cky_r,
        exchange=ExchangeType.INFORMATIONAL,
        flags=HeaderFlag.NONE,
        message_id=MessageId(int.from_bytes(context.random(4), "big") | 1),
        first=first,
        body=body,
    )
    if len(message) <= len(received.data):
        context.send(received.local, received.remote, message)


def receive_in_clear(context: Context, sa: IkeSa, received: Received) -> None:
    """What somebody says about an exchange of phase 1. It is told and changes nothing."""
    row = rules.check_header(received.header, 1)
    listed = split_chain(received.header.next_payload, received.body)
    rules.check(row, (kind for kind, _ in listed))
    exchange = sa.exchanges.get(0)
    if sa.state is not IkeState.NEGOTIATING or sa.role is not Role.INITIATOR or exchange is None:
        return
    for payload in parse_chain(received.header.next_payload, received.body):
        if isinstance(payload, Notification):
            name = notify_name(payload.type)
            context.log_rarely(Level.INFO, "notified-in-clear", **sa.label, notify=name)
            meaning = notified(exchange, payload.type)
            reason = f"{received.remote.address} answers {name} (not authenticated)"
            exchange.suspect(f"{reason}; {meaning}" if meaning else reason)


# under protection


async def send(context: Context, sa: IkeSa, payloads: Iterable[Payload]) -> None:
    """HDR*, HASH(1), N/D. Nobody answers: it may get lost."""
    if sa.state is not IkeState.ESTABLISHED:
        raise SaClosed("the IKE SA was closed")
    next_payload, chain = encode_chain(payloads)
    sealed = await context.ask(InfoSeal(ike=sa.handle, next_payload=next_payload, payloads=chain), SealedNew)
    count_message_id(context, sa)
    message = encode_message(
        cky_i=sa.cky_i,
        cky_r=sa.cky_r,
        exchange=ExchangeType.INFORMATIONAL,
        flags=HeaderFlag.ENCRYPTION,
        message_id=MessageId(sealed.message_id),
        first=PayloadType.HASH,
        body=sealed.ciphertext,
    )
    context.send(sa.local, sa.remote, message)


async def receive(context: Context, sa: IkeSa, received: Received) -> None:
    """The peer's protected Informational."""
    row = rules.check_header(received.header, 1)
    sa.opening += 1
    try:
        opened = await context.ask(
            InfoOpen(ike=sa.handle, message_id=received.header.message_id, ciphertext=received.body), Opened
        )
    except KeydRefused as refused:
        not_opened(context, sa, refused)
        return
    finally:
        sa.opening -= 1
    if sa.state is not IkeState.ESTABLISHED:
        return
    count_message_id(context, sa)
    authenticated_from(context, sa, received)
    listed = [each for each in split_chain(opened.next_payload, opened.payloads) if each[0] in row.payloads]
    rules.check(row, (kind for kind, _ in listed))
    for kind, body in listed:
        # libreswan has a notification behind a Delete that is of no form: what is well said is heard
        try:
            await _obey(context, sa, parse_payload(kind, body))
        except (PeerError, Failed) as error:
            context.log_rarely(Level.INFO, "message-ignored", **sa.label, reason=error.reason)


async def _obey(context: Context, sa: IkeSa, payload: Payload) -> None:
    match payload:
        case Notification():
            await _notified(context, sa, payload)
        case Delete():
            _deleted(context, sa, payload)


async def _notified(context: Context, sa: IkeSa, notification: Notification) -> None:
    match notification.type:
        case NotifyType.R_U_THERE:
            await _acknowledge(context, sa, notification)
        case NotifyType.R_U_THERE_ACK:
            if sa.probe is not None and _names(sa, notification):
                sa.probe.acknowledged(notification.data)
        case NotifyType.INITIAL_CONTACT if sa.peer is not None:
            honour_initial_contact(context, sa, sa.peer.connection, sa.peer.identity)
        case _:
            context.log_rarely(Level.INFO, "notified", **sa.label, notify=notify_name(notification.type))
            _told(sa, notification)


def _told(sa: IkeSa, notification: Notification) -> None:
    """RFC 2408 section 5.14: an error about a Quick Mode of ours ends it; it names our SPI, or there is only one."""
    if notification.type >= NotifyType.CONNECTED:
        return
    running = [each for each in sa.exchanges.values() if each.ours is not None and each.theirs is None]
    named = [each for each in running if each.ours == int.from_bytes(notification.spi, "big")]
    if named or len(running) == 1:
        exchange = (named or running)[0]
        meaning = notified(exchange, notification.type)
        reason = f"{sa.peer_name} answers {notify_name(notification.type)}"
        kind = NoneChosen if notification.type == NotifyType.NO_PROPOSAL_CHOSEN else Failed
        exchange.abort(lambda: kind(f"{reason}; {meaning}" if meaning else reason))


async def _acknowledge(context: Context, sa: IkeSa, notification: Notification) -> None:
    """RFC 3706 section 5.4: the same SPI and sequence number come back."""
    if not _names(sa, notification) or len(notification.data) != DPD_SEQUENCE_OCTETS:
        raise PeerError("R-U-THERE of another SA or without a sequence number")
    answer = Notification(
        protocol=ProtocolId.ISAKMP,
        type=NotifyType.R_U_THERE_ACK,
        spi=sa.cky_i + sa.cky_r,
        data=notification.data,
    )
    await send(context, sa, [answer])


def _names(sa: IkeSa, notification: Notification) -> bool:
    """Whether the SPI is the IKE SA's cookies (RFC 3706 section 6.1), which many leave away."""
    return notification.spi in (b"", sa.cky_i + sa.cky_r)


def _deleted(context: Context, sa: IkeSa, delete: Delete) -> None:
    """RFC 2408 section 5.15: the peer no longer uses these. It can name its own SAs only."""
    peer = sa.peer
    if peer is None or delete.doi not in (Doi.IPSEC, Doi.ISAKMP):
        return
    for spi in delete.spis:
        if delete.protocol == ProtocolId.ISAKMP:
            for each in tuple(peer.ike_sas):
                if each.cky_i + each.cky_r == spi:
                    forget_ike(context, each, DELETED)
        elif delete.protocol in (ProtocolId.AH, ProtocolId.ESP) and len(spi) == SPI_OCTETS:
            _deleted_child(context, peer, ProtocolId(delete.protocol), Spi(int.from_bytes(spi, "big")))


def _deleted_child(context: Context, peer: Peer, protocol: ProtocolId, spi_out: Spi) -> None:
    """A pair that we have, or one that is being made: the monitor may be installing it."""
    child = peer.by_spi_out.get((protocol, spi_out))
    if child is not None:
        forget_child(context, child, DELETED)
        return
    for sa in peer.ike_sas:
        for exchange in tuple(sa.exchanges.values()):
            if (exchange.protocol, exchange.theirs) == (protocol, spi_out):
                exchange.abort(lambda: Failed(DELETED))


def initial_contact(sa: IkeSa) -> Notification:
    """RFC 2407 section 4.6.3.3: this is the first SA that we have with the peer."""
    return Notification(protocol=ProtocolId.ISAKMP, type=NotifyType.INITIAL_CONTACT, spi=sa.cky_i + sa.cky_r)


def announces_initial_contact(proven: Authenticated) -> bool:
    """Whether the peer's proof of identity comes with INITIAL-CONTACT."""
    return any(_is_initial_contact(*each) for each in split_chain(proven.next_payload, proven.payloads))


def _is_initial_contact(kind: int, body: bytes) -> bool:
    """What does not parse says nothing: the peer has proved who it is, whatever else it sends."""
    try:
        payload = parse_payload(kind, body)
    except PeerError:
        return False
    return isinstance(payload, Notification) and payload.type == NotifyType.INITIAL_CONTACT


def honour_initial_contact(context: Context, sa: IkeSa, connection: Connection, identity: Identity) -> None:
    """The peer has lost its state: what it had with us before this exchange began is of no use any more.

    SAs that were made since the exchange began are not meant: both ends may have begun at once.
    """
    peer = context.peers.get(connection.name, {}).get(identity)
    if peer is not None:
        for child in tuple(peer.children.values()):
            if child.installed < sa.created:
                forget_child(context, child, "the peer has started anew")
        for each in tuple(peer.ike_sas):
            if each is not sa and each.established < sa.created:
                forget_ike(context, each, "the peer has started anew")
    for adopted in context.adopted.of(connection.name):
        if adopted.identity == identity:
            context.adopted.drop(Spi(adopted.spi_in))
            context.release(Spi(adopted.spi_in))


async def delete_spis(context: Context, sa: IkeSa, spis: Iterable[tuple[ProtocolId, Spi]]) -> None:
    """Tell the peer that we no longer take what it sends under these SPIs of ours. A Delete is of one protocol."""
    listed: dict[ProtocolId, list[bytes]] = {}
    for protocol, spi in spis:
        listed.setdefault(protocol, []).append(spi.to_bytes(SPI_OCTETS, "big"))
    for protocol, of_it in listed.items():
        for start in range(0, len(of_it), MAX_DELETED_AT_ONCE):
            some = tuple(of_it[start : start + MAX_DELETED_AT_ONCE])
            await send(context, sa, [Delete(protocol=protocol, spis=some)])


async def delete_ike(context: Context, sa: IkeSa) -> None:
    """Tell the peer that the IKE SA itself ends; nothing can be said after that."""
    await send(context, sa, [Delete(protocol=ProtocolId.ISAKMP, spis=(sa.cky_i + sa.cky_r,))])
