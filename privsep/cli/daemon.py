"""Commands about the daemon itself and its configuration, each of which ends in another program.

What touches secrets runs in the package of the process that may: `keyd.check` reads secrets.toml, `keyd.genpsk` makes
secrets, `keyd.selftest` knows keys.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from privsep.cli.control import add_run_dir
from privsep.cli.exits import Exit
from privsep.config import access, loader
from privsep.config.model import Gateway
from privsep.config.problems import ConfigError, Problem
from privsep.config.toml_lines import MAX_SIZE, Document
from privsep.errors import OperatorError
from privsep.log import Level

DEFAULT_CONFIG = "/etc/privsep-ike/gateway.toml"
SCHEMA_VERSION = 1
_Found = tuple[str, int, str]
"""File, line, what is wrong and what would be right."""
_ISOLATED = ("-I", "-B", "-m")
"""Nothing of the environment or the current directory decides what is imported; no file is written."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the five."""
    parser = commands.add_parser(
        "run",
        help="the daemon, in the foreground (root)",
        description="Run the daemon in the foreground. SIGTERM or Ctrl-C ends it and says DELETE to all peers.",
    )
    _add_files(parser)
    add_run_dir(parser, "names this instance; the other commands find it there (default: %(default)s)")
    parser.add_argument(
        "--log-level", metavar="LEVEL", choices=[each.value for each in Level], help="instead of the configuration's"
    )
    parser.set_defaults(run=run)

    parser = commands.add_parser(
        "clear",
        help="remove the policies that a stopped daemon left (root)",
        description="Remove what a daemon that has ended left in place: its networks' traffic then passes in clear.",
    )
    add_run_dir(parser, "of the instance that has ended (default: %(default)s)")
    parser.set_defaults(run=clear)

    parser = commands.add_parser(
        "check",
        help="say everything that is wrong with the configuration",
        description="Validate both files exactly as `run` would, without starting anything.",
    )
    _add_files(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--strict", action="store_true", help="exit 1 where `run` on this machine would fail (root)")
    parser.set_defaults(run=check)

    parser = commands.add_parser(
        "selftest",
        help="known-answer tests of the key derivation and the ciphers",
        description="Compare the shipped key derivation and ciphers with published answers.",
    )
    parser.add_argument("--cavs", metavar="FILE", help="a NIST CAVS file of IKEv1 with pre-shared keys or signatures")
    parser.set_defaults(run=selftest)

    parser = commands.add_parser(
        "genpsk",
        help="print a new pre-shared key",
        description="Print a pre-shared key of 190 random bits, for secrets.toml and the peer's configuration.",
    )
    parser.set_defaults(run=genpsk)


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="FILE", default=DEFAULT_CONFIG, help="connections; no secrets (default: %(default)s)"
    )
    parser.add_argument("--secrets", metavar="FILE", help="pre-shared keys (default: secrets.toml beside the config)")


def run(arguments: argparse.Namespace) -> int:
    """Become the monitor. It judges gateway.toml itself, but never sees secrets.toml: both are judged before."""
    config, secrets = _files(arguments)
    for path in (config, secrets):
        if not os.access(path, os.R_OK):
            raise ConfigError(path, [Problem(1, "cannot be read; it must exist, and root must run this command")])
    if os.geteuid() != 0:
        raise OperatorError("run: the daemon starts as root, to give all of it up but what it needs; try sudo")
    _, found, _ = _judge(config, secrets)
    if not found:
        named = {"--config": config, "--secrets": secrets, "--run-dir": arguments.run_dir}
        words = [word for name, path in named.items() for word in (name, os.path.abspath(path))]
        words += ["--log-level", arguments.log_level] if arguments.log_level is not None else []
        # from here on the end is the monitor's, which takes both once it can end cleanly
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        os.execv(sys.executable, [sys.executable, *_ISOLATED, "monitor", *words])  # noqa: S606 - no shell is the point
    return _tell(found)


def clear(arguments: argparse.Namespace) -> int:
    """Become the part of the monitor that removes."""
    if os.geteuid() != 0:
        raise OperatorError("clear: only root may remove policies; try sudo")
    words = ["--run-dir", os.path.abspath(arguments.run_dir)]
    os.execv(sys.executable, [sys.executable, *_ISOLATED, "monitor.clear", *words])  # noqa: S606 - no shell is the point


