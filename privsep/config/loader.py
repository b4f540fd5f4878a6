"""gateway.toml to `Gateway`: strict, and telling every problem at once. docs/configuration.md explains each key."""

import gc
import ipaddress
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import lru_cache
from typing import TypeVar

from privsep.algorithms import ChildSuite, IkeSuite
from privsep.config import checks, kernel, shunts
from privsep.config.durations import between
from privsep.config.identities import parse_identity
from privsep.config.model import (
    DEFAULT_REPLAY_WINDOW,
    RESOLVER_UID,
    Child,
    Connection,
    DataplaneChoice,
    Egress,
    Encap,
    Gateway,
    Layer,
    OnStop,
    Remote,
    RemoteAny,
    Start,
    Users,
)
from privsep.config.names import MAX_UID, Names, RemoteName
from privsep.config.problems import quote
from privsep.config.reader import Reader, Section, one_of
from privsep.config.selectors import parse_network, parse_selector
from privsep.config.toml_lines import Document
from privsep.iana import IdType, ProtocolId
from privsep.log import Level
from privsep.types import Address, Auth, Identity, Mode, TrafficSelector

MAX_CONNECTIONS = 10_000
MAX_CHILDREN = 64
"""Of a connection, as `privsep.schema.install.IkeStatus` can tell."""
MAX_SELECTORS = 16
"""Of a side, as `privsep.schema.install.Selectors`."""
MAX_PROPOSALS = 32
MAX_LISTEN = 64

DEFAULT_IKE = tuple(
    f"{cipher}-sha256-{group}"
    for cipher in ("aes256", "aes128")
    for group in ("curve25519", "ecp256", "modp3072", "modp2048")
)
"""Others' defaults name few of them, and not the same (docs/configuration.md)."""
DEFAULT_ESP = (
    *(
        cipher + group
        for group in ("-curve25519", "-modp2048", "")
        for cipher in ("aes256gcm16", "aes128gcm16", "aes256-sha256", "aes128-sha256")
    ),
    "aes128-sha1-modp2048",
)
"""With perfect forward secrecy where the peer has it, without where it has none. The last is all that libreswan offers
by default in IKEv1; HMAC-SHA-1 does not suffer from what is known of SHA-1 (RFC 8221 section 6: MUST-)."""
DEFAULT_IKE_LIFETIME = 8 * 3600
DEFAULT_CHILD_LIFETIME = 3600
DEFAULT_USERS = {
    "worker": ("_privsep-worker", 1_900_000_001),
    "keyd": ("_privsep-keyd", 1_900_000_002),
    "userspace": ("_privsep-esp", 1_900_000_003),
    "resolver": ("_privsep-names", RESOLVER_UID),
}
"""The users that the package creates; where they do not exist, numbers that no user, container or service has."""

_LATER_KEYS = ("certificate", "ca", "remote_certificate", "dpd")
_ALIASES = {
    "aes": "aes128",
    "sha": "sha1",
    "sha2_256": "sha256",
    "sha2_384": "sha384",
    "sha2_512": "sha512",
    "camellia": "camellia128",
} | {
    f"aes{bits}{mode}{theirs}": f"aes{bits}{mode}{icv}"
    for bits in (128, 192, 256)
    for mode in ("ccm", "gcm")
    for theirs, icv in (("64", 8), ("96", 12), ("128", 16), ("", 16))
}
"""strongSwan's other names: an ICV in bits, or none for the longest."""
_LIFETIME = between("10s", "30d")
_REPLAY_WINDOW = (32, 4096)
"""RFC 4303 section 3.4.3 asks for 32 at least; the kernel has 4096 at most."""
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?", re.ASCII)
_NUMERIC = re.compile(r"[0-9./]+|.*[:/%].*", re.ASCII)


E = TypeVar("E", bound=Enum)
S = TypeVar("S", IkeSuite, ChildSuite)


class _Version(Enum):
    IKEV1 = "ikev1"


class _Exchange(Enum):
    MAIN = "main"


