"""`python -m keyd.check --config FILE --secrets FILE`: what `privsep-ike check` asks of secrets.toml.

Problems and warnings go to stderr, a line each; exit 3 if there is a problem. No line repeats a secret.
"""

import argparse
import sys

from keyd import credentials
from privsep.config import handover, loader
from privsep.errors import OperatorError

CONFIGURATION_INVALID = 3


def main() -> int:
    """0 if the daemon would take these files, else 3."""
    parser = argparse.ArgumentParser("keyd.check", description="Validate secrets.toml against gateway.toml.")
    parser.add_argument("--config", required=True)
    parser.add_argument("--secrets", required=True)
    arguments = parser.parse_args()
    try:
        gateway = loader.load(handover.read_file(arguments.config), arguments.config)
        loaded = credentials.load(arguments.secrets, gateway)
    except OperatorError as error:
        print(error, file=sys.stderr)
        return CONFIGURATION_INVALID
    for warning in loaded.warnings:
        print(warning, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
