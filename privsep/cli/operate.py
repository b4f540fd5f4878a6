"""Commands that ask the running daemon: `status`, `up`, `down`, `reload`, `log`, `events`."""

import argparse
import json
import shutil
import sys
import time

from privsep.cli.control import Message, add_run_dir, ask
from privsep.cli.exits import Exit
from privsep.cli.render import Style, status_text
from privsep.log import Level, escape, quoted

STATUS_SECONDS = 10.0
ORDER_SECONDS = 60
MAX_ORDER_SECONDS = 600
"""What the daemon admits."""
_LEVELS = ", ".join(level.value for level in Level)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the six."""
    parser = commands.add_parser(
        "status",
        help="connections, IKE SAs, child SAs",
        description="Show each connection with its IKE SA and the child SAs that carry its traffic.",
    )
    parser.add_argument("connection", metavar="CONNECTION", nargs="?", type=_name, help="only this one")
    add_asking(parser)
    parser.set_defaults(run=status)

    parser = commands.add_parser(
        "up",
        help="negotiate a connection or a child now",
        description="Negotiate with the peer, print each step, and say why when it fails.",
    )
    _add_order(parser)
    parser.set_defaults(run=up)

    parser = commands.add_parser(
        "down",
        help="end a connection or a child",
        description="Tell the peer and delete the SAs. Traffic then waits; it is never sent in the clear.",
    )
    _add_order(parser)
    parser.set_defaults(run=down)

    parser = commands.add_parser(
        "reload",
        help="not in this release: restart the daemon",
        description="Not in this release, which takes a changed gateway.toml only when it starts: restart the daemon. "
        "The command asks the daemon all the same, which may be a later one.",
    )
    parser.add_argument("--plan", action="store_true", help="not in this release either")
    add_run_dir(parser)
    parser.set_defaults(run=reload)

    parser = commands.add_parser(
        "log",
        help="log more or less, until the daemon ends",
        description="Set what the daemon logs: events of that level and higher ones, about one connection or about all "
        "that have no level of their own. It lasts until the daemon ends; the configuration has `log` for good.",
    )
    parser.add_argument("level", metavar="LEVEL", choices=[level.value for level in Level], help=_LEVELS)
    parser.add_argument("connection", metavar="CONNECTION", nargs="?", type=_name, help="only about this one")
    add_run_dir(parser)
    parser.set_defaults(run=set_level)

    parser = commands.add_parser(
        "events",
        help="follow state changes as they happen",
        description="Print a line for each state change, until interrupted.",
    )
    add_asking(parser, "print one JSON object a line")
    parser.set_defaults(run=events)


def add_asking(parser: argparse.ArgumentParser, help_: str = "print one JSON document") -> None:
    """Options of every command that reads from the daemon."""
    parser.add_argument("--json", action="store_true", help=help_)
    add_run_dir(parser)


def _add_order(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="CONNECTION[/CHILD]", type=_target, help="without a child: all of them")
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        default=ORDER_SECONDS,
        help=f"seconds to wait, 1 to {MAX_ORDER_SECONDS} (default: %(default)s)",
    )
    add_run_dir(parser)


def _name(text: str) -> str:
    if not 1 <= len(text) <= 64:
        raise argparse.ArgumentTypeError("a name has 1 to 64 characters")
    return text


def _target(text: str) -> tuple[str, str]:
    connection, slash, child = text.partition("/")
    return _name(connection), _name(child) if slash else ""


def _seconds(text: str) -> int:
    if not (text.isdecimal() and len(text) <= 3 and 1 <= int(text) <= MAX_ORDER_SECONDS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 1 to {MAX_ORDER_SECONDS}")
    return int(text)


def status(arguments: argparse.Namespace) -> int:
    """The document, or a table made of it."""
    request: Message = {"command": "status"}
    if arguments.connection is not None:
        request["connection"] = arguments.connection
    result = ask(arguments.run_dir, request, seconds=STATUS_SECONDS)
    document = result.get("status")
    if isinstance(document, dict):
        if arguments.json:
            sys.stdout.write(json.dumps(document, indent=2) + "\n")
        else:
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
            sys.stdout.write(status_text(document, Style.of(sys.stdout), width))
    return _end(result)


def up(arguments: argparse.Namespace) -> int:
    """Negotiate; 0 once it is installed."""
    return _order("up", arguments)


def down(arguments: argparse.Namespace) -> int:
    """Delete; 0 once the peer was told."""
    return _order("down", arguments)


def _order(command: str, arguments: argparse.Namespace) -> int:
    connection, child = arguments.target
    request = {"command": command, "connection": connection, "child": child, "timeout": arguments.timeout}
    return _end(ask(arguments.run_dir, request, seconds=arguments.timeout, told=_progress))


def reload(arguments: argparse.Namespace) -> int:
    """Apply, or with --plan only tell."""
    request: Message = {"command": "reload"}
    if arguments.plan:
        request["plan"] = True
    return _end(ask(arguments.run_dir, request, seconds=ORDER_SECONDS, told=_progress))


def set_level(arguments: argparse.Namespace) -> int:
    """In force at once, in every process."""
    request: Message = {"command": "log", "level": arguments.level}
    if arguments.connection is not None:
        request["connection"] = arguments.connection
    return _end(ask(arguments.run_dir, request, seconds=STATUS_SECONDS))


def events(arguments: argparse.Namespace) -> int:
    """Until the daemon ends or the operator interrupts, which is a good end."""

    def told(message: Message) -> None:
        if arguments.json:
            line = json.dumps({name: value for name, value in message.items() if name != "kind"})
        else:
            line = _event_text(message)
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    try:
        return _end(ask(arguments.run_dir, {"command": "events"}, seconds=None, told=told))
    except KeyboardInterrupt:
        return Exit.DONE


def _progress(message: Message) -> None:
    sys.stdout.write(escape(str(message.get("text", "")), 1024) + "\n")
    sys.stdout.flush()


def _event_text(message: Message) -> str:
    seconds, fields = message.get("time"), message.get("fields")
    clock = time.strftime("%H:%M:%S", time.localtime(seconds)) if isinstance(seconds, int | float) else "--:--:--"
    pairs = fields.items() if isinstance(fields, dict) else ()
    words = [str(message[name]) for name in ("process", "level", "event") if name in message]
    values = [f"{escape(name)}={quoted(str(value))}" for name, value in pairs]
    return " ".join([clock, *map(escape, words), *values])


def _end(result: Message) -> int:
    """Say why it failed; the result's code is the exit code."""
    text, code = escape(str(result.get("text", "")), 1024), int(result["code"])
    if text:
        (sys.stderr if code else sys.stdout).write(text + "\n")
    return code if code in set(Exit) else Exit.FAILED
