"""Worlds under attack, and the table of what stopped each attack."""

import os
from collections.abc import Callable, Iterator
from itertools import count

import pytest
from counterpart import Worker
from lab import made
from world import Plan, World

Row = tuple[str, str, str]
ROWS = pytest.StashKey[list[Row]]()


def worker_number() -> int:
    """Which of those that run tests beside one another this is: users of two worlds are never the same."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


@pytest.fixture(scope="session")
def worlds(tmp_path_factory) -> Iterator[Callable[[Plan], World]]:
    """The world of a plan: started when it is first asked for. One that a scenario has broken is started anew."""
    running: dict[Plan, tuple[World, Iterator]] = {}
    users, names = count(64100 + 200 * worker_number(), 20), count()

    def end(plan: Plan) -> None:
        world, network = running.pop(plan)
        world.stop()
        next(network, None)

    def get(plan: Plan) -> World:
        if plan in running:
            world = running[plan][0]
            if world.victim.process.poll() is None and world.honest.process.poll() is None:
                return world
            end(plan)
        network = made(tmp_path_factory, f"red{next(names)}")
        world = World.start(next(network), plan, next(users))
        running[plan] = (world, network)
        return world

    yield get
    for plan in tuple(running):
        end(plan)


@pytest.fixture
def world(worlds) -> World:
    """As shipped, with a captured worker."""
    return worlds(Plan())


@pytest.fixture
def without(worlds):
    """The captured worker in the world of a plan."""
    return lambda plan: Worker(worlds(plan))


@pytest.fixture
def shipped(world):
    """The captured worker as everything ships; whatever it does, the other peer's tunnel carries packets."""
    worker = Worker(world)
    yield worker
    assert worker.harmed_nobody()


@pytest.fixture
def record(request) -> Callable[[str, str], None]:
    """Note for the table: the layer that stopped this scenario's attack, and what its control showed."""
    rows = request.config.stash.setdefault(ROWS, [])

    def note(stopped_by: object, control: object) -> None:
        rows.append((scenario(request.node), str(stopped_by), str(control)))

    return note


def scenario(item: pytest.Item) -> str:
    return f"{item.path.stem.removeprefix('test_')}: {item.name.removeprefix('test_')}"


def pytest_terminal_summary(terminalreporter, config) -> None:
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    terminalreporter.section("red team")
    table = [("SCENARIO", "STOPPED BY", "CONTROL"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(2)]
    for row in table:
        terminalreporter.write_line("  ".join([*(row[c].ljust(widths[c]) for c in range(2)), row[2]]))


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if os.path.dirname(__file__) == str(item.path.parent):
            item.add_marker(pytest.mark.root)
