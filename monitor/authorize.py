"""The second opinion: may this pair be installed? Pure functions, one for each reason to say no.

What keyd proved and the peer agreed to (`Redeemed`), and the two ends that the worker names (`InstallInbound`), are
compared with the monitor's own configuration and with what it allocated and installed itself. Policy number, lane,
lifetime and replay window come from the configuration alone. `Passed.PASSED` is the one value that lets a request
through.
"""

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum

from monitor.dataplane import Cpis, Pair
from monitor.sadb import Claim, Claims, Policies, Sadb, fixed
from privsep.algorithms import ChildSuite
from privsep.config.model import Child, Connection, Encap, Gateway, Remote, RemoteAny
from privsep.config.names import RemoteName
from privsep.iana import ProtocolId
from privsep.schema.install import AllocateSpi, Denial, InstallInbound
from privsep.schema.keymat import Redeemed, RedeemedOutbound
from privsep.types import Address, Cpi, Endpoint, Identity, Mode, Spi, TrafficSelector

IKE_PORT = 500
NAT_PORT = 4500
"""RFC 3947 section 4: where IKE and UDP-encapsulated ESP go once a NAT is seen."""


class Passed(Enum):
    """A check found nothing against the request."""

    PASSED = "passed"


PASSED = Passed.PASSED
Verdict = Passed | Denial


@dataclass(slots=True, frozen=True, kw_only=True, repr=False)
class Plan:
    """Whose traffic is to go between which ends: what can be judged before there are keys. A case inherits its repr."""

    gateway: Gateway
    connection: Connection
    child: Child
    identity: Identity
    local: Endpoint
    remote: Endpoint
    local_ts: TrafficSelector
    remote_ts: TrafficSelector
    sadb: Sadb
    policies: Policies


@dataclass(slots=True, frozen=True, kw_only=True, repr=False)
class Case(Plan):
    """All that a check may look at. Has no repr: it holds keys."""

    redeemed: Redeemed


Check = Callable[[Case], Verdict]


def authorize(
    gateway: Gateway,
    sadb: Sadb,
    policies: Policies,
    redeemed: Redeemed,
    install: InstallInbound,
    checks: Iterable[Check] | None = None,
) -> Pair | Denial:
    """The pair to install, built from the configuration and what keyd derived, or why not. Changes nothing.

    It has what receives; `with_outbound` adds what sends.

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
        identity=redeemed.identity,
        local=install.local,
        remote=install.remote,
        local_ts=redeemed.local_ts or TrafficSelector.of_host(install.local.address),
        remote_ts=redeemed.remote_ts or TrafficSelector.of_host(install.remote.address),
        sadb=sadb,
        policies=policies,
        redeemed=redeemed,
    )
    for check in checks or CHECKS:
        verdict = check(case)
        if verdict is not PASSED:
            return verdict
    cpis, local_ts, remote_ts = _cpis(redeemed), (case.local_ts,), (case.remote_ts,)
    policy = policies.propose(
        connection,
        child,
        case.identity,
        (case.local.address, case.remote.address),
        local_ts,
        remote_ts,
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
        encryption_out=b"",
        integrity_out=b"",
        local=case.local,
        remote=case.remote,
        encap=redeemed.encap,
        local_ts=local_ts,
        remote_ts=remote_ts,
        lifetime=child.lifetime,
        replay_window=child.replay_window,
        ipcomp=cpis,
        role=redeemed.role,
    )


def with_outbound(pair: Pair, redeemed: RedeemedOutbound) -> Pair | Denial:
    """The pair with the keys that send; their lengths are the suite's, as those of the other half."""
    if not _lengths_fit(pair.suite, redeemed.encryption_out, redeemed.integrity_out):
        return Denial.ALGORITHMS
    return replace(pair, encryption_out=redeemed.encryption_out, integrity_out=redeemed.integrity_out)


def foresee(gateway: Gateway, sadb: Sadb, policies: Policies, wish: AllocateSpi) -> Plan | Denial:
    """Whether a pair for this traffic would be installed, as far as can be told before anything is negotiated.

    What the worker says of the peer's identity is believed here, so nothing is installed on the strength of it.
    """
    named = find_child(gateway, wish.connection, wish.child)
    if named is None:
        return Denial.NO_SUCH_CHILD
    connection, child = named
    plan = Plan(
        gateway=gateway,
        connection=connection,
        child=child,
        identity=wish.identity,
        local=wish.local,
        remote=wish.remote,
        local_ts=wish.local_ts,
        remote_ts=wish.remote_ts,
        sadb=sadb,
        policies=policies,
    )
    verdicts = (check(plan) for check in FORESEEABLE)
    return next((verdict for verdict in verdicts if verdict is not PASSED), plan)


