"""A witness on the wire for the demo and the tests: counts what passes it, by what a stranger could read.

Runs as a process of its own; prints one JSON object when its standard input ends. It listens at both ends of the wire,
to what leaves: a tap sees a packet that came in encrypted a second time, when the kernel has decapsulated it.
"""

import ctypes
import json
import os
import select
import socket
import struct
import sys

ETH_P_ALL = 3
ETHERTYPE_IPV4 = 0x0800
PROTOCOL_UDP = 17
PROTOCOL_ESP = 50
PORT_IKE = 500
PORT_NAT_T = 4500
CLONE_NEWNET = 0x40000000


def classify(frame: bytes, inside: bytes) -> str:
    """What an Ethernet frame shows: ike, encrypted, cleartext (an address begins with `inside`) or other."""
    if len(frame) < 34 or frame[12:14] != struct.pack("!H", ETHERTYPE_IPV4):
        return "other"
    packet = frame[14:]
    header = (packet[0] & 0x0F) * 4
    if packet[12:16].startswith(inside) or packet[16:20].startswith(inside):
        return "cleartext"
    if packet[9] == PROTOCOL_ESP:
        return "encrypted"
    if packet[9] != PROTOCOL_UDP or len(packet) < header + 12:
        return "other"
    source, destination = struct.unpack_from("!HH", packet, header)
    if PORT_IKE in (source, destination):
        return "ike"
    if PORT_NAT_T in (source, destination):
        # RFC 3948 section 2.2: four zero octets mark IKE
        return "ike" if packet[header + 8 : header + 12] == bytes(4) else "encrypted"
    return "other"


def listen(namespace: str, interface: str) -> socket.socket:
    """A tap on the interface in the named network namespace; this process is in that namespace afterwards."""
    with open(f"/run/netns/{namespace}") as entrance:
        if ctypes.CDLL(None, use_errno=True).setns(entrance.fileno(), CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    tap.bind((interface, ETH_P_ALL))
    return tap


def main() -> int:
    """`wiretap INTERFACE HEX NAMESPACE...`: HEX is the beginning of the inner addresses, 0a for 10.0.0.0/8."""
    interface, inside, *namespaces = sys.argv[1:]
    beginning = bytes.fromhex(inside)
    counts = {"ike": 0, "encrypted": 0, "cleartext": 0, "other": 0}
    taps = [listen(namespace, interface) for namespace in namespaces]
    print("ready", flush=True)
    while True:
        readable, _, _ = select.select([*taps, sys.stdin], [], [])
        if readable == [sys.stdin]:
            break
        for tap in taps:
            if tap in readable:
                frame, (_, _, direction, *_) = tap.recvfrom(2048)
                if direction == socket.PACKET_OUTGOING:
                    counts[classify(frame, beginning)] += 1
    print(json.dumps(counts), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
