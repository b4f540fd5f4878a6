"""First messages of Main Mode from forged addresses."""

import os
import socket
import struct

from privsep.algorithms import IkeSuite
from privsep.isakmp.payloads import encode_chain
from privsep.types import Auth, Cookie, MessageId
from worker.codec.header import encode_message
from worker.codec.proposals import offer_ike

IKE_PORT = 500
MAIN_MODE = 2
PRIVATE_CLASS = 16384
"""RFC 2409 appendix A: attribute classes from here on are for private use."""
VALUE_OCTETS = 2000
COOKIE_OCTETS = 8


def first_message(suite: str) -> bytes:
    """A message that offers this suite, without its cookie."""
    first, body = encode_chain([offer_ike((IkeSuite.parse(suite),), Auth.PSK, 3600)])
    message = encode_message(
        cky_i=Cookie(bytes(COOKIE_OCTETS)), cky_r=Cookie(bytes(COOKIE_OCTETS)),
        exchange=MAIN_MODE, flags=0, message_id=MessageId(0), first=first, body=body,
    )  # fmt: skip
    return message[COOKIE_OCTETS:]


def padded(message: bytes, octets: int, number: int = 0) -> bytes:
    """A message without its cookie whose one transform gets a second: of that size, with what the number says."""
    padding, left = b"", octets
    while left:
        value = min(left, VALUE_OCTETS)
        padding += struct.pack(">HH", PRIVATE_CLASS, value) + number.to_bytes(value, "big")
        left -= value
    second = struct.pack(">BBHBBH", 0, 0, 8 + len(padding), 99, 1, 0) + padding
    changed = bytearray(message)
    # the header has 20 octets more, a generic header 4, DOI and situation 8, a proposal 8
    payload, proposal, transform = 20, 32, 40
    end = transform + int.from_bytes(changed[transform + 2 : transform + 4], "big")
    assert end == payload + int.from_bytes(changed[payload + 2 : payload + 4], "big"), "one proposal, one transform"
    changed[transform], changed[proposal + 7] = 3, 2
    changed[end:end] = second
    for place in (payload, proposal):
        length = int.from_bytes(changed[place + 2 : place + 4], "big") + len(second)
        changed[place + 2 : place + 4] = length.to_bytes(2, "big")
    changed[16:20] = struct.pack(">I", COOKIE_OCTETS + len(changed))
    return bytes(changed)


def raw_socket() -> socket.socket:
    """For `send`; in the namespace that it is made in."""
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)


def send(sock: socket.socket, message: bytes, source: str, source_port: int, target: str) -> None:
    """The message with a cookie of chance, as if it came from there."""
    data = os.urandom(COOKIE_OCTETS) + message
    # RFC 768: a checksum of zero was not computed; the kernel fills in what IP needs
    udp = struct.pack(">HHHH", source_port, IKE_PORT, 8 + len(data), 0)
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    sock.sendto(struct.pack(">BBHHHBBH8s", 0x45, 0, 0, 0, 0, 64, 17, 0, ends) + udp + data, (target, 0))
