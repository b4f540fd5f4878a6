"""Settings for all tests: tiers by directory, and what CI machines need."""

import signal
from pathlib import Path

import pytest
from hypothesis import settings

# CI machines stall; a slow example is no failure
settings.register_profile("default", deadline=None)
settings.load_profile("default")

# a shell ignores SIGINT for what it starts in the background, and so do its children: whoever is sent one here was
# started by a test in the foreground
signal.signal(signal.SIGINT, signal.default_int_handler)

TIERS = ("process", "redteam", "interop", "kernel")
"""Directories whose tests start whole daemons; each is a marker of its own, and `make test` runs what is in none."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier, before -m selects."""
    here = Path(__file__).parent
    for item in items:
        top = item.path.relative_to(here).parts[0]
        if top in TIERS:
            item.add_marker(top)
