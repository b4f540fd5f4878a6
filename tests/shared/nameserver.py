"""A name server that says what a test wants, or nothing (RFC 1035), in the namespace of a site."""

import contextlib
import ipaddress
import shutil
import socket
import struct
import threading
from pathlib import Path

_HEADER = struct.Struct("!6H")
_A, _AAAA = 1, 28
_RESPONSE, _NXDOMAIN = 0x8180, 0x8183


class NameServer:
    """`addresses` by name; a name that is not there does not exist, and one with None is never answered."""

    ADDRESS = "127.0.0.1"

    def __init__(self, site) -> None:
        self.addresses: dict[str, tuple[str, ...] | None] = {}
        self.asked: list[str] = []
        self._etc = Path("/etc/netns") / site.namespace
        # `ip netns exec` shows these in place of the machine's own
        self._etc.mkdir(parents=True)
        for name, text in {
            "resolv.conf": f"nameserver {self.ADDRESS}\noptions timeout:25 attempts:1\n",
            "nsswitch.conf": "hosts: files dns\n",
            "hosts": "",
        }.items():
            (self._etc / name).write_text(text)
        self._socket = site.enter(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._socket.bind((self.ADDRESS, 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                query, source = self._socket.recvfrom(512)
                reply = self._answer(query)
                if reply:
                    self._socket.sendto(reply, source)

    def _answer(self, query: bytes) -> bytes:
        number, *_ = _HEADER.unpack_from(query)
        labels, at = [], _HEADER.size
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        question, (kind,) = query[_HEADER.size : at + 5], struct.unpack_from("!H", query, at + 1)
        name = ".".join(labels)
        self.asked.append(name)
        known = self.addresses.get(name, ())
        if known is None:
            return b""
        packed = [ipaddress.ip_address(each).packed for each in known]
        wanted = [each for each in packed if len(each) == {_A: 4, _AAAA: 16}.get(kind)]
        flags = _RESPONSE if known else _NXDOMAIN
        records = [struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(each)) + each for each in wanted]
        return _HEADER.pack(number, flags, 1, len(records), 0, 0) + question + b"".join(records)

    def close(self) -> None:
        self._socket.close()
        shutil.rmtree(self._etc)
