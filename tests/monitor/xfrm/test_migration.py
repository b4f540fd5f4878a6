"""A peer at another address: which SAs go there by XFRM_MSG_MIGRATE, and what becomes of those that do not."""

import errno
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from monitor.dataplane import Cpis, DataplaneError
from monitor.xfrm.client import HOLD_SECONDS, KernelDataplane, Later
from monitor.xfrm.messages import Migrate, NewSa, Type
from monitor.xfrm.migration import one_round
from monitor.xfrm.netlink import KernelError, XfrmNetlink
from monitor.xfrm.sa import SaId
from monitor.xfrm.structs import Direction, KernelMode
from privsep.config.lanes import KernelOptions, Lane
from privsep.iana import ProtocolId
from privsep.types import Role, Spi

SOURCE = Path(__file__).parents[2] / "golden" / "xfrm" / "migrate.c"
WHERE, THERE = "192.0.2.2", "198.51.100.9"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_message_has_the_octets_of_the_kernels_own_header(kit, tmp_path):
    """iproute2 sends none."""
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", tmp_path / "migrate", SOURCE], check=True)
    theirs = bytes.fromhex(subprocess.run([tmp_path / "migrate"], capture_output=True, text=True, check=True).stdout)
    policy = kit.policy(kernel=KernelOptions(lane=Lane(if_id_in=41, if_id_out=42)))
    pair = kit.pair(policy, **kit.natted | {"remote": kit.endpoint(THERE, 40001)})
    ours, *_ = one_round(policy, pair)
    ours["header"]["flags"] |= 0x1 | 0x4
    ours.encode()
    assert kit.flatten(bytes(ours.data)) == kit.flatten(theirs)
    assert bytes(ours.data) == theirs


def padded(address):
    return address.ljust(16, b"\0")


class Kernel:
    """As Linux does it: the first SA between the old addresses, then the templates; without one of those, nothing."""

    def __init__(self):
        self.done = []
        self.sas = {}
        self.policies = {}
        self.refuse = lambda message: 0
        self.next_spi = 0x1000

    def of(self, kind):
        return [message for message in self.done if message.kind is kind]

    def do(self, message):
        self.done.append(message)
        number = self.refuse(message) or self._carry_out(message)
        if number:
            raise KernelError(message.kind.name, number)

    def _carry_out(self, message):
        match message.kind:
            case Type.NEWSA | Type.UPDSA:
                attributes = dict(message["attrs"])
                name = padded(message["id.daddr"]), message["id.proto"], message["id.spi"]
                if message.kind is Type.NEWSA and name in self.sas:
                    return errno.EEXIST
                found = {name: dict.get(message, name, default) for name, default in NewSa.slots}
                self.sas[name] = found | {"saddr": padded(found["saddr"]), "encap": attributes.get("XFRMA_ENCAP")}
            case Type.DELSA:
                return errno.ESRCH if self.sas.pop(self._name(message), None) is None else 0
            case Type.NEWPOLICY | Type.UPDPOLICY:
                self.policies[self._key(message)] = list(self._templates(dict(message["attrs"])["XFRMA_TMPL"]))
            case Type.MIGRATE:
                return self._migrate(self._key(message), dict(message["attrs"]))
        return 0

    @staticmethod
    def _name(message):
        return padded(message["daddr"]), message["proto"], message["spi"]

    @staticmethod
    def _key(message):
        return message["sel.saddr"], message["sel.daddr"], message["dir"]

    @staticmethod
    def _templates(template):
        while template is not None:
            kind = template["id.proto"], template["mode"], template["reqid"]
            yield kind, (padded(template["saddr"]), padded(template["id.daddr"]))
            template = template.get("next")

    def _migrate(self, key, attributes):
        move, encap = attributes["XFRMA_MIGRATE"], attributes.get("XFRMA_ENCAP")
        if key not in self.policies:
            return errno.ENOENT
        kind = move["proto"], move["mode"], move["reqid"]
        old, new = (tuple(padded(move[f"{age}_{end}"]) for end in ("saddr", "daddr")) for age in ("old", "new"))
        matching = [
            at
            for at, (its, ends) in enumerate(self.policies[key])
            if its == kind and (kind[1] is KernelMode.TRANSPORT or ends == old)
        ]
        if not matching:
            return errno.ENODATA
        for name, found in self.sas.items():
            if (found["id.proto"], found["mode"], found["reqid"]) == kind and (found["saddr"], name[0]) == old:
                if kind[0] == 108 and encap:
                    return errno.ENODATA
                moved = new[1], *name[1:]
                if moved != name and moved in self.sas:
                    return errno.ENODATA
                del self.sas[name]
                self.sas[moved] = found | {"saddr": new[0], "encap": encap or found["encap"]}
                break
        for at in matching:
            self.policies[key][at] = kind, new if kind[1] is KernelMode.TUNNEL else self.policies[key][at][1]
        return 0

    do_unless = XfrmNetlink.do_unless

    def ask(self, message, answer):
        self.done.append(message)
        found = answer()
        if message.kind is Type.ALLOCSPI:
            found["id.spi"], self.next_spi = self.next_spi.to_bytes(4), self.next_spi + 1
            return found
        if self._name(message) not in self.sas:
            raise KernelError("GETSA", errno.ESRCH)
        found.update(self.sas[self._name(message)])
        return found


