"""Octets of any kind where a ciphertext is expected: an answer, never an exception."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keyd import phase2
from privsep.payloads import join_chain
from privsep.schema import keyd as ops
from privsep.schema.keyd import Refusal

random_octets = st.binary(max_size=400)
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def refused(why: Refusal) -> ops.Refused:
    return ops.Refused(why=why)


@relaxed
@given(random_octets)
def test_random_octets_never_open_as_message_5_or_6(world, octets):
    ike = world.keyed()
    opened = world.right.do(ops.AuthOpen(ike=ike.right, ciphertext=octets))
    assert opened == refused(Refusal.AUTHENTICATION_FAILED)


@relaxed
@given(random_octets, st.integers(1, 2**32 - 1))
def test_random_octets_never_open_in_phase_2(make_world, octets, message_id):
    world = make_world()
    ike = world.main_mode()
    for operation in (ops.InfoOpen, ops.QuickOpen):
        reply = world.right.do(operation(ike=ike.right, message_id=message_id, ciphertext=octets))
        assert reply == refused(Refusal.BAD_HASH)


@relaxed
@given(st.data())
def test_any_plaintext_under_the_right_keys_is_answered_and_never_raises(world, data):
    """What only a peer with the keys can send: chains of any shape, with a HASH that is right or not."""
    ike = world.main_mode()
    sa = world.left.service._registry.get(ike.left)
    message_id = data.draw(st.integers(1, 2**32 - 1))
    plaintext = data.draw(st.binary(max_size=200))
    if data.draw(st.booleans()):
        kinds = st.sampled_from([1, 4, 5, 8, 10, 11, 12, 200])
        first, chain = join_chain(data.draw(st.lists(st.tuples(kinds, st.binary(max_size=40)), max_size=6)))
        value = phase2.ikev1.hash_1(sa.suite.hash, sa.skeyid_a, message_id, chain)
        plaintext = phase2.put_hash(value, (first, chain))
    ciphertext = sa.chain.branch(sa.suite.hash, message_id).seal(plaintext)
    operation = data.draw(st.sampled_from([ops.InfoOpen, ops.QuickOpen]))
    reply = world.right.do(operation(ike=ike.right, message_id=message_id, ciphertext=ciphertext))
    assert isinstance(reply, ops.Opened | ops.QuickOpened | ops.Refused)
