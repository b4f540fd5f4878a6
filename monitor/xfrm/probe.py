"""What this kernel can do: each suite that is configured is tried with an SA that carries nothing, removed at once."""

import errno
import ipaddress
import os
import secrets
from collections.abc import Collection, Iterable

from monitor.dataplane import Cpis, Pair, Policy
from monitor.xfrm import interfaces, sa
from monitor.xfrm.algorithms import CIPHERS, CONFIG, INTEGRITIES
from monitor.xfrm.messages import NEW, DelSa, GetSa, Migrate, NewSa
from monitor.xfrm.netlink import KernelError, XfrmNetlink
from privsep.algorithms import ChildSuite
from privsep.config.model import Gateway, RemoteAny
from privsep.config.names import RemoteName
from privsep.iana import ProtocolId
from privsep.types import MAX_CPI, MIN_CPI, Address, Cpi, Endpoint, Mode, Spi, TrafficSelector

_LOOPBACKS: dict[int, Address] = {4: ipaddress.IPv4Address("127.0.0.1"), 6: ipaddress.IPv6Address("::1")}
"""Where the tried SA leads: nowhere."""
_CONFIG = {
    (ProtocolId.ESP, 4): "CONFIG_INET_ESP",
    (ProtocolId.ESP, 6): "CONFIG_INET6_ESP",
    (ProtocolId.AH, 4): "CONFIG_INET_AH",
    (ProtocolId.AH, 6): "CONFIG_INET6_AH",
    (ProtocolId.IPCOMP, 4): "CONFIG_INET_IPCOMP",
    (ProtocolId.IPCOMP, 6): "CONFIG_INET6_IPCOMP",
}
_COMMON = {
    ProtocolId.ESP: ChildSuite.parse("aes128-sha1"),
    ProtocolId.AH: ChildSuite.parse("sha1", ProtocolId.AH),
}
"""What hardly any kernel lacks, whether it has the protocol or not."""
_TRIAL_SECONDS = 2
"""After which the kernel forgets it even if we were killed in between."""


def probe(netlink: XfrmNetlink, gateway: Gateway) -> str | None:
    """None if the kernel can carry whatever the configuration may negotiate; else what it lacks. Changes nothing."""
    suites = {suite.without_group() for _, child in gateway.children() for suite in child.suites}
    versions = sorted(_versions(gateway))
    lacks = [lacking(netlink, sorted(suites, key=lambda suite: suite.described), versions)]
    if any(child.ipcomp for _, child in gateway.children()):
        lacks += (_try_ipcomp(netlink, version) for version in versions)
    if interfaces.needed(gateway) and not interfaces.possible():
        lacks.append("the kernel has no XFRM interfaces (CONFIG_XFRM_INTERFACE)")
    return "; ".join(filter(None, dict.fromkeys(lacks))) or None


def knows_direction(netlink: XfrmNetlink) -> bool:
    """Whether an SA can be told which way it goes (Linux 6.10).

    Asked for an SA that cannot be, with a direction that is none: other kernels do not look at what they do not know.
    """
    nothing = sa.SaId(_LOOPBACKS[4], ProtocolId.ESP, Spi(0))
    try:
        netlink.do(GetSa.request(0, sa.key(nothing), [("XFRMA_SA_DIR", {"value": 0})]))
    except KernelError as error:
        return error.number in (errno.ERANGE, errno.EINVAL)
    return False


def can_migrate(netlink: XfrmNetlink) -> bool:
    """Whether what is installed can go to another address (CONFIG_XFRM_MIGRATE). Asked to move nothing."""
    try:
        netlink.do(Migrate.request(0, {}))
    except KernelError as error:
        return error.number != errno.ENOPROTOOPT
    return True


def _versions(gateway: Gateway) -> set[int]:
    """IP versions of the outer addresses that the configuration names; 4 if it leaves them all open."""
    found = {int(address.version) for address in gateway.listen}
    for connection in gateway.connections:
        if connection.local is not None:
            found.add(int(connection.local.version))
        match connection.remote:
            case RemoteAny():
                continue
            case RemoteName():
                found |= set() if connection.remote.version is None else {connection.remote.version}
            case remote:
                found.add(int(remote.version))
    return found or {4}