def check(arguments: argparse.Namespace) -> int:
    """3 with any problem; 1 with --strict where `run` would fail on this machine; else 0."""
    config, secrets = _files(arguments)
    gateway, found, warnings = _judge(config, secrets)
    machine = _ask_machine(config) if gateway is not None and not found else None
    if machine is not None:
        warnings += [(each["file"], each["line"], each["text"]) for each in machine["warnings"]]
    obstacles: list[str] = machine["obstacles"] if machine is not None else []
    if arguments.json:
        document = {
            "schema_version": SCHEMA_VERSION,
            "problems": _documents(found),
            "warnings": _documents(warnings),
            "dataplane": machine["dataplane"] if machine is not None else None,
            "obstacles": obstacles,
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        sys.stderr.writelines(f"{file}:{line}: {text}\n" for file, line, text in found or warnings)
        if gateway is not None and machine is not None:
            sys.stdout.write(f"{config}: {_summary(gateway)}, no problem found\ndataplane: {machine['dataplane']}\n")
            sys.stdout.flush()
            sys.stderr.writelines(f"`run` would fail on this machine: {obstacle}\n" for obstacle in obstacles)
    if found:
        return Exit.CONFIGURATION_INVALID
    return Exit.FAILED if arguments.strict and obstacles else Exit.DONE


def selftest(arguments: argparse.Namespace) -> int:
    """Become keyd's own test of itself."""
    words = ["--cavs", arguments.cavs] if arguments.cavs is not None else []
    os.execv(sys.executable, [sys.executable, *_ISOLATED, "keyd.selftest", *words])  # noqa: S606 - no shell is the point


def genpsk(arguments: argparse.Namespace) -> int:
    """Become keyd's generator."""
    os.execv(sys.executable, [sys.executable, *_ISOLATED, "keyd.genpsk"])  # noqa: S606 - no shell is the point


def _files(arguments: argparse.Namespace) -> tuple[str, str]:
    config: str = arguments.config
    return config, arguments.secrets or str(Path(config).with_name("secrets.toml"))


def _load(path: str) -> Gateway:
    return loader.load(Document.decode(access.read(path, MAX_SIZE), path), path)


def _judge(config: str, secrets: str) -> tuple[Gateway | None, list[_Found], list[_Found]]:
    """The configuration if it is valid, problems of both files, warnings."""
    try:
        gateway = _load(config)
    except ConfigError as error:
        # secrets.toml speaks of connections, so it is judged only beside a valid gateway.toml
        return None, [(config, problem.line, problem.text) for problem in error.problems], []
    return gateway, *_check_secrets(config, secrets)


def _tell(found: list[_Found]) -> int:
    sys.stderr.writelines(f"{file}:{line}: {text}\n" for file, line, text in found)
    return Exit.CONFIGURATION_INVALID


def _documents(found: list[_Found]) -> list[dict[str, Any]]:
    return [{"file": file, "line": line, "text": text} for file, line, text in found]


def _check_secrets(config: str, secrets: str) -> tuple[list[_Found], list[_Found]]:
    """Problems and, if there are none, warnings."""
    done = _ask("keyd.check", "--config", config, "--secrets", secrets)
    lines = done.stderr.splitlines()
    if done.returncode not in (Exit.DONE, Exit.CONFIGURATION_INVALID):
        raise OperatorError(f"check: {secrets} could not be judged; {lines[-1] if lines else 'no reason given'}")
    found = []
    for line in lines:
        number, _, text = line.removeprefix(f"{secrets}:").partition(": ")
        found.append((secrets, int(number) if number.isdecimal() else 1, text))
    return ([], found) if done.returncode == Exit.DONE else (found, [])


def _ask_machine(config: str) -> dict[str, Any]:
    """What `run` would find here (`monitor/check.py`)."""
    done = _ask("monitor.check", "--config", config)
    if done.returncode != Exit.DONE:
        why = "asking the kernel failed"
        return {"dataplane": f"cannot be told, because {why}", "obstacles": [why], "warnings": []}
    machine: dict[str, Any] = json.loads(done.stdout)
    return machine


def _ask(module: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """One of our programs that runs with privileges or secrets of its own."""
    command = [sys.executable, *_ISOLATED, module, *words]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def _summary(gateway: Gateway) -> str:
    connections, children = len(gateway.connections), sum(len(each.children) for each in gateway.connections)
    many, more = "" if connections == 1 else "s", "" if children == 1 else "ren"
    shunts = f", {len(gateway.shunts)} shunt{'' if len(gateway.shunts) == 1 else 's'}" if gateway.shunts else ""
    return f"{connections} connection{many}, {children} child{more}{shunts}"
