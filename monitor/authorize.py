"""The second opinion: may this pair be installed? Pure functions, one for each reason to say no.

What keyd proved (`Redeemed`) and what the worker asks for (`Install`) is compared with the monitor's own configuration
and with what it allocated and installed itself. Mode, policy number, lane, lifetime and replay window come
from the configuration; the worker has no word for them. `Passed.PASSED` is the one value that lets a request through.
"""

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from monitor.dataplane import Cpis, Pair
from monitor.sadb import Claims, Policies, Sadb, fixed
from privsep.config.model import Child, Connection, Encap, Gateway, Remote, RemoteAny
from privsep.iana import ProtocolId
from privsep.schema.install import Denial, Install
from privsep.schema.keymat import Redeemed
from privsep.types import Address, Cpi, Mode, Spi, TrafficSelector

IKE_PORT = 500
NAT_PORT = 4500
"""RFC 3947 section 4: where IKE and UDP-encapsulated ESP go once a NAT is seen."""


class Passed(Enum):
    """A check found nothing against the request."""

    PASSED = "passed"


PASSED = Passed.PASSED
Verdict = Passed | Denial


@dataclass(slots=True, frozen=True, kw_only=True, repr=False)
class Case:
    """All that a check may look at. Has no repr: it holds keys."""

    gateway: Gateway
    connection: Connection
    child: Child
    redeemed: Redeemed
    install: Install
    sadb: Sadb
    policies: Policies


Check = Callable[[Case], Verdict]


def authorize(
    gateway: Gateway,
    sadb: Sadb,
    policies: Policies,
    redeemed: Redeemed,
    install: Install,
    checks: Iterable[Check] | None = None,
) -> Pair | Denial:
    """The pair to install, built from the configuration and what keyd derived, or why not. Changes nothing.

    `checks` are all of `CHECKS`, or `READMISSION`.
    """
    named = find_child(gateway, redeemed.connection, redeemed.child)
    if named is None:
        return Denial.NO_SUCH_CHILD
    connection, child = named
    case = Case(
        gateway=gateway,
        connection=connection,
        child=child,
        redeemed=redeemed,
        install=install,
        sadb=sadb,
        policies=policies,
    )
    for check in checks or CHECKS:
        verdict = check(case)
        if verdict is not PASSED:
            return verdict
    cpis = _cpis(case)
    policy = policies.propose(
        connection,
        child,
        redeemed.identity,
        (install.local.address, install.remote.address),
        install.local_ts,
        install.remote_ts,
        ipcomp=cpis is not None,
    )
    if policy is None:
        return Denial.QUOTA
    return Pair(
        policy=policy,
        spi_in=Spi(redeemed.spi_in),
        spi_out=Spi(redeemed.spi_out),
        suite=redeemed.suite.without_group(),
        encryption_in=redeemed.encryption_in,
        integrity_in=redeemed.integrity_in,
        encryption_out=redeemed.encryption_out,
        integrity_out=redeemed.integrity_out,
        local=install.local,
        remote=install.remote,
        encap=install.encap,
        local_ts=install.local_ts,
        remote_ts=install.remote_ts,
        lifetime=child.lifetime,
        replay_window=child.replay_window,
        ipcomp=cpis,
        role=redeemed.role,
    )


def _cpis(case: Case) -> Cpis | None:
    """The CPI that the monitor allocated with the SPI, and the peer's."""
    allocation = case.sadb.allocation(Spi(case.redeemed.spi_in))
    inbound, outbound = None if allocation is None else allocation.cpi, case.install.cpi_out
    return None if inbound is None or outbound is None else Cpis(inbound=inbound, outbound=Cpi(outbound))


def find_child(gateway: Gateway, connection_name: str, child_name: str) -> tuple[Connection, Child] | None:
    """The configured child of those names."""
    connection = gateway.connection(connection_name)
    if connection is None:
        return None
    child = connection.child(child_name)
    return None if child is None else (connection, child)


def outer_addresses(gateway: Gateway, connection: Connection, local: Address, remote: Address) -> Verdict:
    """The two ends are ones that the connection is configured for."""
    if local.version != remote.version:
        return Denial.ADDRESSES
    ours = gateway.listen if connection.local is None else (connection.local,)
    if ours and local not in ours:
        return Denial.ADDRESSES
    if any(address.is_unspecified or address.is_multicast for address in (local, remote)):
        return Denial.ADDRESSES
    return PASSED if _accepts(connection.remote, remote) else Denial.ADDRESSES