@pytest.fixture
def kernel():
    return Kernel()


class World:
    """A policy, what was installed under it, and what ended by itself."""

    def __init__(self, kit, kernel, clock, policy):
        self.kit, self.kernel, self.policy, self.ended = kit, kernel, policy, []
        self.plane = KernelDataplane(kernel, Later(clock, lambda spi, hard: self.ended.append((spi, hard))))
        kit.result(self.plane.add_policy(policy))

    def install(self, role=Role.RESPONDER, **changes):
        ends = self.kit.natted | {"remote": self.kit.endpoint(WHERE, 40000)} | changes
        spi = self.plane.allocate_spi(ends["local"], ends["remote"], ProtocolId.ESP)
        cpis = None
        if self.policy.ipcomp:
            cpi = self.plane.allocate_spi(ends["local"], ends["remote"], ProtocolId.IPCOMP)
            cpis = Cpis(inbound=cpi, outbound=cpi + 0x100)
        values = {"spi_in": spi, "spi_out": Spi(spi + 0x1000), "role": role, "ipcomp": cpis}
        pair = self.kit.pair(self.policy, **values | ends)
        self.kit.result(self.kit.install(self.plane, pair))
        return pair

    def migrate(self, *pairs):
        return self.kit.result(self.plane.migrate(self.policy, pairs, self.there))

    @property
    def there(self):
        return self.kit.endpoint(THERE, 40001)

    def places(self):
        """Ends of each SA, with what is encapsulated."""
        short = {padded(self.kit.endpoint(address).address.packed): address for address in (WHERE, THERE, "192.0.2.1")}
        return sorted((short[found["saddr"]], short[name[0]]) for name, found in self.kernel.sas.items())


@pytest.fixture
def world(kit, kernel, clock):
    return World(kit, kernel, clock, kit.policy())


def from_and_to(address):
    return [("192.0.2.1", address), (address, "192.0.2.1")]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_all_pairs_go_whichever_the_kernel_takes_first(world, count):
    pairs = [world.install() for _ in range(count)]
    assert world.places() == sorted(count * from_and_to(WHERE))
    assert world.migrate(*reversed(pairs)) == tuple(pair.spi_in for pair in reversed(pairs))
    assert world.places() == sorted(count * from_and_to(THERE))
    assert world.ended == []


def test_ports_go_with_the_addresses(world):
    world.migrate(world.install())
    ports = {
        tuple(int.from_bytes(found["encap"][end]) for end in ("sport", "dport")) for found in world.kernel.sas.values()
    }
    assert ports == {(4500, 40001), (40001, 4500)}


def test_without_udp_no_ports_are_said(kit, world):
    pair = world.install(encap=False, local=kit.endpoint("192.0.2.1"))
    assert world.migrate(pair) == (pair.spi_in,)
    assert all("XFRMA_ENCAP" not in dict(message["attrs"]) for message in world.kernel.of(Type.MIGRATE))


