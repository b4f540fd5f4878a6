"""When SAs are renewed, and what they serve."""

from privsep.types import Role
from worker.child import MARGINS, renewal_delay


def test_renewal_begins_within_the_margin_and_the_initiator_comes_first():
    for role, (low, high) in MARGINS.items():
        earliest = renewal_delay(1000.0, role, lambda octets: b"\xff" * octets)
        latest = renewal_delay(1000.0, role, bytes)
        assert (round(earliest), round(latest)) == (round(1000 * (1 - high)), round(1000 * (1 - low)))
    assert MARGINS[Role.INITIATOR][0] > MARGINS[Role.RESPONDER][1]