def lacking(netlink: XfrmNetlink, suites: Collection[ChildSuite], versions: Iterable[int]) -> str | None:
    """The same for these suites over these IP versions."""
    reasons: list[str] = []
    for version in versions:
        refused = {suite: reason for suite in suites if (reason := _try(netlink, suite, version)) is not None}
        # the kernel looks for the algorithms before it looks for the protocol, whose absence is the greater one
        for protocol in dict.fromkeys(suite.protocol for suite in refused):
            if _try(netlink, _COMMON[protocol], version) == _without(protocol, version):
                reasons.append(_without(protocol, version))
        reasons += refused.values()
    return "; ".join(dict.fromkeys(reasons)) or None


def _try(netlink: XfrmNetlink, suite: ChildSuite, version: int) -> str | None:
    pair = _trial(suite, _LOOPBACKS[version])
    try:
        netlink.do(NewSa.request(NEW, *sa.outbound(pair)))
    except KernelError as error:
        return _reason(error, suite, version)
    netlink.do(DelSa.request(0, sa.key(sa.SaId(pair.remote.address, suite.protocol, pair.spi_out))))
    return None


def _try_ipcomp(netlink: XfrmNetlink, version: int) -> str | None:
    pair = _trial(_COMMON[ProtocolId.ESP], _LOOPBACKS[version])
    cpis = Cpis(inbound=Cpi(0), outbound=Cpi(MIN_CPI + secrets.randbelow(MAX_CPI - MIN_CPI)))
    try:
        netlink.do(NewSa.request(NEW, *sa.compressing(pair, cpis)))
    except KernelError as error:
        match error.number:
            case errno.EPROTONOSUPPORT | errno.EAFNOSUPPORT:
                return _without(ProtocolId.IPCOMP, version)
            case errno.ENOSYS | errno.ENOENT:
                return f"the kernel lacks {sa.DEFLATE.decode()} (CONFIG_CRYPTO_DEFLATE)"
            case _:
                return f"the kernel refuses IPComp: {error}"
    netlink.do(DelSa.request(0, sa.key(sa.SaId(pair.remote.address, ProtocolId.IPCOMP, Spi(cpis.outbound)))))
    return None


def _reason(error: KernelError, suite: ChildSuite, version: int) -> str:
    match error.number:
        case errno.EPROTONOSUPPORT | errno.EAFNOSUPPORT:
            return _without(suite.protocol, version)
        case errno.ENOSYS | errno.ENOENT:
            names = [INTEGRITIES[suite.integrity]] if suite.integrity is not None else []
            names += [CIPHERS[suite.cipher]] if suite.cipher is not None else []
            needs = ", ".join(dict.fromkeys(CONFIG[name] for name in names))
            return f"the kernel lacks {' or '.join(name.decode() for name in names)} ({needs})"
        case _:
            return f"the kernel refuses {suite.described}: {error}"


def _without(protocol: ProtocolId, version: int) -> str:
    return f"the kernel has no {protocol.name} for IPv{version} ({_CONFIG[protocol, version]})"


def _trial(suite: ChildSuite, address: Address) -> Pair:
    """From this machine to itself, with keys that nobody knows. No policy leads to it."""
    here = Endpoint(address, 0)
    only = (TrafficSelector(ipaddress.ip_network(address)),)
    encryption = os.urandom(suite.encryption_octets)
    integrity = os.urandom(suite.integrity_octets)
    return Pair(
        policy=Policy(
            number=0,
            protocol=suite.protocol,
            mode=Mode.TUNNEL,
            local=here,
            remote=here,
            local_ts=only,
            remote_ts=only,
        ),
        spi_in=Spi(0),
        spi_out=Spi(sa.MIN_SPI + secrets.randbelow(sa.MAX_SPI - sa.MIN_SPI)),
        suite=suite,
        encryption_in=b"",
        integrity_in=b"",
        encryption_out=encryption,
        integrity_out=integrity,
        local=here,
        remote=here,
        encap=False,
        local_ts=only,
        remote_ts=only,
        lifetime=_TRIAL_SECONDS,
        replay_window=sa.SMALL_WINDOW,
    )