def test_a_pair_that_went_is_known_and_removed_by_its_new_ends(kit, world):
    pair = world.install()
    world.migrate(pair)
    before, after = (SaId(kit.endpoint(at).address, ProtocolId.ESP, pair.spi_out) for at in (WHERE, THERE))
    assert (world.plane.owner(before), world.plane.owner(after)) == (None, pair.spi_in)
    kit.result(world.plane.remove(replace(pair, remote=world.there)))
    assert world.kernel.sas == {}


def test_policies_of_every_direction_and_lane_go(kit, kernel, clock):
    selectors = kit.selectors("10.2.0.0/16", "10.3.0.0/16")
    policy = kit.policy(kernel=KernelOptions(lane=Lane(if_id_in=41, if_id_out=42)), remote_ts=selectors)
    world = World(kit, kernel, clock, policy)
    world.migrate(world.install())
    sent = [
        (message["dir"], *(values["value"] for name, values in message["attrs"] if name == "XFRMA_IF_ID"))
        for message in kernel.of(Type.MIGRATE)
    ]
    assert sent == 2 * [(Direction.OUT, 42), (Direction.IN, 41), (Direction.FWD, 41)]
    ends = {ends for templates in kernel.policies.values() for _, ends in templates}
    assert ends == {(padded(source), padded(destination)) for source, destination in packed(kit, THERE)}


def packed(kit, address):
    here, there = kit.endpoint("192.0.2.1").address.packed, kit.endpoint(address).address.packed
    return (here, there), (there, here)


def test_selectors_that_come_to_the_same_are_one_policy_that_goes(kit, kernel, clock):
    """As where only one side names a protocol: a second message for it would be refused."""
    tcp = kit.selectors("10.1.0.0/16", protocol=6)
    both = (*tcp, *kit.selectors("10.1.0.0/16"))
    world = World(kit, kernel, clock, kit.policy(local_ts=both, remote_ts=kit.selectors("10.2.0.0/16", protocol=6)))
    pairs = world.install(), world.install()
    assert world.migrate(*pairs) == tuple(pair.spi_in for pair in pairs)


def test_policies_without_templates_stay(kit):
    """Neighbours find each other in clear wherever they are."""
    policy = replace(kit.over_ipv6, local_ts=kit.selectors("2001:db8::1/128"), remote_ts=kit.selectors("2001:db8::/32"))
    pair = kit.pair(policy, remote=kit.endpoint("2001:db8::9"))
    sent = list(one_round(policy, pair))
    assert [message["dir"] for message in sent] == [Direction.OUT, Direction.IN, Direction.FWD]
    ends = dict(sent[0]["attrs"])["XFRMA_MIGRATE"]
    assert (ends["old_daddr"], ends["new_daddr"]) == (policy.remote.address.packed, pair.remote.address.packed)
    assert ends["old_family"] == ends["new_family"] == 10


def test_ipcomp_goes_with_what_is_around_it_and_has_no_ports(kit, kernel, clock):
    world = World(kit, kernel, clock, kit.policy(ipcomp=True))
    pair = world.install()
    assert len(kernel.sas) == 4
    assert world.migrate(pair) == (pair.spi_in,)
    assert world.places() == sorted(2 * from_and_to(THERE))
    kit.result(world.plane.remove(replace(pair, remote=world.there)))
    assert kernel.sas == {}


@pytest.mark.parametrize("number", [errno.ENOPROTOOPT, errno.ENOENT])
def test_where_the_kernel_cannot_everything_stays(kit, world, number):
    world.kernel.refuse = lambda message: number if isinstance(message, Migrate) else 0
    pair = world.install()
    with pytest.raises(DataplaneError, match="MIGRATE"):
        world.migrate(pair)
    assert world.places() == from_and_to(WHERE)
    assert world.ended == []
    kit.result(world.plane.remove(pair))
    assert world.kernel.sas == {}


def test_a_pair_that_is_torn_apart_ends(world):
    def refuse(message):
        return errno.ENODATA if isinstance(message, Migrate) and message["dir"] is not Direction.OUT else 0

    world.kernel.refuse = refuse
    pair = world.install()
    with pytest.raises(DataplaneError):
        world.migrate(pair)
    assert world.kernel.sas == {}
    assert world.ended == [(pair.spi_in, True)]


