"""Half a gateway for tests: the monitor's part around one confined ESP process, with one pair and keys made up.

Started inside a network namespace with a JSON description; answers commands on stdin, one a line, with JSON lines.
"""

import hashlib
import ipaddress
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress

from monitor.dataplane import DataplaneError, Events, Pair, Policy
from monitor.routes import Routes
from monitor.sockets import Plane, open_listeners
from monitor.userspace.client import UserspaceDataplane
from privsep.algorithms import ChildSuite
from privsep.channel import pair as channel_pair
from privsep.iana import ProtocolId
from privsep.loop import Loop
from privsep.types import Endpoint, Mode, Spi, TrafficSelector

WORKER = 64711


def main() -> None:
    wanted = json.loads(sys.argv[1])
    root = tempfile.mkdtemp()
    os.chmod(root, 0o755)
    loop = Loop()
    routes = Routes()
    listen = tuple(map(ipaddress.ip_address, wanted["listen"]))
    listeners = open_listeners(listen, Plane.USERSPACE, WORKER)

    def say(**fields: object) -> None:
        sys.stdout.write(json.dumps(fields) + "\n")
        sys.stdout.flush()

    def lost(reason: str) -> None:
        say(event="lost", reason=reason)

    events = Events(
        acquired=lambda number: say(event="acquired", policy=number),
        expired=lambda spi, hard: say(event="expired", spi=spi, hard=hard),
        moved=lambda spi, remote: say(event="moved", spi=spi, remote=str(remote)),
    )
    dataplane = UserspaceDataplane(loop, routes, events, lost)
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        ours, theirs = channel_pair()
        udp, raw = [[sock.fileno() for sock in group] for group in (listeners.esp_udp, listeners.esp_raw)]
        argv = ["-I", "-B", "-m", "monitor.userspace", f"--channel={theirs.fileno()}", f"--tun={routes.tun}"]
        argv += ["--udp", *map(str, udp), "--raw", *map(str, raw)]
        argv += ["--uid=61003", "--gid=61003", "--root", root, "--absent", *wanted["absent"]]
        process = subprocess.Popen(
            [sys.executable, *argv], pass_fds=(theirs.fileno(), routes.tun, *udp, *raw), stdin=subprocess.DEVNULL
        )
        theirs.close()
        processes.append(process)
        dataplane.connect(ours)

    local, remote = (ipaddress.ip_address(wanted[side]) for side in ("local", "remote"))
    local_ts, remote_ts = (
        tuple(TrafficSelector(ipaddress.ip_network(text)) for text in wanted[side])
        for side in ("local_ts", "remote_ts")
    )
    port = 4500 if wanted["encap"] else 500
    policy = Policy(
        protocol=ProtocolId.ESP,
        number=1,
        mode=Mode[wanted["mode"]],
        local=Endpoint(local, port),
        remote=Endpoint(remote, port),
        local_ts=local_ts,
        remote_ts=remote_ts,
    )
    suite = ChildSuite.parse(wanted["suite"])

    def keys(spi: int) -> tuple[bytes, bytes]:
        stream = hashlib.shake_256(spi.to_bytes(4, "big")).digest(256)
        return stream[: suite.encryption_octets], stream[128 : 128 + suite.integrity_octets]

    def install() -> None:
        spi_in, spi_out = Spi(wanted["spi_in"]), Spi(wanted["spi_out"])
        # the test fixes the SPIs of both sides, which otherwise IKE would carry across
        dataplane._spis.add(spi_in)
        nonlocal pair
        pair = Pair(
            policy=policy,
            spi_in=spi_in,
            spi_out=spi_out,
            suite=suite,
            encryption_in=keys(spi_in)[0],
            integrity_in=keys(spi_in)[1],
            encryption_out=keys(spi_out)[0],
            integrity_out=keys(spi_out)[1],
            local=policy.local,
            remote=policy.remote,
            encap=wanted["encap"],
            local_ts=local_ts,
            remote_ts=remote_ts,
            lifetime=wanted.get("lifetime", 600),
            replay_window=64,
        )
        receives, sends = dataplane.install_inbound(pair), dataplane.install_outbound(pair)
        answer(receives if receives.done and receives._error is not None else sends)

    def answer(future) -> None:
        def done() -> None:
            try:
                value = future._value if future._error is None else None
                if future._error is not None:
                    raise future._error()
            except DataplaneError as error:
                say(error=str(error))
            else:
                say(
                    ok=None if value is None else [value.packets_in, value.packets_out, value.bytes_in, value.bytes_out]
                )

        future.on_done(done)

    def command() -> None:
        line = sys.stdin.readline().strip()
        match line:
            case "install":
                install()
            case "remove":
                answer(dataplane.remove(pair))
            case "traffic":
                answer(dataplane.traffic(pair))
            case "kill":
                processes[-1].kill()
                processes[-1].wait()
            case "start":
                start()
                say(ok=processes[-1].pid)
            case "pid":
                say(ok=processes[-1].pid)
            case _:
                loop.stop()

    pair: Pair | None = None
    start()
    answer(dataplane.add_policy(policy))
    loop.on_readable(sys.stdin.fileno(), command)
    loop.run()
    routes.close()
    for process in processes:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
    listeners.close()
    os.rmdir(root)


main()
