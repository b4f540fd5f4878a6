"""Octets that never print themselves and can be overwritten."""

from typing import NoReturn


class Secret(bytearray):
    """A key, a pre-shared key or a DH secret.

    Overwriting is best effort: what passed through immutable `bytes` or a library's own copy is freed, not erased. The
    promise that counts is that keyd's memory is out of everybody else's reach (docs/architecture.md).
    """

    __slots__ = ()

    def wipe(self) -> None:
        """Overwrite with zeros, then forget the length too."""
        self[:] = bytes(len(self))
        self.clear()

    def __repr__(self) -> str:
        return "Secret()"

    __str__ = __repr__

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Not picklable: no library may serialise a secret by accident."""
        raise TypeError("a Secret is not serialised")
