"""Words to commands. Every command module registers its own parser with `add_parser`."""

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence

from privsep.cli import audit, daemon, demo, operate
from privsep.cli.control import NotReachable, TimedOut
from privsep.cli.exits import Exit
from privsep.config.problems import ConfigError
from privsep.errors import OperatorError

_DESCRIPTION = """\
An IKE daemon for IPsec tunnels whose network-facing process holds no key.

  check    is my configuration right?        up      negotiate a tunnel now
  run      start the daemon                  down    end a tunnel
  status   which tunnels are there?          events  what happens, as it happens
  audit    is it confined as designed?       demo    see it work, in two namespaces
"""
_EPILOG = """\
exit codes: 0 done, 1 failed, 2 usage, 3 configuration invalid, 4 daemon not reachable, 5 timed out
"""
_CODES = {ConfigError: Exit.CONFIGURATION_INVALID, NotReachable: Exit.NOT_REACHABLE, TimedOut: Exit.TIMED_OUT}


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        "privsep-ike", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {importlib.metadata.version('privsep-ike')}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (daemon, operate, audit, demo):
        module.add_parser(commands)
    return top


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = parser().parse_args(words)
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
    except OperatorError as error:
        sys.stderr.write(f"{error}\n")
        return _CODES.get(type(error), Exit.FAILED)
    except KeyboardInterrupt:
        return Exit.FAILED
    except OSError as error:
        # the reader, `head` say, has seen enough; or a disk is full
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"{error.filename or 'standard output'}: {error.strerror or error}\n")
        # the interpreter's own flush at exit must not complain once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    return code
