"""As in tests/worker/codec: a busy machine is slow, not wrong; what costs too much is tested by itself."""

from hypothesis import settings

settings.register_profile("codec", deadline=None)
settings.load_profile("codec")
