"""Foreign packets for every test that asks for `golden`: tests/golden/isakmp, one parameter a message."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings

# a busy machine is slow, not wrong; what costs too much is tested by itself
settings.register_profile("codec", deadline=None)
settings.load_profile("codec")

GOLDEN = Path(__file__).parents[2] / "golden" / "isakmp"


@dataclass
class Golden:
    """A captured message; `body` is plaintext, `tshark` what tshark saw in it."""

    name: str
    header: bytes = b""
    body: bytes = b""
    tshark: dict[str, list[str]] = field(default_factory=dict)

    @property
    def number(self) -> int:
        return int(self.name.split()[1].split("-")[1])

    @property
    def clear(self) -> bool:
        return not self.header[19] & 1


def read(path: Path) -> list[Golden]:
    messages: list[Golden] = []
    for line in path.read_text().splitlines():
        match line.split(" "):
            case ["message", name, "from", sender]:
                messages.append(Golden(f"{path.stem} {name} {sender}"))
            case ["header", digits]:
                messages[-1].header = bytes.fromhex(digits)
            case ["body", digits]:
                messages[-1].body = bytes.fromhex(digits)
            case ["tshark", name, values]:
                messages[-1].tshark[name] = values.split(",")
    return messages


MESSAGES = [message for path in sorted(GOLDEN.glob("*.txt")) for message in read(path)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" in metafunc.fixturenames:
        metafunc.parametrize("golden", MESSAGES, ids=lambda message: message.name.replace(" ", "/"))


@pytest.fixture
def golden_messages() -> list[Golden]:
    return MESSAGES