def load(text: str, filename: str, names: Names | None = None) -> Gateway:
    """The configuration; ConfigError with all its problems. `names` answers for users (default: ask)."""
    with _no_garbage():
        reader = Reader(Document.parse(text, filename))
        gateway = _Loader(reader, names or Names()).gateway()
        reader.finish()
    return gateway


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Hardly anything that loading makes is garbage: looking for it takes a third of the time of 10,000 connections."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class _Loader:
    """One run over one document. What has a problem is left away; `Reader.finish` then refuses the whole."""

    def __init__(self, reader: Reader, names: Names) -> None:
        self._reader = reader
        self._names = names
        self._listen: tuple[Address, ...] = ()

    def gateway(self) -> Gateway:
        root = self._reader.root()
        section = root.table("gateway") or Section(self._reader, ("gateway",), {})
        if section.has("listen"):
            self._listen = section.many("listen", parse_address, limit=MAX_LISTEN) or ()
        dataplane = section.choice("dataplane", DataplaneChoice, DataplaneChoice.AUTO)
        egress = section.choice("egress", Egress, Egress.OPEN)
        on_stop = section.choice("on_stop", OnStop, OnStop.BLOCK)
        level = section.choice("log", Level, Level.INFO)
        absent: tuple[Layer, ...] = ()
        if section.has("absent"):
            absent = section.many("absent", one_of(Layer), limit=len(Layer)) or ()
        users = self._users(section)
        section.close()
        connections = [self._connection(name, each) for name, each in root.named("connection", limit=MAX_CONNECTIONS)]
        found = [shunts.read(name, each) for name, each in root.named("shunt", limit=shunts.MAX_SHUNTS)]
        root.close()
        if root.lacks("connection", "shunt") and self._reader.sound:
            self._reader.problem((), "nothing is configured; add a [connection.NAME] with a child, or a [shunt.NAME]")
        gateway = Gateway(
            listen=self._listen,
            dataplane=dataplane,
            users=users,
            absent=frozenset(absent),
            connections=tuple(connection for connection in connections if connection is not None),
            egress=egress,
            on_stop=on_stop,
            log=level,
            shunts=tuple(shunt for shunt in found if shunt is not None),
        )
        checks.check(gateway, self._reader)
        shunts.check(gateway, self._reader)
        return gateway

    def _users(self, gateway: Section) -> Users:
        """`gateway.users`: different ones, none of them root."""
        section = gateway.table("users") or Section(self._reader, (*gateway.path, "users"), {})
        found: dict[str, tuple[int, int]] = {}
        for role in DEFAULT_USERS:
            ids = self._user(section, role)
            if 0 in ids:
                section.problem(role, f"{role} would be root or in its group; an unprivileged user would be right")
            for other, taken in found.items():
                if ids[0] == taken[0]:
                    section.problem(role, f"{role} and {other} are the same user; one for each would be right")
            found[role] = ids
        section.close()
        return Users(**found)

    def _user(self, section: Section, role: str) -> tuple[int, int]:
        name, number = DEFAULT_USERS[role]
        fallback = (number, number)
        if not section.has(role):
            return self._names.user(name) or fallback
        value = section.text_or_number(role, low=0, high=MAX_UID)
        if value is None:
            return fallback
        user = int(value) if isinstance(value, str) and value.isdecimal() and len(value) <= 10 else value
        ids = self._names.user(user) if user != "" else None
        if ids is None or ids[0] > MAX_UID:
            section.problem(role, f"user {quote(str(value))} does not exist; create it, or name a number")
        return ids or fallback

    def _connection(self, name: str, section: Section) -> Connection | None:
        supported(section, "version", _Version, later=("ikev2",))
        supported(section, "mode", _Exchange, later=("aggressive", "base"))
        later = ("signature", "rsa-encryption", "revised-rsa-encryption")
        auth = supported(section, "auth", Auth, later=later)
        for key in _LATER_KEYS:
            if section.has(key):
                section.problem(key, f"{quote(key)} is not supported by this release; leave it away")
        local = section.optional("local", parse_address, None)
        remote = section.required("remote", lambda text: self._remote(text, local), 'remote = "192.0.2.2"')
        local_id = self._local_id(section, local)
        remote_id = self._remote_id(section, remote)
        suites = _proposals(section, "ike", DEFAULT_IKE, IkeSuite.parse)
        lifetime = section.optional("lifetime", _LIFETIME, DEFAULT_IKE_LIFETIME)
        encap = section.choice("encap", Encap, Encap.AUTO)
        level = section.choice("log", Level, Level.INFO) if section.has("log") else None
        children = [_child(each, table, local, remote) for each, table in section.named("child", limit=MAX_CHILDREN)]
        if not children:
            section.problem("child", f"the connection has no child; add a table [connection.{name}.child.lan]")
        section.close()
        if local is not None and self._listen and local not in self._listen:
            section.problem("local", f"{local} is not among gateway.listen; {self._listen[0]} would be right")
        if remote is not None and remote in (local, *self._listen):
            section.problem("remote", f"{remote} is our own address; the peer's would be right")
        if remote is None or local_id is None:
            return None
        return Connection(
            name=name,
            local=local,
            remote=remote,
            local_id=local_id,
            remote_id=remote_id,
            auth=auth,
            suites=suites,
            lifetime=lifetime,
            encap=encap,
            children=tuple(child for child in children if child is not None),
            log=level,
        )

    def _remote(self, text: str, local: Address | None) -> Remote:
        """An address, a network, "any", or a name, whose address is looked for while the daemon runs."""
        if text == "any":
            return RemoteAny()
        if "/" not in text and _HOST.fullmatch(text) and not _NUMERIC.fullmatch(text):
            return RemoteName(text, None if local is None else local.version)
        remote = parse_network(text) if "/" in text else parse_address(text)
        if local is not None and remote.version != local.version:
            raise ValueError(f"{text} is IPv{remote.version} but local is {local}; one IP version would be right")
        return remote

    def _local_id(self, section: Section, local: Address | None) -> Identity | None:
        if not section.has("local_id"):
            if local is not None:
                return Identity.of_address(local)
            if not section.has("local"):
                section.problem("local_id", 'without "local", "local_id" must say who we are; add local_id = "..."')
            return None
        return section.optional("local_id", parse_identity, None)

    def _remote_id(self, section: Section, remote: Remote | None) -> Identity | None:
        """Accepting everybody whom the secret proves is possible, but has to be said."""
        if not section.has("remote_id"):
            if isinstance(remote, Address):
                return Identity.of_address(remote)
            if isinstance(remote, RemoteName):
                return Identity(IdType.FQDN, remote.name.encode())
            if remote is not None:
                section.problem("remote_id", '"remote_id" must say who the peer is; add remote_id = "..." or "any"')
            return None
        return section.optional("remote_id", lambda text: None if text == "any" else parse_identity(text), None)