def _accepts(configured: Remote, actual: Address) -> bool:
    match configured:
        case RemoteAny():
            return True
        case ipaddress.IPv4Network() | ipaddress.IPv6Network():
            return actual in configured
        case _:
            return actual == configured


def _identity(case: Case) -> Verdict:
    """Whom keyd authenticated is whom the connection is for."""
    expected = case.connection.remote_id
    return PASSED if expected is None or case.redeemed.identity == expected else Denial.IDENTITY


def _most_specific(case: Case) -> Verdict:
    """No other connection describes this peer more closely: a laxer one must not stand in for a stricter."""
    identity, remote = case.redeemed.identity, case.install.remote.address

    def closeness(connection: Connection) -> tuple[bool, int]:
        return connection.remote_id is not None, connection.specificity(remote)

    rivals = case.gateway.accepting(case.install.local.address, remote, identity)
    ours = closeness(case.connection)
    closer = any(closeness(rival) > ours for rival in rivals)
    return Denial.IDENTITY if closer else PASSED


def _suite(case: Case) -> Verdict:
    """The suite with its group stands in the child's proposals: neither a weaker cipher nor less secrecy."""
    return PASSED if case.redeemed.suite in case.child.suites else Denial.ALGORITHMS


def _key_lengths(case: Case) -> Verdict:
    """The keys, salts and nonces are as long as the suite's, not a bit shorter (RFC 2409 section 5.5)."""
    redeemed, suite = case.redeemed, case.redeemed.suite
    exact = (
        len(redeemed.encryption_in) == len(redeemed.encryption_out) == suite.encryption_octets
        and len(redeemed.integrity_in) == len(redeemed.integrity_out) == suite.integrity_octets
    )
    return PASSED if exact else Denial.ALGORITHMS


def _spis_differ(case: Case) -> Verdict:
    """KEYMAT depends on the SPI: equal ones would put both directions under one key (RFC 2409 section 5.5)."""
    return PASSED if case.redeemed.spi_in != case.redeemed.spi_out else Denial.SPI


def _spi_is_ours(case: Case) -> Verdict:
    """The monitor allocated the inbound SPI for this very child, and it was not installed since."""
    allocation = case.sadb.allocation(Spi(case.redeemed.spi_in))
    ours = allocation is not None and (allocation.connection, allocation.child) == (
        case.connection.name,
        case.child.name,
    )
    return PASSED if ours else Denial.SPI


def _spi_addresses(case: Case) -> Verdict:
    """The addresses are those of the SPI's allocation; ports may have floated since (RFC 3947 section 4)."""
    allocation = case.sadb.allocation(Spi(case.redeemed.spi_in))
    same = allocation is not None and (allocation.local.address, allocation.remote.address) == (
        case.install.local.address,
        case.install.remote.address,
    )
    return PASSED if same else Denial.ADDRESSES


def _outer_addresses(case: Case) -> Verdict:
    """As at the allocation: the connection's."""
    return outer_addresses(case.gateway, case.connection, case.install.local.address, case.install.remote.address)


def _encapsulation(case: Case) -> Verdict:
    """UDP encapsulation as the configuration wants it."""
    allowed = {Encap.AUTO: (True, False), Encap.FORCE: (True,), Encap.OFF: (False,)}[case.connection.encap]
    return PASSED if case.install.encap in allowed else Denial.ENCAPSULATION


def _not_ah(case: Case) -> Verdict:
    """AH covers the outer header, so it has no UDP encapsulation (RFC 3715 section 2.1, RFC 3948)."""
    return Denial.AH_ENCAP if case.install.encap and case.redeemed.suite.protocol is ProtocolId.AH else PASSED


def _ports(case: Case) -> Verdict:
    """Ours is one of IKE's, and the one that takes encapsulated ESP if that is what comes (RFC 3948 section 2).

    The peer's is any: a NAT chooses it (RFC 3947 section 4), or the peer does, and ESP by itself has no ports.
    """
    ours = (NAT_PORT,) if case.install.encap else (IKE_PORT, NAT_PORT)
    return PASSED if case.install.local.port in ours and case.install.remote.port else Denial.PORTS


