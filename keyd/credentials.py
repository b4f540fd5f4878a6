"""secrets.toml: pre-shared keys, and the names of private keys. Only keyd reads it.

A connection's own entry wins; otherwise the entry whose ids fit best, where the address of a side counts as an identity
of it. In Main Mode the responder knows only addresses when it needs the PSK (RFC 2409 section 5.4), so it is the
connection that the addresses select whose PSK is used.
"""

import base64
import binascii
import itertools
import math
import string
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Self

from keyd.samples import is_known
from keyd.secret import Secret
from privsep.config import access
from privsep.config.identities import parse_identity
from privsep.config.model import Connection, Gateway, Remote
from privsep.config.names import RemoteName
from privsep.config.problems import ConfigError, Problem, quote
from privsep.config.reader import Reader, Section
from privsep.config.toml_lines import MAX_SIZE, Document
from privsep.iana import IdType
from privsep.types import Address, Auth, Identity

MAX_PSKS = 16384
MAX_PRIVATE_KEYS = 256
MAX_IDS = 16
MAX_SECRET_OCTETS = 1024
MAX_FILE_NAME = 1024
MIN_STRENGTH = 128
"""Bits. A worker that was taken over can pose as a peer to its own keyd, get a HASH and search for the PSK at leisure,
as can whoever answers an initiator in a peer's place; 128 bits end that search. A warning and no refusal: whether a
passphrase agreed with somebody else's gateway can be changed is the operator's to judge."""


class Use(Enum):
    """`private_key.use`: one key, one use."""

    SIGNATURE = "signature"
    ENCRYPTION = "encryption"


@dataclass(slots=True, frozen=True, kw_only=True, repr=False)
class Psk:
    """One `[[psk]]`: `ids`, or the `connection` it is for."""

    ids: frozenset[Identity]
    connection: str | None
    secret: Secret


class Credentials:
    """All secrets of one epoch. `warnings` are lines for the operator."""

    def __init__(self, psks: tuple[Psk, ...]) -> None:
        self._named = {psk.connection: psk for psk in psks if psk.connection is not None}
        self._by_id: defaultdict[Identity, list[Psk]] = defaultdict(list)
        """Entries that have this identity, in the order of the file."""
        for psk in psks:
            for identity in psk.ids:
                self._by_id[identity].append(psk)
        self._alone = {identity: psk for psk in psks if len(psk.ids) == 1 for identity in psk.ids}
        self._pairs: dict[tuple[Identity, Identity], Psk | None] = {}
        """What `_of_both` found."""
        self._found: dict[str, Secret | None] = {}
        self.warnings: tuple[str, ...] = ()
        self.missing: tuple[Problem, ...] = ()
        """Connections that can never be negotiated."""

    @classmethod
    def parse(cls, text: str, filename: str, gateway: Gateway) -> Self:
        """ConfigError with every problem of the file."""
        psks, warnings = _Loading(text, filename, gateway).run()
        loaded = cls(psks)
        loaded.warnings = warnings
        loaded.missing = tuple(
            Problem(1, f'no secret fits connection "{each.name}"; a [[psk]] with connection = "{each.name}" would')
            for each in gateway.connections
            if each.auth is Auth.PSK and not loaded.psk_for(each)
        )
        return loaded

    def psk_for(self, connection: Connection) -> Secret | None:
        """The connection's pre-shared key, or None."""
        if connection.name not in self._found:
            self._found[connection.name] = self._search(connection)
        return self._found[connection.name]

    def _search(self, connection: Connection) -> Secret | None:
        """Identities go before addresses, and the peer's before ours.

        An entry of several ids needs one of each side; a single id may be either side's.
        """
        named = self._named.get(connection.name)
        if named is not None:
            return named.secret
        remotes = _identities(connection.remote_id, connection.remote)
        locals_ = _identities(connection.local_id, connection.local)
        for remote, local in itertools.product((*remotes, None), (*locals_, None)):
            if remote is not None and local is not None:
                found = self._of_both(remote, local)
            else:
                one = remote or local
                found = None if one is None else self._alone.get(one)
            if found is not None:
                return found.secret
        return None

    def _of_both(self, remote: Identity, local: Identity) -> Psk | None:
        """The first entry that has both. The shorter of two lists is searched, once: many connections share an id."""
        pair = remote, local
        if pair not in self._pairs:
            fewer, other = sorted(pair, key=lambda identity: len(self._by_id.get(identity, ())))
            self._pairs[pair] = next((psk for psk in self._by_id.get(fewer, ()) if other in psk.ids), None)
        return self._pairs[pair]


def _identities(identity: Identity | None, address: Remote | None) -> list[Identity]:
    """What stands for a side, the closest first. A name stands for itself, whatever its address is today."""
    found = [] if identity is None else [identity]
    if isinstance(address, RemoteName):
        return [*found, Identity(IdType.FQDN, address.name.encode())]
    return [*found, Identity.of_address(address)] if isinstance(address, Address) else found