def test_where_a_place_is_taken_everything_stays(kit, world):
    """Another peer behind that NAT has chosen the same SPI."""
    first, second = world.install(), world.install()
    ends = {"remote": world.there, "local": second.local, "encap": True}
    other = kit.pair(kit.policy(number=8), spi_in=Spi(0x9999), spi_out=second.spi_out, **ends)
    world.kernel.next_spi = 0x9999
    world.plane.allocate_spi(other.local, other.remote, ProtocolId.ESP)
    kit.result(kit.install(world.plane, other))
    places = world.places()
    with pytest.raises(DataplaneError, match="stands where a pair would go"):
        world.migrate(first, second)
    assert (world.places(), world.kernel.of(Type.MIGRATE), world.ended) == (places, [], [])


@pytest.mark.parametrize("refused", [Type.NEWPOLICY, Type.MIGRATE])
def test_of_two_pairs_one_may_go_and_the_other_end(world, refused):
    """When the kernel refuses to put the policy back, or the second round."""
    first, second = world.install(), world.install()
    world.kernel.done.clear()

    def refuse(message):
        late = len(world.kernel.of(Type.MIGRATE)) > 3 or message.kind is not Type.MIGRATE
        return errno.ENOMEM if message.kind is refused and late else 0

    world.kernel.refuse = refuse
    # the forward policy takes the second's inbound SA with it in the first round
    assert world.migrate(first, second) == (first.spi_in,)
    assert world.ended == [(second.spi_in, True)]
    assert world.places() == from_and_to(THERE)


def test_a_pair_that_ended_meanwhile_is_nowhere(kit, world):
    pair = world.install()
    kit.result(world.plane.remove(pair))
    assert world.migrate(pair) == ()
    assert world.ended == []


def test_a_pair_that_waits_begins_where_its_peer_is(kit, world, clock):
    old, waiting = world.install(), world.install(Role.INITIATOR)
    assert world.migrate(old, waiting) == (old.spi_in, waiting.spi_in)
    clock.advance(HOLD_SECONDS)
    assert world.places() == sorted(2 * from_and_to(THERE))
    sent = world.kernel.of(Type.NEWSA)[-1]
    assert (sent["id.spi"], dict(sent["attrs"])["XFRMA_ALG_AEAD"]["key"]) == (
        waiting.spi_out.to_bytes(4),
        waiting.encryption_out,
    )


def test_a_pair_that_waits_and_went_never_sends_once_it_is_removed(kit, world, clock):
    old, waiting = world.install(), world.install(Role.INITIATOR)
    world.migrate(old, waiting)
    kit.result(world.plane.remove(replace(waiting, remote=world.there)))
    clock.advance(HOLD_SECONDS)
    assert world.places() == from_and_to(THERE)


def test_the_half_of_a_pair_that_never_sent_goes_and_is_not_waited_for(kit, world):
    """Adopted from a daemon that ended before it was to send."""
    pair = world.install()
    for name in [name for name in world.kernel.sas if name[0] == padded(pair.remote.address.packed)]:
        del world.kernel.sas[name]
    plane = world.plane = KernelDataplane(world.kernel, world.plane._later)
    kit.result(plane.add_policy(world.policy))
    kit.result(plane.adopt(pair))
    assert world.migrate(pair) == (pair.spi_in,)
    assert world.places() == [(THERE, "192.0.2.1")]
    world.install(Role.INITIATOR, remote=world.there)
    assert ("192.0.2.1", THERE) in world.places()


@pytest.mark.parametrize("goes", [True, False])
def test_the_new_pair_waits_only_where_an_old_one_sends(world, goes):
    """What is left behind sends by a policy that is there no more."""
    pair = world.install()
    if goes:
        world.migrate(pair)
    world.install(Role.INITIATOR, remote=world.there)
    there = [ends for ends in world.places() if THERE in ends]
    assert len(there) == (3 if goes else 2)
    assert len(world.kernel.of(Type.NEWSA)) == (1 if goes else 2)
