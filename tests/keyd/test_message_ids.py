"""The message ids of an IKE SA: each once (RFC 2408 section 3.1), in 64 KB at most."""

import random
import sys

from keyd.message_ids import MAX_MESSAGE_IDS, MessageIds


def test_it_knows_what_was_used_and_nothing_else():
    rng, used, known = random.Random(7), {0}, MessageIds()
    for _ in range(2000):
        message_id = rng.choice([rng.randrange(2**32), rng.randrange(100), 2**32 - 1])
        assert (message_id in known) is (message_id in used)
        known.add(message_id)
        used.add(message_id)
        assert len(known) == len(used)
    assert all(each in known for each in used)
    assert not any(each in known for each in range(2**16, 2**16 + 100) if each not in used)


def test_as_many_as_an_ike_sa_has_take_64_kilobytes():
    """A set of 32,768 of them was 3 MB."""
    known = MessageIds()
    for number in range(1, MAX_MESSAGE_IDS):
        assert not known.used_up
        known.add(number * 0x9E3779B1 % 2**32)
    assert known.used_up
    assert sys.getsizeof(known) + sys.getsizeof(known._used) < 80_000
    assert known._used.itemsize * len(known) == 65536
