"""The event loop looks for garbage by time, too."""

import gc
import os
import weakref
from collections.abc import Callable, Iterator

import pytest

from privsep import loop as module
from privsep.loop import Loop


class Circle:
    """Garbage that only the collector frees."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def rarely() -> Iterator[None]:
    """As `sandbox.interpreter` sets the collector, and rarer."""
    threshold = gc.get_threshold()
    gc.set_threshold(10_000_000)
    yield
    gc.set_threshold(*threshold)


@pytest.mark.usefixtures("rarely")
def test_what_a_burst_leaves_behind_is_freed_though_nothing_more_happens(monkeypatch):
    monkeypatch.setattr(module, "TIDY_SECONDS", 0.2)
    loop, circles = Loop(), []
    reader, writer = os.pipe()

    def readable() -> None:
        os.read(reader, 1)
        circles.append(weakref.ref(Circle()))
        if len(circles) == 1:
            # at the first turn the collector looked already
            loop.after(0.05, lambda: os.write(writer, b"x"))

    loop.on_readable(reader, readable)
    os.write(writer, b"x")
    looks = []

    def look(generation: int = 2, collect: Callable[[int], int] = gc.collect) -> int:
        looks.append(generation)
        return collect(generation)

    monkeypatch.setattr(module.gc, "collect", look)
    loop.after(0.7, loop.stop)
    loop.run()
    assert [circle() for circle in circles] == [None, None]
    assert looks.count(1) <= 3, "an idle process is left alone"
