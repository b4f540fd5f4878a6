"""The matrix of `make test-kernel`: what is negotiated with whom, one line for each case.

A suite that `privsep/algorithms.py` can negotiate belongs in SUITES; `tests/kernel/test_cases.py` tells what lacks.
"""

from dataclasses import dataclass
from typing import Literal

from privsep.algorithms import ChildSuite
from privsep.iana import ProtocolId

Peer = Literal["ourselves", "strongSwan", "libreswan"]
Initiator = Literal["we", "peer", "trap"]
"""`trap`: we, when the first packet asks for it."""

AH = "AH "
SUITES = (
    *(
        f"aes{bits}{mode}"
        for mode in ("gcm8", "gcm12", "gcm16", "ccm8", "ccm12", "ccm16", "gmac")
        for bits in (128, 192, 256)
    ),
    *("aes128ctr-sha256", "aes192ctr-sha1", "aes256ctr-sha512"),
    *("aes128-md5", "aes192-sha1", "aes256-sha256", "aes256-sha384", "aes128-sha512", "aes128-aesxcbc"),
    *("camellia128-sha256", "camellia192-sha256", "camellia256-sha512", "3des-sha1", "null-sha256"),
    *("aes256gcm16-esn", "aes128-sha256-esn"),
    *("AH md5", "AH sha1", "AH sha256", "AH sha384-esn", "AH sha512", "AH aesxcbc"),
)
"""ESP, or AH with "AH " before it, as `privsep-ike status` shows them."""
UNKNOWN_TO_STRONGSWAN = frozenset[str]()


def parsed(suite: str) -> ChildSuite:
    """What the keyword stands for."""
    if suite.startswith(AH):
        return ChildSuite.parse(suite.removeprefix(AH), ProtocolId.AH)
    return ChildSuite.parse(suite)


@dataclass(frozen=True)
class Case:
    """A connection of its own, with addresses of its own; `outer` and `inner` are IP versions."""

    peer: Peer
    suite: str
    initiator: Initiator = "we"
    mode: Literal["tunnel", "transport"] = "tunnel"
    outer: Literal[4, 6] = 4
    inner: Literal[4, 6] = 4
    encap: Literal["auto", "force"] = "auto"
    nat: bool = False
    """The initiator is behind a NAT."""
    ipcomp: Literal["", "both", "we"] = ""
    """Who would compress."""
    routed: bool = False
    """Our end is an XFRM interface, into which routes lead."""
    silent: bool = False
    """Neither end names proposals: `suite` is what their defaults come to."""

    def __str__(self) -> str:
        families = f"IPv{self.outer}" if self.inner == self.outer else f"IPv{self.inner} in IPv{self.outer}"
        extras = " NAT" * self.nat + " UDP" * (self.encap == "force") + " trap" * (self.initiator == "trap")
        extras += (
            " routed" * self.routed
            + " by default" * self.silent
            + {"": "", "both": " IPComp", "we": " IPComp of ours only"}[self.ipcomp]
        )
        return f"{self.suite} {self.mode} {families}{extras}"


GCM, CBC = "aes256gcm16-modp2048", "aes128-sha256-modp2048"

CASES = (
    # first: a NAT is to be kept awake while the others run
    Case("ourselves", GCM, nat=True),
    Case("strongSwan", GCM, nat=True),
    Case("strongSwan", CBC, "peer", nat=True),
    Case("libreswan", CBC, nat=True),
    *(Case("ourselves", suite, ("we", "peer")[turn % 2]) for turn, suite in enumerate(SUITES)),
    *(
        Case("strongSwan", suite, ("peer", "we")[turn % 2])
        for turn, suite in enumerate(SUITES)
        if suite not in UNKNOWN_TO_STRONGSWAN
    ),
    Case("ourselves", GCM, mode="transport"),
    Case("ourselves", CBC, mode="transport", outer=6, inner=6),
    Case("ourselves", GCM, outer=6, inner=6),
    Case("ourselves", CBC, outer=4, inner=6),
    Case("ourselves", GCM, outer=6, inner=4),
    Case("ourselves", CBC, encap="force"),
    Case("ourselves", GCM, outer=6, inner=6, encap="force"),
    Case("ourselves", CBC, "peer", outer=4, inner=6, encap="force"),
    Case("ourselves", GCM, "peer", outer=6, inner=4, encap="force"),
    Case("ourselves", GCM, "trap"),
    Case("ourselves", CBC, "trap", outer=6, inner=6),
    Case("ourselves", GCM, routed=True),
    Case("ourselves", CBC, "trap", outer=6, inner=6, routed=True),
    Case("ourselves", GCM, "trap", outer=4, inner=6, encap="force", routed=True),
    Case("ourselves", GCM, routed=True, ipcomp="both"),
    Case("ourselves", CBC, encap="force", ipcomp="both"),
    Case("ourselves", GCM, "peer", mode="transport", ipcomp="both"),
    Case("ourselves", GCM, outer=4, inner=6, ipcomp="both"),
    Case("ourselves", GCM, ipcomp="we"),
    Case("ourselves", GCM, "peer", ipcomp="we"),
    Case("strongSwan", CBC, mode="transport"),
    Case("strongSwan", GCM, "peer", mode="transport", outer=6, inner=6),
    Case("strongSwan", CBC, "peer", outer=6, inner=6),
    Case("strongSwan", GCM, outer=4, inner=6),
    Case("strongSwan", CBC, "peer", outer=6, inner=4),
    Case("strongSwan", GCM, encap="force"),
    Case("strongSwan", CBC, "trap"),
    Case("strongSwan", GCM, routed=True),
    Case("strongSwan", CBC, "peer", outer=6, inner=6, routed=True),
    Case("strongSwan", GCM, ipcomp="both"),
    Case("strongSwan", CBC, "peer", ipcomp="both"),
    Case("strongSwan", "aes256-sha256", silent=True),
    Case("strongSwan", "aes128gcm16", "peer", silent=True),
    Case("strongSwan", CBC, ipcomp="we"),
    Case("strongSwan", GCM, "peer", ipcomp="we"),
    Case("libreswan", GCM),
    Case("libreswan", GCM, "peer"),
    Case("libreswan", CBC),
    Case("libreswan", CBC, "peer"),
    Case("libreswan", CBC, mode="transport"),
    Case("libreswan", GCM, "peer", mode="transport"),
    Case("libreswan", CBC, outer=6, inner=6),
    Case("libreswan", GCM, "peer", outer=4, inner=6),
    Case("libreswan", "aes256-sha512", "trap"),
    Case("libreswan", "aes256gcm16-curve25519", silent=True),
    Case("libreswan", "aes128-sha1-modp2048", "peer", silent=True),
    Case("libreswan", GCM, routed=True),
    Case("libreswan", CBC, "peer", routed=True),
)
