"""`[shunt.NAME]`: what may stand beside the children, what leaves one of them nothing, what routes cannot do."""

import pytest

from privsep.config.model import Action, Order
from privsep.config.userspace import beyond_userspace

CHILD = """
[connection.paris]
local = "192.0.2.1"
remote = "192.0.2.2"
[connection.paris.child.lan]
local_ts = ["10.1.0.0/16"]
remote_ts = ["10.2.0.0/16"]
"""


def shunt(name="spare", local='"10.1.0.0/16"', remote='"10.2.3.0/24"', action="pass", more=""):
    return f'[shunt.{name}]\nlocal_ts = [{local}]\nremote_ts = [{remote}]\naction = "{action}"\n{more}\n'


LAST = 'order = "last"'


def test_a_shunt_inside_a_child_is_what_they_are_for(gateway):
    loaded = gateway(CHILD + shunt() + shunt("rest", '"0.0.0.0/0"', '"0.0.0.0/0"', "drop", LAST))
    spare, rest = loaded.shunts
    assert (spare.name, spare.action, spare.order) == ("spare", Action.PASS, Order.FIRST)
    assert (rest.action, rest.order) == (Action.DROP, Order.LAST)
    assert str(spare.remote_ts[0]) == "10.2.3.0/24"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (shunt(action="block"), "'block' is not known; one of drop, pass would be right"),
        (shunt(more='order = "lst"'), "did you mean 'last'?"),
        (shunt(more='start = "up"'), "unknown key 'start'"),
        (shunt(remote='"fd00::/16"'), "selectors of IPv4 and of IPv6"),
        (shunt(local='"10.1.0.0/16[udp]"', remote='"10.2.3.0/24[tcp]"'), "different protocols"),
        ('[shunt.spare]\nlocal_ts = ["10.1.0.0/16"]\naction = "pass"\n', "'remote_ts' is missing"),
        ('[shunt.spare]\nlocal_ts = ["10.1.0.0/16"]\nremote_ts = ["10.2.3.0/24"]\n', "'action' is missing"),
        (shunt(remote='"10.0.0.0/8"'), "nothing is left for [connection.paris.child.lan]"),
        (shunt(remote='"10.2.0.0/16"', more=LAST), "10.1.0.0/16 to 10.2.0.0/16 is also [connection.paris.child.lan]'s"),
        (shunt() + shunt("second"), "10.1.0.0/16 to 10.2.3.0/24 is also [shunt.spare]'s"),
        (
            shunt() + shunt("second", '"10.1.4.0/24"', '"10.2.0.0/16"', "drop"),
            "overlaps [shunt.spare], neither being more specific",
        ),
    ],
)
def test_what_is_wrong_is_said_with_what_would_be_right(problems, text, problem):
    found = problems(CHILD + text)
    assert any(problem in each for _, each in found), found


def test_shunts_of_one_action_or_another_order_may_overlap(gateway):
    crossing = '"10.1.4.0/24"', '"10.2.0.0/16"'
    assert len(gateway(CHILD + shunt() + shunt("second", *crossing, "pass")).shunts) == 2
    assert len(gateway(CHILD + shunt() + shunt("second", *crossing, "drop", LAST)).shunts) == 2


USERSPACE = '[gateway]\ndataplane = "userspace"\n'


@pytest.mark.parametrize(
    "text",
    [
        shunt(),
        shunt(action="drop"),
        shunt(local='"0.0.0.0/0"', action="drop"),
        shunt(remote='"192.168.0.0/16"'),
        shunt(local='"0.0.0.0/0"', remote='"0.0.0.0/0"', action="drop", more=LAST),
        shunt(local='"0.0.0.0/0"', remote='"192.168.0.0/16"', action="drop"),
    ],
)
def test_routes_can_do_what_looks_at_the_destination_alone(gateway, text):
    assert len(gateway(USERSPACE + CHILD + text).shunts) == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (shunt(remote='"10.2.3.0/24[tcp/443]"'), "protocols and ports"),
        (shunt(local='"10.1.4.0/24"'), "know no sources, and some of 10.2.0.0/16 are protected"),
        (shunt(remote='"192.168.0.0/16"', action="drop"), "know no sources; local_ts of everything"),
        (shunt(more=LAST), "its longer prefix goes first"),
        (shunt(local='"10.1.4.0/24"', remote='"10.0.0.0/8"'), "its longer prefix goes first"),
    ],
)
def test_routes_cannot_do_what_looks_at_more(gateway, problems, text, why):
    found = problems(USERSPACE + CHILD + text)
    assert any(
        "the userspace data plane cannot tell this traffic apart" in each and why in each for _, each in found
    ), found
    # with the kernel it is fine
    (beyond,) = beyond_userspace(gateway(CHILD + text))
    assert beyond.named.startswith("shunt spare (")
    assert why in beyond.named
