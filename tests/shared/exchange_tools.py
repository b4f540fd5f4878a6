"""Informational messages that tests send in an established peer's or a stranger's stead."""

from privsep.iana import ExchangeType, PayloadType
from privsep.isakmp.payloads import encode_chain
from privsep.schema.keyd import InfoSeal, SealedNew
from worker.codec.header import encode_message
from worker.effects import Send


def sealed(world, site, payloads, flags=1):
    """An Informational under the IKE SA of that side."""
    (sa,) = site.engine._context.sas.all()
    next_payload, chain = encode_chain(payloads)
    reply = site.keyd.handle(InfoSeal(ike=sa.handle, next_payload=next_payload, payloads=chain))
    assert isinstance(reply, SealedNew)
    message = encode_message(
        cky_i=sa.cky_i,
        cky_r=sa.cky_r,
        exchange=ExchangeType.INFORMATIONAL,
        flags=flags,
        message_id=reply.message_id,
        first=PayloadType.HASH,
        body=reply.ciphertext,
    )
    return Send(sa.local, sa.remote, message)


def clear(sa, payloads):
    first, body = encode_chain(payloads)
    return encode_message(
        cky_i=sa.cky_i,
        cky_r=sa.cky_r,
        exchange=ExchangeType.INFORMATIONAL,
        flags=0,
        message_id=7,
        first=first,
        body=body,
    )
