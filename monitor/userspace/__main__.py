"""The ESP process: started by the monitor with its descriptors by number, confined before it reads one.

It holds traffic keys and nothing else: no name in the file system, no socket beyond those it was given, no IKE.
"""

import argparse
import os
import socket
import sys
from collections.abc import Sequence

from monitor.userspace.esp import warm_up
from monitor.userspace.forwarder import Forwarder
from monitor.userspace.sandbox import confinement
from privsep.config.model import Layer
from privsep.log import Level, event
from privsep.loop import Loop
from privsep.sandbox.confine import become_user, begin, lock_down


def main(arguments: Sequence[str]) -> int:
    """Run until the monitor closes the channel."""
    begin()
    options = _parser().parse_args(arguments)
    warm_up()
    loop = Loop()
    os.set_blocking(options.tun, False)
    forwarder = Forwarder(
        loop,
        options.tun,
        udp=[socket.socket(fileno=fd) for fd in options.udp],
        raw=[socket.socket(fileno=fd) for fd in options.raw],
    )

    def closed(reason: str) -> None:
        event(Level.NOTICE, "esp-process-ends", reason=reason)
        loop.stop()

    forwarder.attach(socket.socket(fileno=options.channel), closed)
    absent = frozenset(map(Layer, options.absent))
    confined = confinement(options.uid, options.gid, options.root, absent, (*options.udp, *options.raw))
    become_user(confined)
    lock_down(confined)
    loop.run()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="monitor.userspace", allow_abbrev=False)
    parser.add_argument("--channel", type=int, required=True, metavar="FD", help="SOCK_SEQPACKET to the monitor")
    parser.add_argument("--tun", type=int, required=True, metavar="FD", help="the TUN device")
    parser.add_argument("--udp", type=int, nargs="*", default=[], metavar="FD", help="port 4500, ESP's share")
    parser.add_argument("--raw", type=int, nargs="*", default=[], metavar="FD", help="IP protocol 50")
    parser.add_argument("--uid", type=int, required=True)
    parser.add_argument("--gid", type=int, required=True)
    parser.add_argument("--root", required=True, metavar="DIR", help="an empty directory")
    parser.add_argument("--absent", nargs="*", default=[], metavar="LAYER", help="sandbox steps this machine lacks")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
