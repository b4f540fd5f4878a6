"""The gateways that lies are told to: as shipped, and with a switch for each check of monitor and ESP process."""

from world import Plan

EVERYONE = ("worker", "keyd", "monitor.userspace")
"""keyd and the ESP process are honest until a control tells them otherwise; the latter says what it has."""
SHIPPED = Plan(captured=EVERYONE).without(monitor="# a world of its own: what other scenarios install would be counted")
SWITCHES = """
import dataclasses
import json
import sys
from pathlib import Path
from monitor import authorize, numbers, sadb, service
from monitor.userspace.client import UserspaceDataplane

switches = Path(sys.argv[-1]).with_name("switches")

def off(name):
    return switches.exists() and name in json.loads(switches.read_text())

def switchable(check, name):
    return lambda case: authorize.PASSED if off(name) else check(case)

authorize.CHECKS = tuple(switchable(check, check.__name__) for check in authorize.CHECKS)
authorize.FORESEEABLE = tuple(switchable(check, f"foreseen {check.__name__}") for check in authorize.FORESEEABLE)
place, complete = UserspaceDataplane.install_inbound, service.with_outbound
shipped = sadb.MAX_INSTALLED_PER_CONNECTION, numbers.MAX_POLICIES_PER_CONNECTION, numbers.MAX_UNUSED_OF_IDENTITY

def scaled(judge):
    def judged(*arguments):
        # sixteen thousand would take a while
        sadb.MAX_INSTALLED_PER_CONNECTION = 2 if off("scale") else shipped[0]
        numbers.MAX_POLICIES_PER_CONNECTION = 8 if off("scale") else shipped[1]
        numbers.MAX_UNUSED_OF_IDENTITY = 1 << 20 if off("identity") else shipped[2]
        return judge(*arguments)

    return judged

def with_outbound(pair, redeemed):
    if off("with_outbound"):
        fields = ("encryption_out", "integrity_out")
        return dataclasses.replace(pair, **{name: getattr(redeemed, name) for name in fields})
    return complete(pair, redeemed)

def reserve(self, entry):
    # without its checks the monitor would lose count, and later lies would meet what is left
    if self.entry(entry.pair.spi_in) is not None:
        self.forget(self.entry(entry.pair.spi_in))
    count_in(self, entry)

def unreserved(self, pair):
    if off("reserved"):
        self._spis.add(pair.spi_in)
        self._installed.discard(pair.spi_in)
    return place(self, pair)

count_in, sadb.Sadb.reserve = sadb.Sadb.reserve, reserve
service.authorize, service.foresee = scaled(service.authorize), scaled(service.foresee)
service.with_outbound, UserspaceDataplane.install_inbound = with_outbound, unreserved
"""
SWITCHABLE = SHIPPED.without(monitor=SWITCHES)

FEW_POLICIES = 8
"""As `scaled` has it."""

WEAK_ESP = """
database = sys.modules["monitor.userspace.database"]
if "honest" not in globals():
    honest = database.Database.add_inbound, database.transform

def add_inbound(self, order):
    self._by_spi.pop(order.spi_in, None)
    self._outbound.clear()
    return honest[0](self, order)

def transform(suite, encryption, integrity):
    return sys.modules["monitor.userspace.esp"].Combined(suite.cipher, encryption)

database.Database.add_inbound, database.transform = (add_inbound, transform) if weak else honest
"""
INSTALLED_THERE = "result = sorted(me.database._by_spi)"
SENDING_THERE = "result = sorted(spi for spi, pair in me.database._by_spi.items() if pair.sends)"
REMOVE_THERE = """
for spi in spis:
    me.forwarder._remove(me.database.remove_pair(spi))
"""

KEYD_COVERS_ALL = """
from keyd import agreement
covers, agreement.Child.covers = agreement.Child.covers, lambda *_: True
"""
KEYD_LOOKS_AGAIN = "agreement.Child.covers = covers"
KEYD_BELIEVES = """
honest = phase1.Phase1._select
phase1.Phase1._select = lambda self, sa, main, identity: main.claimed
"""
KEYD_DOUBTS_AGAIN = "phase1.Phase1._select = honest"
KEYD_SAYS = """
honest = me.service._redeem

def redeem(request):
    true = honest(request)
    if isinstance(true, keymat.Redeemed):
        return dataclasses.replace(true, {instead})
    return dataclasses.replace(true, {then}) if isinstance(true, keymat.RedeemedOutbound) else true

me.service._redeem = redeem
"""
KEYD_IS_HONEST = "me.service._redeem = honest"


def keyd_says(instead: str, then: str = "") -> tuple[str, str]:
    """With keyd's help: what it says instead of the truth, of each half, and how it stops."""
    return KEYD_SAYS.format(instead=instead, then=then), KEYD_IS_HONEST
