import pytest

from privsep.config.loader import load
from privsep.config.names import Names
from privsep.config.problems import ConfigError

ANSWERS = {
    "user _privsep-worker": "501 601",
    "user _privsep-keyd": "502 602",
    "user _privsep-esp": "503 603",
    "user 61001": "61001 61001",
    "user 61002": "61002 61002",
    "user 61003": "61003 61003",
    "user alice": "1000 1000",
    "user 1000": "1000 1000",
    "user root": "0 0",
    "user 0": "0 0",
    "user wheel": "7 0",
}


@pytest.fixture
def names():
    """What a made-up machine knows."""
    return Names(ANSWERS)


@pytest.fixture
def gateway(names):
    """Loads a text that must be right."""
    return lambda text: load(text, "gateway.toml", names)


@pytest.fixture
def problems(names):
    """The problems of a text that must be wrong, as (line, text)."""

    def find(text: str) -> list[tuple[int, str]]:
        with pytest.raises(ConfigError) as caught:
            load(text, "gateway.toml", names)
        return [(problem.line, problem.text) for problem in caught.value.problems]

    return find
