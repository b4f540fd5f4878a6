"""An error of ours costs one exchange (DESIGN section 3), and is logged without opening a file."""

import pytest

from privsep.errors import PeerError
from privsep.log import Level
from privsep.tasks import Future
from worker.context import Context
from worker.errors import Failed


@pytest.fixture
def logged():
    return []


@pytest.fixture
def context(logged):
    from privsep.config.model import DataplaneChoice, Gateway, Users

    gateway = Gateway(
        listen=(),
        dataplane=DataplaneChoice.AUTO,
        users=Users(worker=(1, 1), keyd=(2, 2), userspace=(3, 3)),
        absent=frozenset(),
        connections=(),
    )
    return Context(gateway, bytes, lambda level, code, **fields: logged.append((level, code, fields)))


def test_an_unexpected_exception_is_logged_with_its_place_and_goes_no_further(context, logged):
    waiting: Future[None] = Future()

    async def broken() -> None:
        await waiting
        raise KeyError("a secret that must not be logged")

    context.spawn(broken(), "code", lambda: {"connection": "paris"})
    waiting.set_result(None)
    ((level, code, fields),) = logged
    assert (level, code) == (Level.ERROR, "internal-error")
    assert fields["connection"] == "paris"
    assert fields["error"] == "KeyError"
    assert "broken" in fields["where"]
    assert "secret" not in str(fields)


@pytest.mark.parametrize("error", [PeerError("not acceptable"), Failed("not acceptable")])
def test_what_the_peer_or_the_network_is_at_fault_for_is_told_as_such(context, logged, error):
    async def failing() -> None:
        raise error

    context.spawn(failing(), "main-mode-failed", dict)
    assert logged == [(Level.INFO, "main-mode-failed", {"reason": "not acceptable"})]


def test_what_is_no_exception_of_a_program_ends_the_process(context):
    async def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        context.spawn(interrupted(), "code", dict)
