"""Settings for all tests."""

from hypothesis import settings

# CI machines stall; a slow example is no failure
settings.register_profile("default", deadline=None)
settings.load_profile("default")