def _child(name: str, section: Section, local: Address | None, remote: Remote | None) -> Child | None:
    mode = section.choice("mode", Mode, Mode.TUNNEL)
    suites = _child_suites(section)
    lifetime = section.optional("lifetime", _LIFETIME, DEFAULT_CHILD_LIFETIME)
    low, high = _REPLAY_WINDOW
    replay_window = section.number("replay_window", DEFAULT_REPLAY_WINDOW, low=low, high=high)
    ipcomp = section.flag("ipcomp", default=False)
    start = section.choice("start", Start, Start.WAIT)
    options = kernel.read(section, remote)
    local_ts = _selectors(section, "local_ts", "10.1.0.0/16", mode, local)
    remote_ts = _selectors(section, "remote_ts", "10.2.0.0/16", mode, remote)
    section.close()
    if start is not Start.WAIT and isinstance(remote, RemoteAny | ipaddress.IPv4Network | ipaddress.IPv6Network):
        section.problem("start", f'start = "{start.value}" needs one remote address; start = "wait" would be right')
    if mode is Mode.TRANSPORT and isinstance(remote, RemoteName):
        section.problem("mode", "transport mode is between two addresses, and a name has none for good; use tunnel")
    if local_ts is None or remote_ts is None:
        return None
    checks.check_selectors(section, mode, local_ts, remote_ts)
    if not suites:
        return None
    return Child(
        name=name,
        local_ts=local_ts,
        remote_ts=remote_ts,
        mode=mode,
        suites=suites,
        lifetime=lifetime,
        start=start,
        replay_window=replay_window,
        ipcomp=ipcomp,
        kernel=options,
    )


