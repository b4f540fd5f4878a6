"""`python -m monitor.check --config FILE`: what `privsep-ike check` asks of this machine.

Says in one line which data plane `run` would choose here and why; what the kernel lacks goes by its build option.
"""

import argparse
import os
import sys

import prctl

from monitor.plane import foresee
from privsep.config import handover, loader
from privsep.errors import OperatorError


def main() -> int:
    """Always 0: a machine that cannot carry a configuration does not make it wrong."""
    parser = argparse.ArgumentParser("monitor.check", description="Tell which data plane would be chosen.")
    parser.add_argument("--config", required=True)
    arguments = parser.parse_args()
    gateway = loader.load(handover.read_file(arguments.config), arguments.config)
    if os.geteuid() != 0 or not prctl.cap_effective.net_admin:
        print("cannot be told, because only root with CAP_NET_ADMIN may ask the kernel")
        return 0
    try:
        print(foresee(gateway))
    except OperatorError as error:
        print(f"none, because {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
