"""``/proc/PID/status`` as a value: the read-back of the sandbox and the eyes of the audit."""

from dataclasses import dataclass


@dataclass(slots=True, frozen=True, kw_only=True)
class Status:
    """Credentials and confinement of one thread, in the kernel's words. Capability sets are bit masks."""

    name: str
    parent: int
    uids: tuple[int, ...]
    """Real, effective, saved, file system."""
    gids: tuple[int, ...]
    groups: tuple[int, ...]
    inheritable: int
    permitted: int
    effective: int
    bounding: int
    ambient: int
    no_new_privs: int
    seccomp: int
    """0 off, 1 strict, 2 filter."""
    filters: int | None
    """How many; None before Linux 5.9."""
    threads: int
    locked_kb: int


def parse(text: str) -> Status:
    """The fields of interest; KeyError or ValueError if the kernel does not print one of them."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def numbers(name: str, base: int = 10) -> tuple[int, ...]:
        return tuple(int(word, base) for word in fields[name].split() if word != "kB")

    return Status(
        name=fields["Name"].strip(),
        parent=numbers("PPid")[0],
        uids=numbers("Uid"),
        gids=numbers("Gid"),
        groups=numbers("Groups"),
        inheritable=numbers("CapInh", 16)[0],
        permitted=numbers("CapPrm", 16)[0],
        effective=numbers("CapEff", 16)[0],
        bounding=numbers("CapBnd", 16)[0],
        ambient=numbers("CapAmb", 16)[0],
        no_new_privs=numbers("NoNewPrivs")[0],
        seccomp=numbers("Seccomp")[0],
        filters=numbers("Seccomp_filters")[0] if "Seccomp_filters" in fields else None,
        threads=numbers("Threads")[0],
        locked_kb=numbers("VmLck")[0],
    )
