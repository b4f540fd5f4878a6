"""A stranger floods the worker with first messages from forged addresses: it meets budgets, and peers go on.

The control is the same flood against a worker whose budgets are lifted.
"""

import random
import time

from bounds import MEGABYTE, growth, others_are_served
from lab import LEFT, run, wait_for
from spoof import first_message, padded, raw_socket, send
from world import IKE, Plan

MESSAGES, PER_SECOND = 2000, 250
OCTETS = 14_000
SHIPPED = Plan(captured=("worker",))
LIFTED = SHIPPED.without(
    worker="""
from worker import half_open
half_open.ORDINARY_OCTETS = half_open.LARGE_OCTETS = 2**40
"""
)


def swollen(world) -> int:
    """What the flood costs the worker, in octets; what it is answered with does not matter."""
    for site in (world.network.left, world.network.right):
        run("ip", "-n", site.namespace, "link", "set", "wire0", "mtu", "60000")
    sock, template = world.network.right.enter(raw_socket), first_message(IKE)
    with others_are_served(world), growth(world.pid("worker")) as sizes:
        began = time.monotonic()
        for number in range(MESSAGES):
            # `lax` describes these addresses
            source = f"192.0.2.{random.randrange(100, 250)}"
            send(sock, padded(template, OCTETS, number), source, 1024 + number, LEFT)
            time.sleep(max(0.0, began + number / PER_SECOND - time.monotonic()))
        time.sleep(1)
    sock.close()
    return max(sizes) - sizes[0]


def test_it_cannot_fill_the_worker_with_large_first_messages(worlds, record):
    world = worlds(SHIPPED)
    bounded = swollen(world)
    assert bounded < 12 * MEGABYTE
    world.honest.cli("up", "peer/net")
    assert wait_for(world.bystander_works)
    lifted = swollen(worlds(LIFTED))
    assert lifted > 18 * MEGABYTE
    record(f"octets of first messages are bounded ({bounded >> 20} MiB)", f"not bounded: {lifted >> 20} MiB")