def _child_suites(section: Section) -> tuple[ChildSuite, ...]:
    """`esp` or `ah`: one protocol, whose proposals go into one Quick Mode (RFC 2409 section 5.5)."""
    has_esp, has_ah = section.has("esp"), section.has("ah")
    if has_esp and has_ah:
        section.problem("ah", "a child has esp or ah, not both; esp alone protects and encrypts")
    key = "ah" if has_ah else "esp"
    return _proposals(section, key, DEFAULT_ESP, _esp_suite if key == "esp" else _ah_suite)


def _esp_suite(text: str) -> ChildSuite:
    return _negotiable(ChildSuite.parse(text))


def _ah_suite(text: str) -> ChildSuite:
    return _negotiable(ChildSuite.parse(text, ProtocolId.AH))


def _negotiable(suite: ChildSuite) -> ChildSuite:
    if suite.without_number is not None:
        raise ValueError(
            f"{suite.without_number} cannot be negotiated in IKEv1, whose registry has no number for it and is closed "
            f"(RFC 9395); {'aes256gcm16' if suite.protocol is ProtocolId.ESP else 'sha256'} would be right"
        )
    return suite


def _selectors(
    section: Section, key: str, example: str, mode: Mode, outer: Remote | None
) -> tuple[TrafficSelector, ...] | None:
    """In transport mode the selectors are the outer addresses themselves (RFC 4301 section 4.1): the default."""
    host = ipaddress.ip_network(outer) if isinstance(outer, Address) else None
    if not section.has(key):
        if mode is Mode.TRANSPORT and host is not None:
            return (TrafficSelector(host),)
        section.problem(key, f'{quote(key)} is missing; add {key} = ["{example}"]')
        return None
    found = section.many(key, parse_selector, limit=MAX_SELECTORS)
    if mode is Mode.TRANSPORT and host is not None:
        for selector in found or ():
            if selector.network != host:
                section.problem(key, f"{selector.network} in transport mode; the outer address {outer} would be right")
    return found


def parse_address(text: str) -> Address:
    """One unicast address; ValueError says what would be right."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f'{quote(text)} is no address; "192.0.2.1" or "2001:db8::1" would be right') from None
    if address.version == 6 and (address.scope_id is not None or address.ipv4_mapped is not None):
        raise ValueError(f"{quote(text)} has a zone or hides an IPv4 address; a plain address would be right")
    if address.is_unspecified or address.is_multicast or str(address) == "255.255.255.255":
        raise ValueError(f"{quote(text)} is not the address of one host; a unicast address would be right")
    return address


def supported(section: Section, key: str, kind: type[E], *, later: tuple[str, ...]) -> E:
    """A choice whose further values are known but not yet possible; the default is the enum's first."""

    def parse(text: str) -> E:
        if text in later:
            right = " or ".join(quote(str(each.value)) for each in kind)
            raise ValueError(f"{quote(text)} is not supported by this release; {right} would be right")
        return one_of(kind, *later)(text)

    return section.optional(key, parse, next(iter(kind)))


def _proposals(section: Section, key: str, default: tuple[str, ...], parse: Callable[[str], S]) -> tuple[S, ...]:
    if not section.has(key):
        return _parsed(default, parse)
    return section.many(key, lambda text: parse(_canonical(text)), limit=MAX_PROPOSALS) or ()


@lru_cache
def _parsed(proposals: tuple[str, ...], parse: Callable[[str], S]) -> tuple[S, ...]:
    return tuple(map(parse, proposals))


def _canonical(proposal: str) -> str:
    """One name where strongSwan knows several."""
    return "-".join(_ALIASES.get(part, part) for part in proposal.lower().split("-"))
