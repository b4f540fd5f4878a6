"""A captured worker looks for secrets: in its memory, at other doors of keyd, in core files, by asking."""

import contextlib
import resource
from pathlib import Path

import msgpack
import pytest
from lab import LEFT, LEFT_HOST
from load import Load
from memory import open_session, search
from test_reach_out import BARE, KILLED
from world import ESP, IKE, SECOND, SECOND_HOST, SECOND_PSK, Plan

from privsep.schema import install, keyd, keymat
from privsep.schema.codec import MAX_SEQUENCE, SchemaError

CRASH = "ctypes.string_at(0)"
OWN_BARE = BARE.without(worker="# a world of its own, where nobody has left the network namespace")


@pytest.mark.filterwarnings("ignore:Diffie-Hellman over finite fields")
def test_its_memory_holds_no_secret_of_a_running_session(world, record):
    """SKEYID and all that follows from it, both g^xy, KEYMAT (RFC 2409 section 5): the peer of the test knows them."""
    peer = {"local": SECOND, "remote": LEFT, "inner": SECOND_HOST, "other": LEFT_HOST, "psk": SECOND_PSK}
    load = world.network.right.enter(lambda: Load(**peer, ike=IKE, esp=ESP))
    try:
        wanted = open_session(load) | {"PSK": SECOND_PSK.encode()}
    finally:
        load.close()
    assert len(wanted) == 10
    assert search(world.pid("worker"), "worker", wanted) == set()
    assert world.bystander_works()
    # the search finds them where they are, and finds in the worker what is put there
    assert search(world.pid("keyd"), "keyd", wanted) >= {"PSK", "SKEYID_d", "SKEYID_a", "the cipher's key"}
    world.attack("planted = bytes.fromhex(octets)", octets=wanted["SKEYID_d"].hex())
    assert search(world.pid("worker"), "worker", wanted) == {"SKEYID_d"}
    assert world.attempt("libc.umask(0)") == KILLED
    record("no operation of keyd returns a secret", "planted: found")


@pytest.fixture(autouse=True, scope="module")
def cores_allowed():
    """Whoever starts the daemon sets no limit on core files: it is the daemon that prevents them."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


@contextlib.contextmanager
def cores_of(world):
    """A function that names the new core files below the run directory, where the worker's working directories are."""

    def found() -> set[Path]:
        return {file for file in world.victim.run_dir.rglob("core*") if file.is_file()}

    before = found()
    yield lambda: found() - before
    for file in found() - before:
        file.unlink()


def test_a_crash_leaves_no_core_file(worlds, record):
    # started here, so that it runs without a limit: the same plan by another name
    plan = Plan().without(worker="pass")
    world = worlds(plan)
    with cores_of(world) as cores:
        assert world.attempt(CRASH) == "killed by SIGSEGV"
        assert cores() == set()
    assert world.bystander_works()
    bare = worlds(OWN_BARE)
    with cores_of(bare) as cores:
        assert bare.attempt(CRASH) == "killed by SIGSEGV, core dumped"
        assert len(cores()) == 1
    record("not dumpable, core limit 0, no directory to write to", "unconfined: the core file is there")


KNOCK = """
names = [line.split()[7] for line in open("/proc/net/unix").read().splitlines()[1:] if len(line.split()) > 7]
opened = []
for name in sorted({*names, *more, *(f"{directory}/{each}" for each in more for directory in directories)}):
    knock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        knock.connect("\\0" + name[1:] if name.startswith("@") else name)
        opened.append(name)
    except OSError:
        pass
    knock.close()
result = opened
"""
VISIBLE = "entry.Wire.hide = lambda self: None"
"""keyd leaves its endpoint's name in its directory."""


def knock(world):
    names = ["keyd.sock", "@keyd.sock", "monitor.sock", "@keyd", "@monitor", "redeem.sock"]
    directories = [str(path) for path in (world.victim.run_dir, *world.victim.run_dir.rglob("*")) if path.is_dir()]
    return world.attack(KNOCK, more=names, directories=directories)


