"""RUN_DIR/journal: what is installed, so that a daemon that was killed finds its own again (DESIGN section 2).

A log of records, none of which holds a key, each a frame of `RECORDS` behind its length. The frame's sequence number
names the record for as long as it is in force, `Ended` says that it no longer is. What stands in the file is thus what
the data plane may have: a record is written before the data plane is asked, and ended after. When most of the file is
history it is written anew beside itself and put in its place. The first record binds the file to this boot and network
namespace, which the kernel's SAs do not outlive either; so nothing is ever synced to a disk.

The file is root's. It is read as strictly as if it were not, and what follows a damaged record is not believed.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from monitor.dataplane import Cpis
from monitor.waiting import Clock
from privsep.algorithms import ChildSuite
from privsep.config.lanes import KernelOptions, Lane, Mark
from privsep.config.model import Action, Order
from privsep.iana import ProtocolId
from privsep.log import Level, Log
from privsep.schema.codec import (
    MAX_FRAME,
    U32,
    U63,
    CpiField,
    Length,
    Name,
    OptionalName,
    Range,
    SchemaError,
    SpiField,
    Table,
)
from privsep.schema.install import Selectors
from privsep.types import Cpi, Endpoint, Identity, Mode, Spi, TrafficSelector

NAME = "journal"
MAX_OCTETS = 128 << 20
"""Every pair and policy that the quotas admit, and as much history."""
SLACK = 64 << 10
"""Octets of history that are not worth writing the file anew."""
RETRY_SECONDS = 10.0
"""Between attempts to write a file that could not be written, as on a full disk."""

_LENGTH_OCTETS = 4
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NETWORK = Path("/proc/self/ns/net")
_OTHERS = 0o077

PolicyNumber = Annotated[int, Range(1, 65535)]


@dataclass(slots=True, frozen=True, kw_only=True)
class Opened:
    """Where and when this was true."""

    boot: Annotated[str, Length(1, 64)]
    network: U63
    """The inode of the network namespace."""

    @classmethod
    def here(cls) -> "Opened":
        """Now, and in our network namespace."""
        return cls(boot=_BOOT_ID.read_text().strip(), network=_NETWORK.stat().st_ino)


@dataclass(slots=True, frozen=True, kw_only=True)
class OptionsRecord:
    """`privsep.config.lanes.KernelOptions`, with 0 and "" where the configuration says nothing."""

    mark_in: U32
    mark_in_mask: U32
    mark_out: U32
    mark_out_mask: U32
    if_id_in: U32
    if_id_out: U32
    interface: OptionalName
    priority: U32
    reqid: U32
    life_bytes: U63
    life_packets: U63

    @classmethod
    def of(cls, options: KernelOptions) -> "OptionsRecord":
        """What is written of them."""
        lane = options.lane
        return cls(
            mark_in=lane.mark_in.value,
            mark_in_mask=lane.mark_in.mask,
            mark_out=lane.mark_out.value,
            mark_out_mask=lane.mark_out.mask,
            if_id_in=lane.if_id_in,
            if_id_out=lane.if_id_out,
            interface=options.interface or "",
            priority=options.priority or 0,
            reqid=options.reqid or 0,
            life_bytes=options.life_bytes or 0,
            life_packets=options.life_packets or 0,
        )

    def options(self) -> KernelOptions:
        """And back."""
        return KernelOptions(
            lane=Lane(
                mark_in=Mark(self.mark_in, self.mark_in_mask),
                mark_out=Mark(self.mark_out, self.mark_out_mask),
                if_id_in=self.if_id_in,
                if_id_out=self.if_id_out,
            ),
            interface=self.interface or None,
            priority=self.priority or None,
            reqid=self.reqid or None,
            life_bytes=self.life_bytes or None,
            life_packets=self.life_packets or None,
        )


@dataclass(slots=True, frozen=True, kw_only=True)
class PolicyRecord:
    """A policy of a child (`monitor.dataplane.Policy`)."""

    connection: Name
    child: Name
    number: PolicyNumber
    protocol: ProtocolId
    mode: Mode
    local: Endpoint
    remote: Endpoint
    local_ts: Selectors
    remote_ts: Selectors
    kernel: OptionsRecord
    ipcomp: bool


@dataclass(slots=True, frozen=True, kw_only=True)
class PairRecord:
    """A pair (`monitor.dataplane.Pair`) and what made it right to install."""

    connection: Name
    child: Name
    identity: Identity
    """Proved to keyd."""
    suite: ChildSuite
    """With the group of its Quick Mode."""
    policy: PolicyNumber
    kernel: OptionsRecord
    mode: Mode
    spi_in: SpiField
    spi_out: SpiField
    local: Endpoint
    remote: Endpoint
    encap: bool
    local_ts: TrafficSelector
    remote_ts: TrafficSelector
    since_ms: U63
    """By the monotonic clock, which all processes of one boot share."""
    lifetime: U32
    cpi_in: CpiField | None
    cpi_out: CpiField | None
    """Both where there is IPComp, else neither."""

    @property
    def cpis(self) -> Cpis | None:
        """Where there is IPComp."""
        if self.cpi_in is None or self.cpi_out is None:
            return None
        return Cpis(inbound=Cpi(self.cpi_in), outbound=Cpi(self.cpi_out))


@dataclass(slots=True, frozen=True, kw_only=True)
class ShuntRecord:
    """A policy without protection (`privsep.config.model.Shunt`)."""

    name: Name
    local_ts: Selectors
    remote_ts: Selectors
    action: Action
    order: Order


@dataclass(slots=True, frozen=True, kw_only=True)
class Ended:
    """The record of this sequence number is no longer in force."""


Record = PolicyRecord | PairRecord | ShuntRecord
R = TypeVar("R", PolicyRecord, PairRecord, ShuntRecord)

RECORDS: Table[Opened | Record | Ended] = Table({1: Opened, 2: Ended, 3: PolicyRecord, 4: PairRecord, 5: ShuntRecord})


class Journal:
    """The file and what is in force. Never fails: a disk that is full costs adoption, not traffic."""

    def __init__(self, path: Path | None, clock: Clock, log: Log) -> None:
        """Without a path nothing is written: a data plane whose SAs die with it leaves nothing to adopt."""
        self.problem: str | None = None
        """Why the file that was there is not believed, or not further than some record."""
        self._path = path
        self._clock = clock
        self._log = log
        self._live: dict[Record, int] = {}
        self._pairs: dict[int, PairRecord] = {}
        """Those in force, by inbound SPI."""
        self._last = 0
        self._octets = MAX_OCTETS
        """Of the file; what is not there, or not right, is written anew with the first record."""
        self._compact = 0
        """Octets of the file when it was written anew."""
        self._failed = False
        if path is not None:
            self._here = Opened.here()
            self._load(path)

    def of(self, kind: type[R]) -> tuple[R, ...]:
        """What is in force, oldest first."""
        return tuple(record for record in self._live if isinstance(record, kind))

    def add(self, record: Record) -> None:
        """In force from now on; nothing if it is already."""
        if isinstance(record, PairRecord):
            self._pairs[record.spi_in] = record
        if record not in self._live:
            self._last += 1
            self._live[record] = self._last
            self._append(_framed(record, self._last))

    def end(self, record: Record) -> None:
        """No longer in force; nothing if it is not."""
        number = self._live.pop(record, None)
        if number is not None:
            self._append(_framed(Ended(), number))

    def end_pair(self, spi_in: Spi) -> None:
        """The same for the pair of that SPI."""
        record = self._pairs.pop(spi_in, None)
        if record is not None:
            self.end(record)

    def pair(self, spi_in: Spi) -> PairRecord:
        """What was said last of the pair of that SPI, which is in force."""
        return self._pairs[spi_in]

    def remove(self) -> None:
        """A clean end leaves nothing to adopt."""
        path, self._path = self._path, None
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink()

    # writing

    def _append(self, frame: bytes) -> None:
        if self._path is None or self._failed:
            return
        if self._octets + len(frame) > 2 * self._compact + SLACK:
            self._write_anew()
            return
        try:
            _write(self._path, os.O_APPEND, frame)
        except OSError as error:
            self._fail(error)
        else:
            self._octets += len(frame)

    def _write_anew(self) -> None:
        """Beside the file, then in its place; the record that caused it is among those in force, or it is not."""
        if self._path is None:
            return
        beside = self._path.with_name(f"{self._path.name}.new")
        data = b"".join((_framed(self._here, 0), *(_framed(record, number) for record, number in self._live.items())))
        try:
            with contextlib.suppress(FileNotFoundError):
                beside.unlink()
            _write(beside, os.O_CREAT | os.O_EXCL, data)
            beside.rename(self._path)
        except OSError as error:
            self._fail(error)
            return
        self._octets = self._compact = len(data)
        if self._failed:
            self._failed = False
            self._log(Level.NOTICE, "journal-written-again")

    def _fail(self, error: OSError) -> None:
        """What is half written is written anew, when that is possible."""
        if not self._failed:
            self._failed = True
            self._log(Level.WARNING, "journal-unwritten", error=error.strerror, then="a killed daemon adopts less")
        self._clock.after(RETRY_SECONDS, self._write_anew)

    # reading

    def _load(self, path: Path) -> None:
        try:
            data = _read(path)
            self._believe(data)
        except (OSError, ValueError, SchemaError) as error:
            self.problem = error.strerror if isinstance(error, OSError) else str(error)
        self._pairs = {record.spi_in: record for record in self.of(PairRecord)}
        if self.problem is None and data:
            self._octets = self._compact = len(data)

    def _believe(self, data: bytes) -> None:
        """Up to the first record that is not right, at which this raises."""
        numbered: dict[int, Record] = {}
        for message, number in _messages(data, self._here):
            if isinstance(message, Ended):
                if number not in numbered:
                    raise ValueError("a record ends that is not in force")
                del self._live[numbered.pop(number)]
            elif number <= self._last or message in self._live:
                raise ValueError("a record comes twice, or out of order")
            else:
                self._last = number
                self._live[message] = number
                numbered[number] = message


def _framed(message: Opened | Record | Ended, number: int) -> bytes:
    frame = RECORDS.encode(message, number)
    return len(frame).to_bytes(_LENGTH_OCTETS) + frame


def _messages(data: bytes, here: Opened) -> Iterator[tuple[Record | Ended, int]]:
    """All records after the first, which must be that of this boot and network namespace."""
    at = 0
    while at < len(data):
        start = at + _LENGTH_OCTETS
        length = int.from_bytes(data[at:start])
        if length > MAX_FRAME or start + length > len(data):
            raise ValueError("a record is cut off")
        message, number = RECORDS.decode(data[start : start + length])
        if at == 0:
            if message != here:
                raise ValueError("it is of another boot or network namespace")
        elif isinstance(message, Opened):
            raise ValueError("it begins twice")
        else:
            yield message, number
        at = start + length


def _write(path: Path, flags: int, data: bytes) -> None:
    """All of it, or OSError and perhaps a part."""
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def _read(path: Path) -> bytes:
    """Empty if there is none; ValueError if it is not a file of ours alone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & _OTHERS:
            raise ValueError("it is not a file of root's alone")
        data = file.read(MAX_OCTETS + 1)
    if len(data) > MAX_OCTETS:
        raise ValueError("it is too long")
    return data
