"""`privsep-ike run` ends up here: read the policy, open what needs root, give up the rest, supervise."""

import argparse
import sys

from monitor import control, sandbox
from monitor.daemon import Daemon
from monitor.directories import Directories
from privsep import log
from privsep.config import handover, loader
from privsep.config.names import Names
from privsep.errors import OperatorError
from privsep.log import Level, event
from privsep.sandbox.confine import become_user, lock_down
from privsep.sandbox.interpreter import report_unhandled

CONFIGURATION_INVALID = 3


def main() -> int:
    """Exit code as CONTRACT.md says: 0, 1, or 3 for a configuration that is not valid."""
    parser = argparse.ArgumentParser("monitor")
    parser.add_argument("--config", required=True)
    parser.add_argument("--secrets", required=True)
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--log-level", choices=[level.value for level in Level])
    arguments = parser.parse_args()
    report_unhandled()
    try:
        text = handover.read_file(arguments.config)
        names = Names()
        gateway = loader.load(text, arguments.config, names)
    except OperatorError as error:
        print(error, file=sys.stderr)
        return CONFIGURATION_INVALID
    log.configure(*gateway.levels)
    try:
        directories = Directories(arguments.run_dir)
        control_socket = control.listen(directories.run_dir)
        try:
            daemon = Daemon(
                gateway,
                directories,
                control_socket,
                handed_over=handover.publish(text, names),
                config=arguments.config,
                secrets=arguments.secrets,
                level=Level(arguments.log_level) if arguments.log_level is not None else None,
            )
        except BaseException:
            control.forget(control_socket)
            raise
    except OperatorError as error:
        event(Level.ERROR, "cannot-start", reason=error)
        return 1
    confinement = sandbox.confinement(0, 0, "/", gateway.absent)
    become_user(confinement)
    lock_down(confinement)
    return daemon.run()


if __name__ == "__main__":
    sys.exit(main())
