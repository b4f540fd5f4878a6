"""What both fuzzers share: a seed, frames through the channel's table, findings that can be repeated."""

import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from contextlib import AbstractContextManager
from random import Random
from typing import Any, NoReturn

import msgpack
from generate import Generator, fat, spoilt, well_formed

from privsep.errors import Violation
from privsep.schema.codec import SchemaError, Table

MAX_GROWTH = 96 * 2**20
"""Octets that a run may take beyond what it started with."""
LOOK_AT_MEMORY_EVERY = 2000
EPOCH_STEPS = 1500
"""Then everything starts anew, so that a long run visits beginnings too."""


class Finding(AssertionError):
    """An invariant is broken. The text has the seed, the step and the last frames."""


class Fuzzer(ABC):
    """One step at a time, each followed by the checks. Equal seeds make equal runs."""

    name: str

    def __init__(self, seed: int, table: Table[Any], **sane: Any) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.generator = Generator(self.random, **sane)
        self.table = table
        self.steps = 0
        self.answered: Counter[str] = Counter()
        """"operation: answer", by the names of both."""
        self.reached: Counter[str] = Counter()
        self.frames: deque[str] = deque(maxlen=12)
        self._trace = hashlib.sha256()
        self._memory = resident()

    @abstractmethod
    def limits(self) -> AbstractContextManager[Any]:
        """Small quotas, so that they are reached."""

    @abstractmethod
    def step(self) -> None:
        """One request, event or mutation, and all checks."""

    def run(self, *, seconds: float = 1e9, steps: int = 10**12) -> "Fuzzer":
        """Go on until either is used up; Finding."""
        end = time.monotonic() + seconds
        with self.limits():
            while self.steps < steps and time.monotonic() < end:
                self.steps += 1
                try:
                    self.step()
                except Finding:
                    raise
                except Exception as error:
                    self.fail(f"{type(error).__name__} escapes", error)
                if self.steps % LOOK_AT_MEMORY_EVERY == 0:
                    self.check(resident() - self._memory < MAX_GROWTH, "memory grows")
        return self

    def check(self, holds: bool, what: str) -> None:
        """An invariant."""
        if not holds:
            self.fail(what)

    def fail(self, what: str, cause: Exception | None = None) -> NoReturn:
        """Say how to see it again."""
        lines = (f"{what}; {self.name}, seed {self.seed}, step {self.steps}; last frames:", *self.frames)
        raise Finding("\n  ".join(lines)) from cause

    def saw(self, operation: str, answer: str) -> None:
        """For coverage and for `trace`."""
        self.answered[f"{operation}: {answer}"] += 1
        self._trace.update(f"{operation}{answer}\n".encode())

    @property
    def trace(self) -> str:
        """All answers so far in one number."""
        return self._trace.hexdigest()

    def through_the_channel(self, who: str, message: Any, sequence: int = 1) -> Any:
        """The message as the other process gets it. What leaves the table is as its annotations say."""
        frame = self.table.encode(message, sequence)
        self.frames.append(f"{who} {type(message).__name__} {frame[:300].hex()}")
        received, number = self.table.decode(frame)
        self.check(received == message and number == sequence, "a message changes on its way")
        return received

    def spoilt_frame(self, message: Any) -> tuple[Any, int] | None:
        """A frame that is almost that message: what the table makes of it, None if it refuses."""
        frame = self.table.encode(message, 1)
        odd = spoilt(self.random, frame)
        self.frames.append(f"spoilt {odd[:300].hex()}")
        try:
            received, sequence = self.table.decode(odd)
        except SchemaError:
            self.answered["frame: refused"] += 1
            return None
        self.answered["frame: admitted"] += 1
        self.check(well_formed(received), f"the codec lets a {type(received).__name__} out of bounds through")
        again, _ = self.table.decode(self.table.encode(received, sequence))
        self.check(again == received, "a message changes when it is sent on")
        return received, sequence

    def spelled_out(self, message: Any) -> None:
        """A longer spelling of a message is that message or is refused, never another."""
        try:
            received, _ = self.table.decode(fat([*_tree(self.table.encode(message, 1))]))
        except SchemaError:
            return
        self.check(received == message, "another spelling is another message")

    def call(self, function: Any, *arguments: Any) -> Any:
        """The result, or the Violation; anything else is a finding."""
        try:
            return function(*arguments)
        except Violation as violation:
            return violation


def _tree(frame: bytes) -> list[Any]:
    tree: list[Any] = msgpack.unpackb(frame, raw=False)
    return tree


def resident() -> int:
    """Octets of memory that this process has now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