def load(path: str, gateway: Gateway) -> Credentials:
    """Read the file; ConfigError for whatever is wrong with it, who else could read or replace it included."""
    try:
        text = access.read(path, MAX_SIZE, private=True).decode()
    except UnicodeDecodeError:
        raise ConfigError(path, [Problem(1, "not UTF-8; TOML files are UTF-8")]) from None
    loaded = Credentials.parse(text, path, gateway)
    if loaded.missing:
        raise ConfigError(path, list(loaded.missing))
    return loaded


class _Loading:
    """One reading of one file. No message repeats a value of a `secret` or a `passphrase`."""

    def __init__(self, text: str, filename: str, gateway: Gateway) -> None:
        self._filename = filename
        self._reader = Reader(Document.parse(text, filename))
        self._gateway = gateway
        self._warnings: list[str] = []
        self._claimed: set[object] = set()

    def run(self) -> tuple[tuple[Psk, ...], tuple[str, ...]]:
        root = self._reader.root()
        psks = tuple(filter(None, map(self._psk, root.tables("psk", limit=MAX_PSKS))))
        for section in root.tables("private_key", limit=MAX_PRIVATE_KEYS):
            self._private_key(section)
        root.close()
        self._reader.finish()
        return psks, tuple(self._warnings)

    def _psk(self, section: Section) -> Psk | None:
        ids = section.many("ids", parse_identity, limit=MAX_IDS)
        connection = section.optional("connection", self._connection, None)
        secret = section.required("secret", parse_secret, 'secret = "hex:..."')
        section.close()
        self._one_of(section, "ids", "connection")
        claim = connection or frozenset(ids or ())
        if claim in self._claimed:
            section.problem("ids" if ids else "connection", "a second secret for the same; one of them would be right")
        if claim:
            self._claimed.add(claim)
        if secret is None or not claim:
            return None
        if is_known(secret):
            section.problem(
                "secret",
                "secret: a sample's, which everybody knows; one of your own would be right: privsep-ike genpsk",
            )
            return None
        if (bits := strength(secret)) < MIN_STRENGTH:
            self._warn(section, "secret", f"the secret has at most {bits} bits; 128 would be right: privsep-ike genpsk")
        return Psk(ids=frozenset(ids or ()), connection=connection, secret=secret)

    def _private_key(self, section: Section) -> None:
        section.optional("connection", self._connection, None)
        section.optional("certificate", _file_name, None)
        section.required("file", _file_name, 'file = "gw1.key"')
        section.optional("passphrase", parse_secret, None)
        section.choice("use", Use, Use.SIGNATURE)
        section.close()
        self._one_of(section, "connection", "certificate")
        self._warn(section, "file", "no authentication method that uses a private key is offered yet")

    def _one_of(self, section: Section, one: str, other: str) -> None:
        has_one, has_other = section.has(one), section.has(other)
        if has_one and has_other:
            section.problem(other, f"both {quote(one)} and {quote(other)}; one of them would be right")
        elif not has_one and not has_other:
            section.problem(one, f"{quote(one)} or {quote(other)} is missing; it says whose this is")

    def _connection(self, name: str) -> str | None:
        if self._gateway.connection(name) is None:
            raise ValueError(f"{quote(name)} is no connection of the configuration; the name in [connection.NAME]")
        return name

    def _warn(self, section: Section, key: str, text: str) -> None:
        self._warnings.append(f"{self._filename}:{self._reader.line_of((*section.path, key))}: {text}")


def parse_secret(text: str) -> Secret:
    """The octets of a secret; ValueError never quotes it."""
    for prefix, decode in _PREFIXES.items():
        if text.startswith(prefix):
            octets = decode(text.removeprefix(prefix))
            break
    else:
        octets = text.encode()
    if not 1 <= len(octets) <= MAX_SECRET_OCTETS:
        raise ValueError(f"{len(octets)} octets; 1 to {MAX_SECRET_OCTETS} would be right")
    return Secret(octets)


def _from_hex(text: str) -> bytes:
    try:
        return binascii.unhexlify(text)
    except ValueError:
        raise ValueError('no hexadecimal after "hex:"; an even number of digits 0-9 a-f would be right') from None


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise ValueError('no base64 after "base64:"; what "openssl rand -base64 24" prints would be right') from None


_PREFIXES: dict[str, Callable[[str], bytes]] = {"hex:": _from_hex, "base64:": _from_base64}


def _file_name(text: str) -> str:
    if not 1 <= len(text) <= MAX_FILE_NAME or not text.isprintable():
        raise ValueError(f"no file name; 1 to {MAX_FILE_NAME} printable characters would be right")
    return text


def strength(secret: Secret) -> int:
    """An upper bound of the secret's bits, by its length and the characters it draws from; words have far fewer."""
    alphabets = [string.ascii_lowercase, string.ascii_uppercase, string.digits, string.punctuation + " "]
    used = [alphabet for alphabet in map(str.encode, alphabets) if any(octet in alphabet for octet in secret)]
    known = set(b"".join(used))
    alphabet = len(known) if known.issuperset(secret) else 256
    if len(set(secret)) * 2 <= min(len(secret), alphabet):
        # far fewer different octets than chance would give
        alphabet = len(set(secret))
    return int(len(secret) * math.log2(alphabet))
