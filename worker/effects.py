"""What the engine wants done: its only output. The shell takes and executes it in order."""

from dataclasses import dataclass

from privsep.schema import keyd
from privsep.schema.install import WorkerReply, WorkerRequest
from privsep.types import Endpoint


@dataclass(slots=True, frozen=True)
class Send:
    """A datagram, with its non-ESP marker where the port asks for one (RFC 3948 section 2.2)."""

    local: Endpoint
    remote: Endpoint
    data: bytes


@dataclass(slots=True, frozen=True)
class AskKeyd:
    """A request; the answer comes back by `Engine.keyd_reply` under the same sequence number."""

    sequence: int
    request: keyd.Request


@dataclass(slots=True, frozen=True)
class AskMonitor:
    """A request; the answer comes back by `Engine.monitor_message` under the same sequence number."""

    sequence: int
    message: WorkerRequest


@dataclass(slots=True, frozen=True)
class TellMonitor:
    """An answer under the monitor's own sequence number, or under 0 a step of an order."""

    sequence: int
    message: WorkerRequest | WorkerReply


Effect = Send | AskKeyd | AskMonitor | TellMonitor
