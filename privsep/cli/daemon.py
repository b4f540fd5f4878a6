"""Commands about the daemon itself and its configuration: `run`, `check`, `selftest`. Each ends in another program.

What touches secrets runs in the package of the process that may: `keyd.check` reads secrets.toml, `keyd.selftest` keys.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from privsep.cli.control import DEFAULT_RUN_DIR
from privsep.cli.exits import Exit
from privsep.config import loader
from privsep.config.model import Gateway
from privsep.config.problems import ConfigError, Problem
from privsep.config.toml_lines import MAX_SIZE, Document
from privsep.errors import OperatorError

DEFAULT_CONFIG = "/etc/privsep-ike/gateway.toml"
SCHEMA_VERSION = 1
_Found = tuple[str, int, str]
"""File, line, what is wrong and what would be right."""
_ISOLATED = ("-I", "-B", "-m")
"""Nothing of the environment or the current directory decides what is imported; no file is written."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the three."""
    parser = commands.add_parser(
        "run",
        help="the daemon, in the foreground (root)",
        description="Run the daemon in the foreground. SIGTERM ends it and says DELETE to all peers.",
    )
    _add_files(parser)
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        default=DEFAULT_RUN_DIR,
        help="names this instance; the other commands find it there (default: %(default)s)",
    )
    parser.set_defaults(run=run)

    parser = commands.add_parser(
        "check",
        help="say everything that is wrong with the configuration",
        description="Validate both files exactly as `run` would, without starting anything.",
    )
    _add_files(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=check)

    parser = commands.add_parser(
        "selftest",
        help="known-answer tests of the key derivation and the ciphers",
        description="Compare the shipped key derivation and ciphers with published answers.",
    )
    parser.add_argument("--cavs", metavar="FILE", help="a NIST CAVS file of IKEv1 with pre-shared keys or signatures")
    parser.set_defaults(run=selftest)


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
        os.execv(sys.executable, [sys.executable, *_ISOLATED, "monitor", *words])  # noqa: S606 - no shell is the point
    return _tell(found)


def check(arguments: argparse.Namespace) -> int:
    """0 without a problem, 3 with any. What this machine can do is told and counts for nothing."""
    config, secrets = _files(arguments)
    gateway, found, notes = _judge(config, secrets)
    dataplane = _dataplane(config) if gateway is not None and not found else None
    if arguments.json:
        problems = [{"file": file, "line": line, "text": text} for file, line, text in found]
        document = {"schema_version": SCHEMA_VERSION, "problems": problems, "dataplane": dataplane}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return Exit.CONFIGURATION_INVALID if found else Exit.DONE
    sys.stderr.writelines(f"{note}\n" for note in notes)
    if gateway is None or found:
        return _tell(found)
    sys.stdout.write(f"{config}: {_summary(gateway)}, no problem found\ndataplane: {dataplane}\n")
    return Exit.DONE


def selftest(arguments: argparse.Namespace) -> int:
    """Become keyd's own test of itself."""
    words = ["--cavs", arguments.cavs] if arguments.cavs is not None else []
    os.execv(sys.executable, [sys.executable, *_ISOLATED, "keyd.selftest", *words])  # noqa: S606 - no shell is the point


def _files(arguments: argparse.Namespace) -> tuple[str, str]:
    config: str = arguments.config
    return config, arguments.secrets or str(Path(config).with_name("secrets.toml"))


def _load(path: str) -> Gateway:
    try:
        with open(path, "rb") as file:
            octets = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise ConfigError(path, [Problem(1, f"cannot be read ({error.strerror}); a readable file is needed")]) from None
    return loader.load(Document.decode(octets, path), path)


def _judge(config: str, secrets: str) -> tuple[Gateway | None, list[_Found], list[str]]:
    """The configuration if it is valid, problems of both files, notes."""
    try:
        gateway = _load(config)
    except ConfigError as error:
        # secrets.toml speaks of connections, so it is judged only beside a valid gateway.toml
        return None, [(config, problem.line, problem.text) for problem in error.problems], []
    return gateway, *_check_secrets(config, secrets)


def _tell(found: list[_Found]) -> int:
    sys.stderr.writelines(f"{file}:{line}: {text}\n" for file, line, text in found)
    return Exit.CONFIGURATION_INVALID


def _check_secrets(config: str, secrets: str) -> tuple[list[_Found], list[str]]:
    """Problems and, if there are none, notes."""
    words = ["--config", config, "--secrets", secrets]
    done = subprocess.run(
        [sys.executable, *_ISOLATED, "keyd.check", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stderr.splitlines()
    if done.returncode == Exit.DONE:
        return [], lines
    if done.returncode != Exit.CONFIGURATION_INVALID:
        raise OperatorError(f"check: {secrets} could not be judged; {lines[-1] if lines else 'no reason given'}")
    problems = []
    for line in lines:
        number, _, text = line.removeprefix(f"{secrets}:").partition(": ")
        problems.append((secrets, int(number) if number.isdecimal() else 1, text))
    return problems, []


def _dataplane(config: str) -> str:
    """Which one `run` would choose here, and why."""
    words = [sys.executable, *_ISOLATED, "monitor.check", "--config", config]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == Exit.DONE else "cannot be told, because asking the kernel failed"


def _summary(gateway: Gateway) -> str:
    connections, children = len(gateway.connections), sum(len(each.children) for each in gateway.connections)
    many, more = "" if connections == 1 else "s", "" if children == 1 else "ren"
    shunts = f", {len(gateway.shunts)} shunt{'' if len(gateway.shunts) == 1 else 's'}" if gateway.shunts else ""
    return f"{connections} connection{many}, {children} child{more}{shunts}"
