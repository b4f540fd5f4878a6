"""`python -m keyd.genpsk`, which `privsep-ike genpsk` becomes: prints a new pre-shared key."""

import secrets
import string
import sys

LENGTH = 32
_LETTERS = string.ascii_letters
_CHARACTERS = string.ascii_letters + string.digits
"""62 of them: 32 have 190 bits. Every daemon takes them as they are, in quotes; a first digit could be taken for the 0x
or 0s before hexadecimal or base64 (strongSwan, libreswan)."""


def generate() -> str:
    """A secret that nobody guesses."""
    return secrets.choice(_LETTERS) + "".join(secrets.choice(_CHARACTERS) for _ in range(LENGTH - 1))


def main() -> int:
    """Print one."""
    sys.stdout.write(generate() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
