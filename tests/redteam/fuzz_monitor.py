"""Fuzzing the monitor: a captured worker, a keyd that the attacker may even have fooled, a data plane that keeps books.

`books.Books` judges whatever is installed.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, get_args
from unittest.mock import patch

from books import (
    ADDRESSES,
    ASKED_TS,
    GATEWAY,
    HERE,
    HERE6,
    NAMES,
    NUMBERS,
    QUOTAS,
    SUITES,
    Books,
    Clock,
    Minted,
    closeness,
    identity_named,
    named,
)
from fuzz_base import EPOCH_STEPS, Fuzzer

from monitor import epoch, numbers, sadb
from monitor.service import Service
from monitor.waiting import run
from privsep.config.model import Connection, Encap
from privsep.errors import PrivsepError, Violation
from privsep.schema import install as ops
from privsep.schema.codec import Table
from privsep.schema.keymat import NotRedeemable, Redeemed, RedeemedOutbound, RedeemInbound, Redemption
from privsep.tasks import Future
from privsep.types import Address, Endpoint, Mode, Role, Spi, TrafficSelector

MAX_OPEN, MAX_PENDING = 12, 6
CPIS = range(0x500, 0x506)
"""Of peers; few, so that they meet."""
HALF_A_KEY = 12
SAYABLE: tuple[type, ...] = get_args(ops.WorkerRequest | ops.WorkerReply)
"""All that a worker has words for."""


class MonitorFuzzer(Fuzzer):
    """`from_worker` of the monitor's service, with events from all its other sides."""

    name = "monitor"

    def __init__(self, seed: int, table: Table[Any] = ops.FROM_WORKER) -> None:
        super().__init__(
            seed,
            table,
            connection=[each.name for each in GATEWAY.connections],
            child=("lan", "lan", "dmz", "both", "host", "web"),
            local=[Endpoint(address, port) for address in (HERE, HERE, HERE6) for port in (500, 4500)],
            remote=[Endpoint(address, port) for address in ADDRESSES for port in (500, 4500, 1025)],
            spi_in=range(0x1000, 0x1040),
            order=range(1, 4),
        )
        self._new_monitor()

    def limits(self) -> ExitStack:
        stack = ExitStack()
        for name, quota in QUOTAS.items():
            stack.enter_context(patch.object(sadb, name, quota))
        for name, quota in NUMBERS.items():
            stack.enter_context(patch.object(numbers, name, quota))
        stack.enter_context(patch.object(epoch, "MAX_OPEN", MAX_OPEN))
        stack.enter_context(patch.object(epoch, "MAX_PENDING", MAX_PENDING))
        return stack

    def _new_monitor(self) -> None:
        self.clock = Clock()
        self.books = Books(self)
        self.asked: Any = None
        """What the worker asks at the moment."""
        self.redeeming: Minted | None = None
        """What keyd handed over in this step."""
        self.keymats: dict[bytes, list[Redeemed | RedeemedOutbound]] = {}
        """Halves that were not handed over yet."""
        self.minted: dict[bytes, Minted] = {}
        """By the keys of what receives."""
        self.sending: dict[bytes, Minted] = {}
        """By the keys of what sends."""
        self.by_handle: dict[bytes, Minted] = {}
        self.waiting_keyd: list[Callable[[], None]] = []
        self.open: dict[int, type] = {}
        self.pending: dict[int, Any] = {}
        self.sequence = 0
        self.started = self.steps
        self.service = Service(GATEWAY, self.books, self._redeem, self._to_worker, self.clock, self._log)
        self.service.start()
        self.service.epoch_began()

    def _log(self, level: Any, code: str, **fields: object) -> None:
        text = f"{code} {fields}"
        self.check(not any(key.hex() in text or repr(key)[2:-1] in text for key in self._keys()), "the log holds a key")

    # the other sides

    def _redeem(self, request: Redemption) -> Future[Any]:
        future: Future[Any] = Future()
        halves, asked = self.keymats.get(request.keymat, []), self.asked
        # the inbound half comes first, and the other when the peer has confirmed
        wanted = Redeemed if isinstance(request, RedeemInbound) else RedeemedOutbound
        half = halves.pop(0) if halves and isinstance(halves[0], wanted) and self.random.random() < 0.9 else None

        def resolve() -> None:
            if isinstance(half, Redeemed):
                minted = self.by_handle[request.keymat] = Minted(half, asked)
                self.redeeming = self.minted[half.encryption_in + half.integrity_in] = minted
            elif half is not None:
                self.redeeming = self.by_handle[request.keymat]
                self.sending[half.encryption_out + half.integrity_out] = self.redeeming
            future.set_result(half or NotRedeemable())

        if self.random.random() < 0.3:
            self.waiting_keyd.append(resolve)
        else:
            resolve()
        return future

    def _to_worker(self, message: Any, sequence: int) -> None:
        frame = ops.FROM_MONITOR.encode(message, sequence)
        self.check(ops.FROM_MONITOR.decode(frame) == (message, sequence), "an answer is not of the table")
        self.check(not any(key[:HALF_A_KEY] in frame for key in self._keys()), "an answer holds a key")
        match message:
            case ops.Up() | ops.Down() | ops.Describe() | ops.Stop():
                self.check(sequence not in self.pending, "a sequence number is used twice")
                self.pending[sequence] = message
                self.check(len(self.pending) <= MAX_PENDING, "more requests than their quota")
            case ops.Allocated() | ops.Installed() | ops.Removed() | ops.Denied():
                kind = self.open.pop(sequence, None)
                self.check(kind is not None, "an answer to nothing")
                right = {
                    ops.AllocateSpi: ops.Allocated,
                    ops.InstallInbound: ops.Installed,
                    ops.InstallOutbound: ops.Installed,
                    ops.Remove: ops.Removed,
                }
                self.check(type(message) in (right[kind], ops.Denied), "an answer of another kind")
                answer = message.why.name if isinstance(message, ops.Denied) else type(message).__name__
                self.saw(kind.__name__, answer)
            case _:
                self.check(sequence == 0, "news with a sequence number")
                self.saw(type(message).__name__, "told")

    def _keys(self) -> list[bytes]:
        found = [half for halves in self.keymats.values() for half in halves]
        found += [each.redeemed for each in list(self.minted.values())[-20:]]
        names = ("encryption_in", "encryption_out", "integrity_in", "integrity_out")
        keys = [getattr(half, name, b"") for half in found for name in names]
        return [key for key in keys if len(key) >= HALF_A_KEY]

    # what to do next

    def step(self) -> None:
        choices: tuple[tuple[Callable[[], None], int], ...] = (
            (self._allocate, 20),
            (self._install, 40),
            (self._roam, 6),
            (self._confirm, 6),
            (self._remove, 8),
            (self._any, 6),
            (self._frame, 8),
            (self._order, 4),
            (self._answer, 6),
            (self._resolve, 14),
            (self._event, 4),
            (self._pass_time, 3),
        )
        self.redeeming = None
        if self.steps - self.started > EPOCH_STEPS:
            self._new_monitor()
        elif self.random.random() < 0.002:
            self._new_worker()
        else:
            self.random.choices([each for each, _ in choices], [weight for _, weight in choices])[0]()
        self._count()

    def _new_worker(self) -> None:
        """The old one has ended, for whatever reason."""
        self.open.clear()
        self.pending.clear()
        self.service.epoch_ended()
        self.check(not self.service.sadb.allocations(), "SPIs outlive their worker")
        self.service.epoch_began()

    def _ask(self, message: Any, sequence: int | None = None) -> None:
        message = self.through_the_channel("worker", message)
        if sequence is None:
            self.sequence += 1
            sequence = self.sequence
        asks = isinstance(message, ops.AllocateSpi | ops.InstallInbound | ops.InstallOutbound | ops.Remove)
        fresh = sequence not in self.open and sequence != 0 and len(self.open) < MAX_OPEN
        if asks and fresh:
            self.open[sequence] = type(message)
        self.asked = message
        result = self.call(self.service.from_worker, message, sequence)
        self.asked = None
        if isinstance(result, Violation):
            self.saw(type(message).__name__, "Violation")
            self._new_worker()
            return
        self.check(fresh or not asks, "a sequence number in use, or one request too many, is no violation")
        self.generator.learn(message)
        if not asks:
            self.saw(type(message).__name__, "taken")

    def _allocate(self) -> None:
        connection = self.random.choice(GATEWAY.connections)
        child = self.random.choice(connection.children)
        local, remote = self._ends(connection)
        message = ops.AllocateSpi(
            connection=connection.name,
            child=child.name,
            identity=connection.remote_id or identity_named(self.random.choice(NAMES)),
            local=local,
            remote=remote,
            local_ts=self._narrowed(child.local_ts, child.mode, local.address)
            or TrafficSelector.of_host(local.address),
            remote_ts=self._narrowed(child.remote_ts, child.mode, remote.address)
            or TrafficSelector.of_host(remote.address),
        )
        self._ask(self.generator.deviate(message) if self.random.random() < 0.15 else message)

    def _ends(self, connection: Connection) -> tuple[Endpoint, Endpoint]:
        there = self.random.choice([each for each in ADDRESSES if closeness(connection, each) >= 0])
        here = HERE if there.version == 4 else HERE6
        port = 4500 if connection.encap is Encap.FORCE else self.random.choice((500, 4500))
        return Endpoint(here, port), Endpoint(there, port)

    def _roam(self) -> None:
        """A peer that is in comes again, with the same traffic, from wherever it may be by now."""
        sending = [self.books.installed[spi][1].redeemed for spi in sorted(self.books.settled & self.books.sending)]
        travels = [each for each in sending if each.connection not in self.books.fixed_names]
        if not travels:
            return
        same, before = self.random.choice(travels), set(self.books.allocated)
        connection, child = named(same.connection, same.child)
        local, remote = self._ends(connection)
        self._ask(
            ops.AllocateSpi(
                connection=connection.name,
                child=child.name,
                identity=same.identity,
                local=local,
                remote=remote,
                local_ts=same.local_ts,
                remote_ts=same.remote_ts,
            )
        )
        for spi in set(self.books.allocated) - before:
            self._install(spi, same)

    def _install(self, spi: int | None = None, same: Redeemed | None = None) -> None:
        """A keymat that keyd derived, or was made to derive, and an installation that fits it, or almost."""
        random = self.random
        if spi is None:
            if not self.books.allocated:
                return
            spi = random.choice(list(self.books.allocated))
        allocated = self.books.allocated[spi]
        connection, child = named(allocated.connection, allocated.child)
        identity = connection.remote_id or identity_named(random.choice(NAMES))
        suite = random.choice(child.suites)
        redeemed = self._keyed(
            Redeemed(
                connection=connection.name,
                child=child.name,
                identity=identity,
                role=random.choice(list(Role)),
                suite=suite,
                mode=child.mode,
                encap=connection.encap is Encap.FORCE
                or (connection.encap is Encap.AUTO and allocated.local.port == 4500),
                spi_in=spi,
                spi_out=random.randrange(0x2000, 0x2030),
                cpi_in=None,
                cpi_out=None,
                local_ts=self._narrowed(child.local_ts, child.mode, allocated.local.address),
                remote_ts=self._narrowed(child.remote_ts, child.mode, allocated.remote.address),
                lifetime=child.lifetime,
                encryption_in=b"",
                integrity_in=b"",
            )
        )
        if same is not None:
            redeemed = replace(redeemed, identity=same.identity, local_ts=same.local_ts, remote_ts=same.remote_ts)
        outbound = self._sends(redeemed)
        if child.ipcomp and random.random() < 0.7:
            cpi = next((cpi for cpi, asked in self.books.cpis.items() if asked is allocated), None)
            if random.random() < 0.1:
                # another child's, or nobody's
                cpi = random.choice((*self.books.cpis, 0x450))
            redeemed = replace(redeemed, cpi_in=cpi, cpi_out=random.choice(CPIS))
        if random.random() < 0.35:
            redeemed = self._fooled(redeemed)
        handle = random.randbytes(16)
        self.keymats[handle] = [redeemed, outbound]
        message = ops.InstallInbound(keymat=handle, local=allocated.local, remote=allocated.remote)
        while random.random() < 0.3:
            message = self.generator.deviate(message)
            message = replace(message, keymat=handle if random.random() < 0.9 else message.keymat)
        self._ask(message)
        if random.random() < 0.1:
            self._ask(message)
        if random.random() < 0.7:
            self._ask(ops.InstallOutbound(spi_in=redeemed.spi_in))

    def _confirm(self) -> None:
        """Message 3 of a peer's comes late, or the worker makes it up."""
        known = [*self.books.installed, *self.books.allocated]
        if known:
            self._ask(ops.InstallOutbound(spi_in=self.random.choice(known)))

    def _sends(self, redeemed: Redeemed) -> RedeemedOutbound:
        """The other half; now and then keyd has a wrong one."""
        right = RedeemedOutbound(
            encryption_out=self.random.randbytes(len(redeemed.encryption_in)),
            integrity_out=self.random.randbytes(len(redeemed.integrity_in)),
        )
        if self.random.random() < 0.9:
            return right
        field = self.random.choice(("encryption_out", "integrity_out"))
        return replace(right, **{field: self.random.randbytes(self.random.choice((1, 16, 20, 32, 36, 40)))})

    def _narrowed(self, configured: tuple[TrafficSelector, ...], mode: Mode, address: Address) -> Any:
        if mode is Mode.TRANSPORT and self.random.random() < 0.8:
            return self.random.choice((None, TrafficSelector.of_host(address)))
        outer = self.random.choice(configured)
        if self.random.random() < 0.5:
            return outer
        subnets = outer.network.subnets(new_prefix=min(outer.network.prefixlen + 4, outer.network.max_prefixlen))
        return TrafficSelector(self.random.choice(list(subnets)))

    def _keyed(self, redeemed: Redeemed) -> Redeemed:
        suite, octets = redeemed.suite, self.random.randbytes
        encryption = suite.cipher.key_octets if suite.cipher else 0
        integrity = suite.integrity.key_octets if suite.integrity else 0
        return replace(
            redeemed,
            encryption_in=octets(encryption),
            integrity_in=octets(integrity),
        )

    def _fooled(self, redeemed: Redeemed) -> Redeemed:
        """keyd says something that it should not: the second opinion is for this."""
        random = self.random
        other = random.choice(GATEWAY.connections)
        outbound = [pair.spi_out for pair, _ in self.books.installed.values()] or [0x2000]
        match random.randrange(14):
            case 0:
                return replace(redeemed, identity=identity_named(random.choice(NAMES)))
            case 1:
                return self._keyed(replace(redeemed, suite=random.choice(SUITES)))
            case 2:
                return replace(redeemed, connection=other.name, child=random.choice(other.children).name)
            case 3:
                return replace(redeemed, spi_in=random.choice((*self.books.allocated, *self.books.installed, 0x1050)))
            case 4:
                return replace(redeemed, spi_out=random.choice((redeemed.spi_in, *outbound)))
            case 5:
                other_mode = replace(redeemed, mode=random.choice(list(Mode)))
                return random.choice((other_mode, replace(redeemed, encap=not redeemed.encap)))
            case 6:
                taken = [pair.ipcomp.inbound for pair, _ in self.books.installed.values() if pair.ipcomp is not None]
                return replace(redeemed, cpi_in=random.choice((None, *self.books.cpis, *taken, 0x450)))
            case 7:
                return replace(redeemed, cpi_out=random.choice((None, *CPIS)))
            case 8 | 9 | 10:
                return replace(redeemed, local_ts=random.choice(ASKED_TS))
            case 11 | 12:
                return replace(redeemed, remote_ts=random.choice(ASKED_TS))
            case 13:
                return replace(redeemed, encryption_in=random.randbytes(random.choice((16, 20, 32, 36, 40))))
            case _:
                return replace(redeemed, integrity_in=random.randbytes(random.choice((1, 20, 32))))

    def _remove(self) -> None:
        known = [*self.books.allocated, *self.books.installed]
        spi = self.random.choice(known) if known and self.random.random() < 0.8 else 0x1000 + self.random.randrange(80)
        self._ask(ops.Remove(spi_in=spi))

    def _any(self) -> None:
        kind = self.random.choice([each for each in SAYABLE if each is not ops.Described])
        message = self.generator.message(kind, self.random.choice((0.05, 0.3, 1.0)))
        if isinstance(message, ops.Progress | ops.Completed) and self.random.random() < 0.9:
            return
        odd = self.random.choice((0, self.sequence, *self.open)) if self.random.random() < 0.02 else None
        self._ask(message, odd)

    def _frame(self) -> None:
        kind = self.random.choice(SAYABLE)
        message = self.generator.message(kind, 0.05)
        self.spelled_out(message)
        admitted = self.spoilt_frame(message)
        if admitted is not None and self.random.random() < 0.2:
            self._ask(admitted[0])

    def _order(self) -> None:
        random = self.random
        connection = random.choice(GATEWAY.connections)
        match random.randrange(4):
            case 0:
                future: Future[Any] = self.service.up(connection.name, "", lambda text: None)
            case 1:
                future = self.service.down(connection.name, "", lambda text: None)
            case 2:
                future = self.service.describe(5.0)
            case _:
                future = self.service.traffic([Spi(spi) for spi in self.books.installed])
        self._await(future)

    def _await(self, future: Future[Any]) -> None:
        """As the operator's connection would: errors of ours are answers, others are findings."""

        async def wait() -> None:
            try:
                await future
            except (PrivsepError, TimeoutError) as error:
                self.saw("order", type(error).__name__)

        run(wait())

    def _answer(self) -> None:
        random = self.random
        if not self.pending:
            return
        sequence = random.choice(list(self.pending))
        asked = self.pending[sequence]
        if isinstance(asked, ops.Up | ops.Down) and random.random() < 0.4:
            self._ask(ops.Progress(order=asked.order, text="a step"), 0)
            return
        kind = ops.Described if isinstance(asked, ops.Describe) else ops.Completed
        if random.random() < 0.02:
            kind = ops.Completed if kind is ops.Described else ops.Described
        message = self.generator.message(kind, 0.2)
        if isinstance(message, ops.Described):
            cursor = getattr(asked, "cursor", 0)
            message = replace(message, ike_sas=message.ike_sas[:2], cursor=random.choice((0, cursor + 1)))
        del self.pending[sequence]
        self._ask(message, sequence)

    def _resolve(self) -> None:
        """Something answers at last, in any order."""
        waiting = self.random.choice((self.waiting_keyd, self.books.waiting))
        if waiting:
            result = self.call(waiting.pop(self.random.randrange(len(waiting))))
            self.check(not isinstance(result, Violation), "a late answer is taken for a violation")

    def _event(self) -> None:
        settled = sorted(self.books.settled)
        if settled and self.random.random() < 0.3:
            spi = self.random.choice(settled)
            pair = self.books.installed[spi][0]
            address = pair.remote.address if self.random.random() < 0.8 else self.random.choice(ADDRESSES)
            self.service.moved(Spi(spi), Endpoint(address, self.random.choice((0, 500, 1025, 40001))))
        elif settled and self.random.random() < 0.6:
            spi, hard = self.random.choice(settled), self.random.random() < 0.5
            if hard:
                self.books.gone(spi)
            self.service.expired(Spi(spi), hard)
        else:
            self.service.acquired(self.random.choice((0, 1, len(self.books.policies), 2**16, 2**32 - 1)))

    def _pass_time(self) -> None:
        self.clock.advance(self.random.choice((0.01, 0.2, 1.0, 10.0)))

    # checks

    def _count(self) -> None:
        """The monitor's books and ours agree, and are bounded."""
        table = self.service.sadb
        allocations, entries = table.allocations(), table.entries()
        self.check(len(allocations) <= QUOTAS["MAX_ALLOCATED"], "more SPIs than their quota")
        self.check(len(entries) <= QUOTAS["MAX_INSTALLED"], "more pairs than their quota")
        for name, count in Counter(each.connection for each in allocations).items():
            quota = QUOTAS["MAX_ALLOCATED_PER_CONNECTION"]
            self.check(count <= quota, f"more SPIs of {name} than their quota")
        for each in allocations:
            asked = self.books.allocated.get(each.spi)
            self.check(asked is not None, "an allocation that the data plane does not know")
            self.check(
                (asked.connection, asked.child) == (each.connection, each.child), "an allocation of another child"
            )
        for entry in entries:
            empty = not (entry.pair.encryption_in or entry.pair.integrity_in or entry.pair.encryption_out)
            self.check(empty, "the monitor keeps keys")
        known = {entry.pair.spi_in for entry in entries}
        self.check(self.books.settled <= known, "an installed pair that the monitor has forgotten")
        self.check(len(self.open) <= MAX_OPEN, "more open requests than their quota")
        for remembered in (self.minted, self.sending, self.by_handle):
            while len(remembered) > 400:
                remembered.pop(next(iter(remembered)))
        while len(self.keymats) > 50:
            self.keymats.pop(next(iter(self.keymats)))
