"""keyd's process: read the secrets as root, become nobody, talk to the worker and the monitor, hold the rules.

Started by the monitor only. Order matters: secrets are read before the uid is dropped, the endpoint is bound after it
(its owner is what the worker may trust), and nothing of the worker's is decoded before the last step of lockdown.
"""

import argparse
import os
import socket
import sys
import time
from typing import assert_never

from keyd import credentials, sandbox
from keyd.service import Service
from privsep import log
from privsep.channel import Channel
from privsep.config import handover
from privsep.errors import GONE, OperatorError, Violation
from privsep.log import Level, event
from privsep.loop import Loop
from privsep.rpc import ENDPOINT, Peer, Wire, run_in_batches
from privsep.sandbox.confine import become_user, begin, lock_down
from privsep.schema import keyd, keymat
from privsep.schema.levels import SetLevel
from privsep.schema.names import Resolved

WORKER_SECONDS = 60.0
"""How long the worker may take to connect; it starts when we report ready."""


def main() -> int:
    """Serve one worker until it ends or misbehaves; the exit status is 1 for a violation."""
    parser = argparse.ArgumentParser("keyd")
    parser.add_argument("--channel", type=int, required=True, help="SOCK_SEQPACKET to the monitor")
    parser.add_argument("--config-fd", type=int, required=True)
    parser.add_argument("--config", required=True, help="name for messages; the content comes by --config-fd")
    parser.add_argument("--secrets", required=True)
    parser.add_argument("--workplace", required=True, help="the directory where the worker finds us")
    parser.add_argument("--root", required=True)
    arguments = parser.parse_args()

    begin()
    run_in_batches()
    try:
        gateway = handover.receive(arguments.config_fd, arguments.config)
        secrets = credentials.load(arguments.secrets, gateway)
    except OperatorError as error:
        # they were valid when the daemon started: somebody changed secrets.toml since
        event(Level.ERROR, "secrets", problem=error)
        return 1
    log.configure(*gateway.levels, most=log.FOLLOWED)
    uid, gid = gateway.users.keyd
    confinement = sandbox.confinement(uid, gid, arguments.root, gateway.absent)
    for warning in secrets.warnings:
        event(Level.WARNING, "secrets", problem=warning)
    service = Service(gateway, secrets, time.monotonic, os.urandom)
    become_user(confinement, arguments.workplace)

    loop = Loop()
    end = _End(loop)
    monitor = Channel(
        socket.socket(fileno=arguments.channel),
        loop,
        keymat.REQUESTS,
        keymat.REPLIES,
        lambda request, sequence: _from_monitor(request, sequence, service, monitor),
        end.quietly,
    )
    # the directory admits the worker's group, which the socket inherits; libzmq admits its uid
    os.umask(0o117)
    wire = Wire()
    wire.bind(ENDPOINT, gateway.users.worker[0])
    monitor.send(keymat.Ready(same_secret=service.same_secret()))
    if not wire.await_handshake(WORKER_SECONDS):
        event(Level.ERROR, "worker-absent", seconds=WORKER_SECONDS)
        return 1
    wire.hide()
    worker = Peer(
        wire,
        loop,
        keyd.REQUESTS,
        keyd.REPLIES,
        lambda request, sequence: worker.send(service.handle(request), sequence),
        end.loudly,
    )
    lock_down(confinement)
    loop.before_poll(lambda: worker.pump() or service.idle())
    try:
        loop.run()
    except Violation as violation:
        end.loudly(f"violation: {violation}")
    return end.status


def _from_monitor(
    request: keymat.Request, sequence: int, service: Service, monitor: Channel[keymat.Request, keymat.Reply]
) -> None:
    match request:
        case keymat.RedeemInbound() | keymat.RedeemOutbound() | Resolved():
            monitor.send(service.answer(request), sequence)
        case SetLevel():
            log.set_level(request.level, request.connection)
        case _:
            assert_never(request)


class _End:
    """How this process came to its end."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.status = 0

    def quietly(self, reason: str) -> None:
        """The monitor ended, or ended us."""
        self._loop.stop()

    def loudly(self, reason: str) -> None:
        """The worker is gone or asked what no honest worker asks: every handle dies with this process."""
        # at a clean stop the worker may be ended a moment before us
        event(Level.INFO if reason == GONE else Level.ERROR, "epoch-ends", reason=reason)
        self.status = 1
        self._loop.stop()


if __name__ == "__main__":
    sys.exit(main())
