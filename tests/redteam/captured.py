"""A child of the monitor after an attacker found code execution in it: the real process, descriptors and channels.

    python -I -B captured.py PLAN MODULE arguments...

The module's own `main` runs, confinement included. Whatever then arrives behind MAGIC on the way on which its attacker
reaches it (the worker by UDP, keyd from the worker, the ESP process in an ESP packet) is executed as Python in the main
thread, with `me` as the foothold: after lockdown, and able to do all that machine code could.
"""

import ctypes
import dataclasses
import errno
import hashlib
import importlib
import ipaddress
import itertools
import json
import mmap
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import msgpack
import prctl

MAGIC = b"\x7fcaptured\x7f"
FIRST_SEQUENCE = 2**40
"""Above every number that an honest process uses, so that answers to the attacker find him."""
PATIENCE = 10.0
INT80 = b"\x89\xf8\xcd\x80\xc3"
"""mov eax, edi; int 0x80; ret: an i386 system call, number in the first argument."""

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


class Lost(Exception):
    """The channel ended before the answer came."""


def call(number: int, *arguments: object) -> int:
    """A system call by number, every argument a full register; OSError."""
    words = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def gadget() -> "ctypes._CFuncPtr":
    """Executable memory that an attacker would have to find; it is made here, before lockdown."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(INT80)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    function = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long)(address)
    function.page = page
    return function


def libzmq() -> ctypes.CDLL:
    """The library that pyzmq brought along."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return ctypes.CDLL(next(line.split()[-1] for line in lines if "libzmq" in line))


def plain(value: object) -> object:
    """As JSON can say it."""
    if isinstance(value, bytes | bytearray):
        return {"hex": bytes(value).hex()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    return value if isinstance(value, int | float | str | bool | None) else str(value)


class Foothold:
    """What the attacker's code has: `me`. Subclasses know the process they are in."""

    def __init__(self) -> None:
        self.names: dict[str, object] = {
            "me": self, "call": call, "libc": libc, "gadget": gadget(), "plain": plain, "Lost": Lost,
            "ctypes": ctypes, "dataclasses": dataclasses, "errno": errno, "hashlib": hashlib, "ipaddress": ipaddress,
            "json": json, "mmap": mmap, "msgpack": msgpack, "os": os, "prctl": prctl, "random": random,
            "resource": resource, "select": select, "signal": signal, "socket": socket, "struct": struct, "sys": sys,
            "threading": threading, "time": time,
        }  # fmt: skip
        self._numbers = itertools.count(FIRST_SEQUENCE)
        self.answers: dict[int, object] = {}

    def execute(self, packet: bytes) -> bytes:
        """Run one packet of code; what it leaves in `result`, or how it failed."""
        job = json.loads(packet[len(MAGIC) :])
        self.names.update(job["facts"])
        self.names["result"] = "succeeded"
        try:
            exec(compile(job["code"], "<attack>", "exec"), self.names)
        except OSError as error:
            outcome = errno.errorcode.get(error.errno, str(error.errno))
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        else:
            outcome = plain(self.names["result"])
        return MAGIC + json.dumps({"id": job["id"], "outcome": outcome}).encode()

    def wait(self, sequence: int, turn) -> object:
        """The answer under that number; `turn` takes what has arrived and says whether there is still a channel."""
        deadline = time.monotonic() + PATIENCE
        while sequence not in self.answers:
            if not turn():
                raise Lost
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "no answer")
            time.sleep(0.0005)
        return self.answers.pop(sequence)


class WorkerFoothold(Foothold):
    """In the worker: its two channels, its engine, its sockets."""

    def __init__(self) -> None:
        super().__init__()
        from privsep import algorithms, config, types
        from privsep.schema import install, keyd
        from privsep.schema.codec import SchemaError

        self.shell = None
        self.rewrite: dict[type, object] = {}
        """Message class to a function that the engine's own requests of that class pass through."""
        self.names |= {
            "ops": keyd, "install": install, "types": types, "algorithms": algorithms, "config": config,
            "SchemaError": SchemaError, "zmq": sys.modules["zmq"], "libzmq": libzmq(),
        }  # fmt: skip

    @property
    def engine(self):
        return self.shell._engine

    @property
    def gateway(self):
        return self.engine._context.gateway

    def keyd(self, request):
        """Ask as the worker does, and wait."""
        return self.keyd_many([request])[0]

    def keyd_many(self, requests):
        """All at once, pipelined."""
        sequences = [next(self._numbers) for _ in requests]
        for request, sequence in zip(requests, sequences, strict=True):
            self.shell._keyd.send(request, sequence)
        return [self.wait(sequence, self._turn) for sequence in sequences]

    def raw_keyd(self, frame: bytes) -> None:
        """Any octets to keyd."""
        self.shell._keyd._sock.send(frame)
        self.shell._keyd._unread = True

    def in_keyd(self, job: dict) -> dict:
        """Have a captured keyd execute code, and wait for what it says of this, not of what was sent before."""
        number = next(self._numbers)
        self.raw_keyd(MAGIC + json.dumps(job | {"id": number}).encode())
        return self.wait(number, self._turn)

    def monitor(self, message):
        """Ask the monitor, and wait."""
        sequence = next(self._numbers)
        self.shell._monitor.send(message, sequence)
        return self.wait(sequence, self._turn)

    def tell_monitor(self, message, sequence: int = 0) -> None:
        """Say what wants no answer."""
        self.shell._monitor.send(message, sequence)

    def raw_monitor(self, frame: bytes) -> None:
        """Any octets to the monitor."""
        self.shell._monitor._sock.send(frame)

    def _turn(self) -> bool:
        shell = self.shell
        shell._keyd._unread = True
        shell._keyd.pump()
        if not shell._monitor._closed:
            shell._monitor._readable()
        return not shell._keyd._closed and not shell._monitor._closed