def _selectors_inside(case: Case) -> Verdict:
    """Each selector lies inside a configured one of its side (RFC 2407 section 4.6.2)."""
    install, child = case.install, case.child
    inside = all(any(outer.contains(inner) for outer in child.local_ts) for inner in install.local_ts) and all(
        any(outer.contains(inner) for outer in child.remote_ts) for inner in install.remote_ts
    )
    return PASSED if inside else Denial.SELECTORS


def _families_agree(case: Case) -> Verdict:
    """No selector without a counterpart of its family on the other side."""
    local = {selector.network.version for selector in case.install.local_ts}
    remote = {selector.network.version for selector in case.install.remote_ts}
    return PASSED if local == remote else Denial.SELECTORS


def _transport_selectors(case: Case) -> Verdict:
    """Transport mode protects the two ends themselves (RFC 4301 section 4.1)."""
    if case.child.mode is not Mode.TRANSPORT:
        return PASSED
    install = case.install
    hosts = all(_is_host(selector, install.local.address) for selector in install.local_ts) and all(
        _is_host(selector, install.remote.address) for selector in install.remote_ts
    )
    return PASSED if hosts else Denial.SELECTORS


def _is_host(selector: TrafficSelector, address: Address) -> bool:
    network = selector.network
    return network.prefixlen == network.max_prefixlen and network.network_address == address


def _no_overlap(case: Case) -> Verdict:
    """No installed pair of another identity carries traffic of these selectors in a lane that meets the child's."""
    return Denial.OVERLAP if _taken(case, case.sadb.claims) else PASSED


def _not_reserved(case: Case) -> Verdict:
    """Whoever comes from anywhere does not get the traffic of a peer whose address is configured, up or down."""
    if fixed(case.connection.remote) is not None:
        return PASSED
    return Denial.OVERLAP if _taken(case, case.policies.reserved) else PASSED


def _taken(case: Case, claims: Claims) -> bool:
    return any(
        claim.identity != case.redeemed.identity
        and _any_overlap(claim.remote_ts, (selector,))
        and _any_overlap(claim.local_ts, case.install.local_ts)
        for selector in case.install.remote_ts
        for claim in claims.touching(selector.network, case.child.kernel.lane)
    )


def _any_overlap(some: tuple[TrafficSelector, ...], others: tuple[TrafficSelector, ...]) -> bool:
    return any(one.overlaps(other) for one in some for other in others)


def _outbound_is_new(case: Case) -> Verdict:
    """An existing outbound SA is never replaced: its key would be the attacker's to choose the moment of."""
    redeemed = case.redeemed
    taken = case.sadb.has_outbound(case.install.remote.address, redeemed.suite.protocol, Spi(redeemed.spi_out))
    return Denial.EXISTS if taken else PASSED


def _compression(case: Case) -> Verdict:
    """IPComp where the child has it, and only there (RFC 3173 section 4: the default is none)."""
    return Denial.IPCOMP if case.install.cpi_out is not None and not case.child.ipcomp else PASSED


def _cpi_is_new(case: Case) -> Verdict:
    """The same for IPComp: nobody takes part in another's compression."""
    cpi = case.install.cpi_out
    taken = cpi is not None and case.sadb.has_outbound(case.install.remote.address, ProtocolId.IPCOMP, Spi(cpi))
    return Denial.EXISTS if taken else PASSED


def _quota(case: Case) -> Verdict:
    """There is room for one more pair."""
    return PASSED if case.sadb.may_install(case.connection.name) else Denial.QUOTA


CHECKS: tuple[Check, ...] = (
    _identity,
    _most_specific,
    _suite,
    _key_lengths,
    _spis_differ,
    _spi_is_ours,
    _spi_addresses,
    _outer_addresses,
    _encapsulation,
    _not_ah,
    _ports,
    _selectors_inside,
    _families_agree,
    _transport_selectors,
    _no_overlap,
    _not_reserved,
    _outbound_is_new,
    _compression,
    _cpi_is_new,
    _quota,
)
"""In the order in which a reason is reported."""

_OF_THE_INSTALLATION = (_key_lengths, _spi_is_ours, _spi_addresses)
READMISSION: tuple[Check, ...] = tuple(check for check in CHECKS if check not in _OF_THE_INSTALLATION)
"""For a pair that was installed before: its keys are the data plane's, its SPI is allocated no more."""