def _cpis(redeemed: Redeemed) -> Cpis | None:
    """Both, or there is no IPComp."""
    inbound, outbound = redeemed.cpi_in, redeemed.cpi_out
    return None if inbound is None or outbound is None else Cpis(inbound=Cpi(inbound), outbound=Cpi(outbound))


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
        case RemoteName():
            return configured.address == actual
        case ipaddress.IPv4Network() | ipaddress.IPv6Network():
            return actual in configured
        case _:
            return actual == configured


def _identity(case: Plan) -> Verdict:
    """Whom keyd authenticated is whom the connection is for."""
    expected = case.connection.remote_id
    return PASSED if expected is None or case.identity == expected else Denial.IDENTITY


def _most_specific(case: Plan) -> Verdict:
    """No other connection describes this peer more closely: a laxer one must not stand in for a stricter."""
    identity, remote = case.identity, case.remote.address

    def closeness(connection: Connection) -> tuple[bool, int]:
        return connection.remote_id is not None, connection.specificity(remote)

    rivals = case.gateway.accepting(case.local.address, remote, identity)
    ours = closeness(case.connection)
    closer = any(closeness(rival) > ours for rival in rivals)
    return Denial.IDENTITY if closer else PASSED


def _suite(case: Case) -> Verdict:
    """The suite with its group stands in the child's proposals: neither a weaker cipher nor less secrecy."""
    return PASSED if case.redeemed.suite in case.child.suites else Denial.ALGORITHMS


def _mode(case: Case) -> Verdict:
    """Tunnel or transport, as the child is configured: the peer agreed to that and to nothing else."""
    return PASSED if case.redeemed.mode is case.child.mode else Denial.MODE


def _key_lengths(case: Case) -> Verdict:
    """The keys, salts and nonces are as long as the suite's, not a bit shorter (RFC 2409 section 5.5)."""
    redeemed = case.redeemed
    exact = _lengths_fit(redeemed.suite, redeemed.encryption_in, redeemed.integrity_in)
    return PASSED if exact else Denial.ALGORITHMS


def _lengths_fit(suite: ChildSuite, encryption: bytes, integrity: bytes) -> bool:
    return (len(encryption), len(integrity)) == (suite.encryption_octets, suite.integrity_octets)


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
        case.local.address,
        case.remote.address,
    )
    return PASSED if same else Denial.ADDRESSES


def _outer_addresses(case: Plan) -> Verdict:
    """As at the allocation: the connection's."""
    return outer_addresses(case.gateway, case.connection, case.local.address, case.remote.address)


def _encapsulation(case: Case) -> Verdict:
    """UDP encapsulation as the configuration wants it."""
    allowed = {Encap.AUTO: (True, False), Encap.FORCE: (True,), Encap.OFF: (False,)}[case.connection.encap]
    return PASSED if case.redeemed.encap in allowed else Denial.ENCAPSULATION


def _not_ah(case: Case) -> Verdict:
    """AH covers the outer header, so it has no UDP encapsulation (RFC 3715 section 2.1, RFC 3948)."""
    return Denial.AH_ENCAP if case.redeemed.encap and case.redeemed.suite.protocol is ProtocolId.AH else PASSED


def _ports(case: Case) -> Verdict:
    """Ours is one of IKE's, and the one that takes encapsulated ESP if that is what comes (RFC 3948 section 2).

    The peer's is any: a NAT chooses it (RFC 3947 section 4), or the peer does, and ESP by itself has no ports.
    """
    ours = (NAT_PORT,) if case.redeemed.encap else (IKE_PORT, NAT_PORT)
    return PASSED if case.local.port in ours and case.remote.port else Denial.PORTS


def _selectors_inside(case: Plan) -> Verdict:
    """Each selector lies inside a configured one of its side (RFC 2407 section 4.6.2)."""
    return PASSED if case.child.covers(case.local_ts, case.remote_ts) else Denial.SELECTORS


