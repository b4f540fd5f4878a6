"""A peer that is elsewhere now: its SAs and policies go there (XFRM_MSG_MIGRATE), with their keys and sequence numbers.

For each policy and template the kernel moves the first SA that it finds between the old addresses, then the template,
without which it moves nothing. So a round moves one pair of those that are there, and the policy must be back where it
was before the next.
"""

from collections.abc import Iterator, Sequence

from monitor.dataplane import Pair, Policy
from monitor.xfrm.messages import Migrate
from monitor.xfrm.netlink import XfrmNetlink
from monitor.xfrm.policy import entries, family
from monitor.xfrm.spd import Spd
from monitor.xfrm.structs import PROTOCOLS, UDP_ENCAP_ESPINUDP, Attribute, Direction
from privsep.iana import ProtocolId


def migrate(netlink: XfrmNetlink, spd: Spd, policy: Policy, pairs: Sequence[Pair]) -> None:
    """All pairs that the policy has at its addresses, given as they are to be.

    DataplaneError, and some may have gone, or half of one.
    """
    for done, pair in enumerate(pairs):
        if done:
            spd.add(policy)
        for message in one_round(policy, pair):
            netlink.do(message)


def one_round(policy: Policy, pair: Pair) -> Iterator[Migrate]:
    """For each of the kernel's policies and each of its templates: from the policy's addresses to the pair's.

    The ports are ESP's alone: what IPComp has inside knows of no UDP, so each template has a message of its own.
    """
    for entry in entries(policy):
        source, destination = (policy.local, pair.local), (policy.remote, pair.remote)
        if entry.key["dir"] is not Direction.OUT:
            source, destination = destination, source
        template = entry.template
        while template is not None:
            ends = {
                "old_saddr": source[0].address.packed,
                "old_daddr": destination[0].address.packed,
                "new_saddr": source[1].address.packed,
                "new_daddr": destination[1].address.packed,
                "proto": template["id.proto"],
                "mode": template["mode"],
                "reqid": template["reqid"],
                "old_family": family(policy.remote.address),
                "new_family": family(pair.remote.address),
            }
            attributes: list[Attribute] = [("XFRMA_MIGRATE", ends), *entry.lane]
            if pair.encap and template["id.proto"] == PROTOCOLS[ProtocolId.ESP]:
                ports = {"sport": source[1].port.to_bytes(2), "dport": destination[1].port.to_bytes(2)}
                attributes.append(("XFRMA_ENCAP", {"type": UDP_ENCAP_ESPINUDP, **ports}))
            yield Migrate.request(0, entry.key, attributes)
            template = template.get("next")
