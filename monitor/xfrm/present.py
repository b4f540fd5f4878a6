"""An SA that the kernel has, held against the pair that an earlier instance installed. Its keys are not looked at."""

import sys

from monitor.dataplane import Pair
from monitor.xfrm.messages import ATTRIBUTE_OCTETS, HEADER_OCTETS, Counters
from monitor.xfrm.policy import family
from monitor.xfrm.sa import mode
from monitor.xfrm.structs import ATTRIBUTES, UDP_ENCAP_ESPINUDP, Values
from privsep.iana import ProtocolId
from privsep.types import Endpoint

_ADDRESS_OCTETS = 16
_ENCAP, _ENCAP_RECORD = ATTRIBUTES["XFRMA_ENCAP"]


class PresentSa(Counters):
    """The answer to GETSA with the one attribute of it that is no secret and tells where the packets go."""

    def ft_decode(self, offset: int) -> None:
        """pyroute2's hook; the other attributes, among which are keys, are stepped over."""
        super().ft_decode(offset)
        self["encap"] = None
        at, end = HEADER_OCTETS + self.layout.size, min(self["header"]["length"], len(self.data))
        while at + ATTRIBUTE_OCTETS <= end:
            length = int.from_bytes(self.data[at : at + 2], sys.byteorder)
            kind = int.from_bytes(self.data[at + 2 : at + ATTRIBUTE_OCTETS], sys.byteorder)
            if kind == _ENCAP:
                self["encap"] = _ENCAP_RECORD.read(self.data, at + ATTRIBUTE_OCTETS)
            at += max(ATTRIBUTE_OCTETS, (length + 3) & ~3)


def is_as_described(
    present: PresentSa, pair: Pair, protocol: ProtocolId, source: Endpoint, destination: Endpoint
) -> bool:
    """Whether it is the pair's SA of that protocol between these ends; its name, by which it was found, is its own."""
    return (
        present["saddr"] == source.address.packed.ljust(_ADDRESS_OCTETS, b"\0")
        and present["family"] == family(destination.address)
        and present["reqid"] == pair.policy.reqid
        and present["mode"] == mode(pair, protocol)
        and present["lft.hard_add_expires_seconds"] == pair.lifetime
        and _is_encapsulated(present["encap"], pair.encap and protocol is ProtocolId.ESP, source, destination)
    )


def _is_encapsulated(encap: Values | None, expected: bool, source: Endpoint, destination: Endpoint) -> bool:
    if encap is None or not expected:
        return encap is None and not expected
    ports = int.from_bytes(encap["sport"]), int.from_bytes(encap["dport"])
    return encap["type"] == UDP_ENCAP_ESPINUDP and ports == (source.port, destination.port)