def capture_worker(entry) -> None:
    """Datagrams behind MAGIC are executed; answers above FIRST_SEQUENCE are the attacker's."""
    import zmq

    # while there is a file system
    foothold = WorkerFoothold()

    class Peer(entry.Peer):
        def pump(self) -> bool:
            while not self._closed and self._unread and self._sock.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                frame = self._sock.recv(zmq.NOBLOCK)
                if frame.startswith(MAGIC):
                    answer = json.loads(frame[len(MAGIC) :])
                    foothold.answers[answer["id"]] = answer
                else:
                    message, sequence = self._incoming.decode(frame)
                    self._handler(message, sequence)
            self._unread = False
            return False

        def send(self, message, sequence: int) -> None:
            rewrite = foothold.rewrite.get(type(message)) if sequence < FIRST_SEQUENCE else None
            super().send(message if rewrite is None else rewrite(message), sequence)

    class Shell(entry.Shell):
        def attach(self, wire, monitor, udp) -> None:
            foothold.shell = self
            super().attach(wire, monitor, udp)

        def _received(self, data, local, remote) -> None:
            if data.startswith(MAGIC):
                self._sockets.send(foothold.execute(data), local, remote)
            else:
                super()._received(data, local, remote)

        def _from_keyd(self, reply, sequence) -> None:
            if sequence >= FIRST_SEQUENCE:
                foothold.answers[sequence] = reply
            else:
                super()._from_keyd(reply, sequence)

        def _from_monitor(self, message, sequence) -> None:
            if sequence >= FIRST_SEQUENCE:
                foothold.answers[sequence] = message
            else:
                super()._from_monitor(message, sequence)

    entry.Peer, entry.Shell = Peer, Shell


class KeydFoothold(Foothold):
    """In keyd: its service with every secret, the channel to the monitor, the wire to the worker."""

    def __init__(self) -> None:
        super().__init__()
        from keyd import handles, phase1, phase2
        from privsep import algorithms, types
        from privsep.schema import keyd, keymat

        self.service = self.channel = self.wire = None
        self.names |= {
            "handles": handles, "phase1": phase1, "phase2": phase2, "algorithms": algorithms, "types": types,
            "ops": keyd, "keymat": keymat, "zmq": sys.modules["zmq"],
        }  # fmt: skip


def capture_keyd(entry) -> None:
    """Frames of the worker behind MAGIC are executed."""
    import zmq

    foothold = KeydFoothold()

    class Peer(entry.Peer):
        def pump(self) -> bool:
            while not self._closed and self._unread and self._sock.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                frame = self._sock.recv(zmq.NOBLOCK)
                if frame.startswith(MAGIC):
                    self._sock.send(foothold.execute(frame))
                else:
                    message, sequence = self._incoming.decode(frame)
                    self._handler(message, sequence)
            self._unread = False
            return False

    def remembered(kind: type, name: str):
        def make(*arguments):
            made = kind(*arguments)
            setattr(foothold, name, made)
            return made

        return make

    entry.Peer, entry.Service = Peer, remembered(entry.Service, "service")
    entry.Channel, entry.Wire = remembered(entry.Channel, "channel"), remembered(entry.Wire, "wire")


class EspFoothold(Foothold):
    """In the ESP process: traffic keys, the TUN device, UDP and raw sockets, the channel to the monitor."""

    def __init__(self) -> None:
        super().__init__()
        from privsep.schema import esp, keymat

        self.forwarder = None
        self.names |= {"esp": esp, "keymat": keymat}

    @property
    def database(self):
        return self.forwarder._database


def capture_esp(entry) -> None:
    """Packets of UDP port 4500 behind MAGIC, which is no SPI of ours, are executed."""
    foothold = EspFoothold()

    class Forwarder(entry.Forwarder):
        def __init__(self, *arguments, **more) -> None:
            super().__init__(*arguments, **more)
            foothold.forwarder = self

        def attach(self, sock, on_close) -> None:
            self.channel = sock
            super().attach(sock, on_close)

        def _udp_datagram(self, datagram, source) -> None:
            if datagram.startswith(MAGIC):
                udp = next(sock for (encap, *_), sock in self._sockets.items() if encap)
                udp.sendto(foothold.execute(datagram), source)
            else:
                super()._udp_datagram(datagram, source)

    entry.Forwarder = Forwarder


CAPTURES = {"worker": capture_worker, "keyd": capture_keyd, "monitor.userspace": capture_esp}


def main() -> int:
    plan = json.loads(Path(sys.argv.pop(1)).read_text())
    module = sys.argv.pop(1)
    entry = importlib.import_module(f"{module}.__main__")
    exec(plan["weaken"].get(module, ""), {"entry": entry, "os": os})
    if module in plan["captured"]:
        CAPTURES[module](entry)
    return entry.main(sys.argv[1:]) if module == "monitor.userspace" else entry.main()


if __name__ == "__main__":
    sys.exit(main())
