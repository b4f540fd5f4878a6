"""What the resolver may do: read how names are looked up on this machine, ask name servers, write one answer.

The C library's resolver reads files and talks to whomever they name, so this process sees what Landlock leaves of the
file system, and the gateway's network. It is a user of its own without any privilege, who owns no file; it can start
nothing, write to no file, signal nobody, and load no code: modules of name services are loaded before (`__main__.py`).
"""

import errno
import mmap
import resource
import socket
from pathlib import Path

from privsep.config.model import Layer
from privsep.sandbox.confine import Confinement, Grant
from privsep.sandbox.policy import ASKING, INTERPRETER
from privsep.sandbox.seccomp import Rule, allow, equals, fail

READABLE = (
    # names and services
    *("/etc/nsswitch.conf", "/etc/host.conf", "/etc/resolv.conf", "/etc/hosts", "/etc/gai.conf", "/etc/services"),
    # this machine's own name; what nss_mdns and nss_resolve read
    *("/etc/hostname", "/etc/mdns.allow", "/etc/machine-id", "/run/systemd/resolve"),
    # name service modules, which are loaded under Landlock, before seccomp
    *("/etc/ld.so.cache", "/lib", "/lib64", "/usr/lib", "/usr/lib64"),
)
NAME_SERVICE_PORT = 53
"""Over TCP, where an answer does not fit into a datagram; Landlock admits no other port."""
_FIONREAD = 0x541B

SYSCALLS: tuple[Rule, ...] = (
    *INTERPRETER,
    allow("mmap", equals(2, mmap.PROT_READ), equals(3, mmap.MAP_PRIVATE)),  # files as glibc reads them; never code
    allow("openat"),  # the files above
    allow("open"),  # the same
    allow("fstat"),  # has resolv.conf changed?
    allow("newfstatat"),  # the same
    allow("stat"),  # the same
    allow("statx"),  # the same
    allow("lseek"),  # stdio
    allow("pread64"),  # the same
    allow("fcntl"),  # flags of descriptors
    *ASKING,  # name servers; source address selection (RFC 6724)
    allow("socket", equals(0, socket.AF_UNIX)),  # nscd, systemd-resolved, avahi: local name services
    allow("socket", equals(0, socket.AF_NETLINK), equals(2, 0)),  # which address families has this machine?
    allow("connect"),  # all of these
    allow("bind"),  # netlink
    allow("getsockname"),  # netlink; source address selection
    allow("getpeername"),  # local name services
    allow("setsockopt"),  # IP_RECVERR
    allow("getsockopt"),  # local name services
    allow("sendto"),  # queries
    allow("sendmsg"),  # the same
    allow("sendmmsg"),  # two queries at once: A and AAAA
    allow("recvfrom"),  # answers
    allow("recvmsg"),  # the same
    allow("poll"),  # waiting for them
    allow("ppoll"),  # the same
    allow("ioctl", equals(1, _FIONREAD)),  # how long is the answer?
    allow("uname"),  # this machine's own name
    *(allow(call) for call in ("getuid", "geteuid", "getgid", "getegid", "gettid")),  # secure_getenv, local services
)
"""Whatever else a name service module tries fails as on a kernel that does not have it."""

RLIMITS = {
    resource.RLIMIT_NOFILE: 32,  # name servers, files
    resource.RLIMIT_NPROC: 0,  # no process, no thread
    resource.RLIMIT_FSIZE: 0,  # no file grows
    resource.RLIMIT_MEMLOCK: 0,  # nothing locked
    resource.RLIMIT_MSGQUEUE: 0,  # no POSIX queue
    resource.RLIMIT_CPU: 5,  # waiting costs none
    resource.RLIMIT_AS: 512 << 20,  # the interpreter and some answers
}


def confinement(uid: int, gid: int, absent: frozenset[Layer]) -> Confinement:
    """The resolver's, without the layers that the configuration names as absent on this machine."""
    return Confinement(
        name="ike-names",
        uid=uid,
        gid=gid,
        root=None,
        layers=frozenset({Layer.LANDLOCK}) - absent,
        grant=Grant.NAME_SERVICE,
        permitted=frozenset(),
        effective=frozenset(),
        rlimits=RLIMITS,
        syscalls=SYSCALLS,
        otherwise=fail(errno.ENOSYS),
        readable=READABLE,
        tcp_ports=(NAME_SERVICE_PORT,),
    )


def modules(nsswitch: str) -> tuple[str, ...]:
    """Shared libraries of the name services that nsswitch.conf(5) has for hosts."""
    for line in nsswitch.splitlines():
        database, _, services = line.partition("#")[0].partition(":")
        if database.strip() == "hosts":
            return tuple(f"libnss_{word}.so.2" for word in services.split() if word.replace("_", "").isalnum())
    return ()


def read_nsswitch(path: Path = Path("/etc/nsswitch.conf")) -> str:
    """Its text, empty where there is none."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
