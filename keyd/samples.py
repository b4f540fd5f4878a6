"""Secrets that everybody knows, because they stand in what we ship or in its documentation. None of them is ever taken.

A test looks for more of them in these files.
"""

KNOWN = frozenset({"a long random passphrase", "..."})
TO_BE_REPLACED = "replace me"
"""How the one in etc/secrets.toml begins."""


def is_known(secret: bytes | bytearray) -> bool:
    """Whether it is one of them, in capitals or not."""
    text = secret.decode(errors="replace").strip().lower()
    return text in KNOWN or text.startswith(TO_BE_REPLACED)
