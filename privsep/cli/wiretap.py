"""A witness on the wire for the demo and the tests: counts what passes an interface, by what a stranger could read.

Runs as a process of its own inside a network namespace; prints one JSON object when its standard input ends.
"""

import json
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


def main() -> int:
    """`wiretap INTERFACE HEX`: HEX is the beginning of the inner addresses, 0a for 10.0.0.0/8."""
    interface, inside = sys.argv[1], bytes.fromhex(sys.argv[2])
    counts = {"ike": 0, "encrypted": 0, "cleartext": 0, "other": 0}
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as tap:
        tap.bind((interface, ETH_P_ALL))
        print("ready", flush=True)
        while True:
            readable, _, _ = select.select([tap, sys.stdin], [], [])
            if tap in readable:
                counts[classify(tap.recv(2048), inside)] += 1
            elif sys.stdin.read(1) == "":
                break
    print(json.dumps(counts), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