def test_no_name_leads_to_keyd_not_even_without_a_filter(worlds, record):
    """The channel between keyd and the monitor is a pair without a name; keyd's other endpoint loses its name."""
    assert worlds(Plan()).attempt("socket.socket(socket.AF_UNIX)") == "killed by SIGSYS"
    bare = worlds(OWN_BARE)
    # even as root, nothing but the operator's door, which asks who knocks and never gives a key
    assert knock(bare) == [str(bare.victim.run_dir / "control.sock")]
    visible = worlds(OWN_BARE.without(keyd=VISIBLE))
    assert any(name.endswith("keyd.sock") for name in knock(visible))
    record("no name in the file system or elsewhere", "endpoint left visible: it answers")


ASK_FOR_KEYS = """
me.keyd(ops.Drop(handle=bytes(16)))
me.raw_keyd(msgpack.packb([number, 2**41, bytes(16)], use_bin_type=True))
result = plain(me.wait(2**41, me._turn))
"""
REDEEMS_FOR_THE_WORKER = """
from privsep.schema import keyd as ops, keymat
from keyd.service import Service
from keyd.phase2 import Phase2

answers = (keymat.Redeemed, keymat.RedeemedOutbound, keymat.NotRedeemable)
for table, kinds in ((ops.REQUESTS, (keymat.RedeemInbound, keymat.RedeemOutbound)), (ops.REPLIES, answers)):
    for number, kind in enumerate(kinds, 15):
        layout = keymat.REQUESTS._by_type.get(kind) or keymat.REPLIES._by_type.get(kind)
        table._by_number[number], table._by_type[kind] = layout[1], (number, layout[1])
before = Service.handle

def handle(self, request):
    return self.redeem(request) if isinstance(request, keymat.Redemption) else before(self, request)

Service.handle = handle
"""
UNDERSTANDS = """
from privsep.schema import keyd as ops, keymat
for number, kind in enumerate((keymat.Redeemed, keymat.RedeemedOutbound, keymat.NotRedeemable), 15):
    layout = keymat.REPLIES._by_type[kind][1]
    ops.REPLIES._by_number[number], ops.REPLIES._by_type[kind] = layout, (number, layout)
"""


def test_redeeming_on_its_own_channel_ends_the_epoch(worlds, record):
    world = worlds(Plan())
    mark = world.mark()
    assert world.attempt(ASK_FOR_KEYS, number=15).startswith(("killed", "exit", "Lost"))
    assert world.logged(mark, r'^keyd: error epoch-ends reason="violation: no such operation on this channel"$')
    world.recover()
    assert world.bystander_works()
    lax = worlds(Plan().without(keyd=REDEEMS_FOR_THE_WORKER, worker=UNDERSTANDS))
    assert lax.attack(ASK_FOR_KEYS, number=15)["kind"] == "NotRedeemable"
    record("the channel's table of operations", "operation added to the table: it is answered")


def numbers(table) -> set[int]:
    """Operations that a table answers for, of all that fit into a frame's first two octets and some beyond."""
    known = set()
    for number in (*range(-40, 1 << 16), 1 << 31, 1 << 63, MAX_SEQUENCE):
        try:
            table.decode(msgpack.packb([number, 1]))
            known.add(number)
        except SchemaError as error:
            if "no such operation" not in str(error) and "not a number" not in str(error):
                known.add(number)
    return known


def test_nothing_can_be_said_that_is_not_in_the_tables(record):
    assert numbers(keyd.REQUESTS) == set(range(1, 15))
    assert numbers(install.FROM_WORKER) == set(install.FROM_WORKER._by_number)
    # either half of keymat, a level of the log, where the peers of names are
    assert numbers(keymat.REQUESTS) == {1, 2, 3, 4}
    record("the channel's table of operations", "each listed number is known")


def test_no_message_to_the_worker_has_a_field_for_a_key(record):
    """Only `keymat.Redeemed` has: it travels between keyd and the monitor alone."""
    keyed = {"encryption_in", "encryption_out", "integrity_in", "integrity_out"}
    for table in (keyd.REPLIES, install.FROM_MONITOR):
        fields = {name for layout in table._by_number.values() for name, _, _ in layout.fields}
        assert not fields & keyed
    control = {name for layout in keymat.REPLIES._by_number.values() for name, _, _ in layout.fields}
    assert control >= keyed
    record("schemas without a word for keys", "the monitor's channel has the words")