def _families_agree(case: Plan) -> Verdict:
    """No packet goes from one family to the other."""
    return PASSED if case.local_ts.network.version == case.remote_ts.network.version else Denial.SELECTORS


def _transport_selectors(case: Plan) -> Verdict:
    """Transport mode protects the two ends themselves (RFC 4301 section 4.1)."""
    if case.child.mode is not Mode.TRANSPORT:
        return PASSED
    hosts = _is_host(case.local_ts, case.local.address) and _is_host(case.remote_ts, case.remote.address)
    return PASSED if hosts else Denial.SELECTORS


def _is_host(selector: TrafficSelector, address: Address) -> bool:
    network = selector.network
    return network.prefixlen == network.max_prefixlen and network.network_address == address


def _no_overlap(case: Plan) -> Verdict:
    """No installed pair of another claimant carries traffic of these selectors in a lane that meets the child's."""
    return Denial.OVERLAP if _taken(case, case.sadb.claims) else PASSED


def _not_reserved(case: Plan) -> Verdict:
    """Whoever comes from anywhere does not get the traffic of a peer whose address is configured, up or down."""
    if fixed(case.connection.remote) is not None:
        return PASSED
    return Denial.OVERLAP if _taken(case, case.policies.reserved) else PASSED


def _same_claimant(case: Plan, claim: Claim) -> bool:
    """Where any identity is accepted, whoever has that connection's secret may say a name that another one proves."""
    shared = case.sadb.claimants.share_secret(claim.connection, case.connection.name)
    return shared and claim.identity == case.identity


def _taken(case: Plan, claims: Claims) -> bool:
    return any(
        not _same_claimant(case, claim)
        and any(each.overlaps(case.remote_ts) for each in claim.remote_ts)
        and any(each.overlaps(case.local_ts) for each in claim.local_ts)
        for claim in claims.touching(case.remote_ts.network, case.child.kernel.lane)
    )


def _outbound_is_new(case: Case) -> Verdict:
    """An existing outbound SA is never replaced: its key would be the attacker's to choose the moment of."""
    redeemed = case.redeemed
    taken = case.sadb.has_outbound(case.remote.address, redeemed.suite.protocol, Spi(redeemed.spi_out))
    return Denial.EXISTS if taken else PASSED


def _compression(case: Case) -> Verdict:
    """IPComp where the child has it, and only there (RFC 3173 section 4: the default is none)."""
    ours, theirs = case.redeemed.cpi_in, case.redeemed.cpi_out
    return PASSED if (ours is None) == (theirs is None) and (ours is None or case.child.ipcomp) else Denial.IPCOMP


def _cpi_is_ours(case: Case) -> Verdict:
    """The CPI was allocated with the SPI."""
    allocation, ours = case.sadb.allocation(Spi(case.redeemed.spi_in)), case.redeemed.cpi_in
    same = ours is None or (allocation is not None and allocation.cpi == ours)
    return PASSED if same else Denial.IPCOMP


def _cpi_is_new(case: Case) -> Verdict:
    """The same for IPComp: nobody takes part in another's compression."""
    cpi = case.redeemed.cpi_out
    taken = cpi is not None and case.sadb.has_outbound(case.remote.address, ProtocolId.IPCOMP, Spi(cpi))
    return Denial.EXISTS if taken else PASSED


def _quota(case: Plan) -> Verdict:
    """There is room for one more pair."""
    return PASSED if case.sadb.may_install(case.connection.name) else Denial.QUOTA


CHECKS: tuple[Check, ...] = (
    _identity,
    _most_specific,
    _suite,
    _mode,
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
    _cpi_is_ours,
    _cpi_is_new,
    _quota,
)
"""In the order in which a reason is reported."""

FORESEEABLE: tuple[Callable[[Plan], Verdict], ...] = (
    _outer_addresses,
    _identity,
    _most_specific,
    _selectors_inside,
    _families_agree,
    _transport_selectors,
    _no_overlap,
    _not_reserved,
    _quota,
)
"""Those that need no keys: told before the first message of ours, and judged again when it comes to installing."""

_OF_THE_INSTALLATION = (_key_lengths, _spi_is_ours, _spi_addresses, _cpi_is_ours)
READMISSION: tuple[Check, ...] = tuple(check for check in CHECKS if check not in _OF_THE_INSTALLATION)
"""For a pair that was installed before: its keys are the data plane's, its SPI is allocated no more."""
