"""Our policies in the kernel's Security Policy Database (RFC 4301 section 4.4.1): added, replaced, removed, recognised.

A policy of somebody else's is never replaced nor removed: ours have priorities of their own, or are what the journal of
an earlier instance names.
"""

import errno
from collections import Counter
from typing import Any

from monitor.dataplane import DataplaneError, Policy
from monitor.xfrm.messages import NEW, DelPolicy, GetPolicy, NewPolicy, UpdPolicy
from monitor.xfrm.netlink import KernelError, XfrmNetlink
from monitor.xfrm.policy import Entry, entries, has_our_priority, is_ours, is_same, stands_for
from monitor.xfrm.structs import Values
from privsep.config.model import Shunt

_Name = tuple[tuple[tuple[str, Any], ...], tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]]
"""What finds a policy: its selectors and direction, its mark and if_id."""


class Spd:
    """That of one network namespace. Each method raises DataplaneError when the kernel refuses."""

    def __init__(self, netlink: XfrmNetlink) -> None:
        self._netlink = netlink
        self._requiring: dict[int, Policy] = {}
        """Policies in place, by reqid."""
        self._placed: Counter[_Name] = Counter()
        """Those that are there by this instance, each with how many rules have it: two may pass the same neighbours."""
        self._shunted: set[_Name] = set()
        """Those of shunts."""
        self._expected: set[_Name] = set()
        """Those of an earlier instance that are not known by their priority."""

    def add(self, rule: Policy | Shunt) -> None:
        """All of its entries or none. What an earlier instance of ours left for the same traffic is replaced.

        So is the policy that had its number, of which nothing stays that this one has not. No peer's selectors take the
        place of a shunt.
        """
        earlier = self._requiring.get(rule.reqid) if isinstance(rule, Policy) else None
        replaced = {} if earlier is None else _named(earlier)
        named = _named(rule)
        added: list[Entry] = []
        try:
            for name, entry in named.items():
                if isinstance(rule, Shunt):
                    self._shunted.add(name)
                elif name in self._shunted:
                    raise DataplaneError("a shunt stands there")
                if self._place(entry):
                    added.append(entry)
        except DataplaneError:
            for entry in added:
                self._drop(entry)
            raise
        self._placed.update(named.keys() - replaced.keys())
        for name in replaced.keys() - named.keys():
            self._let_go(replaced[name])
        if isinstance(rule, Policy):
            self._requiring[rule.reqid] = rule

    def _place(self, entry: Entry) -> bool:
        """Whether it is new; otherwise it replaced one of ours."""
        try:
            self._netlink.do(NewPolicy.request(NEW, entry.values, entry.attributes))
        except KernelError as error:
            if error.number != errno.EEXIST:
                raise
            if _name(entry) not in self._expected and not self._stands(entry):
                raise
            self._netlink.do(UpdPolicy.request(0, entry.values, entry.attributes))
            return False
        return True

    def remove(self, rule: Policy | Shunt) -> None:
        """All of its entries."""
        if isinstance(rule, Policy):
            self._requiring.pop(rule.reqid, None)
        for entry in _named(rule).values():
            self._let_go(entry)

    def _let_go(self, entry: Entry) -> None:
        """One rule less that has it."""
        name = _name(entry)
        self._placed[name] -= 1
        if self._placed[name] <= 0:
            del self._placed[name]
            self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        self._shunted.discard(_name(entry))
        self._netlink.do_unless(errno.ENOENT, DelPolicy.request(0, entry.key, entry.lane))

    # what an earlier instance left

    def expect(self, policy: Policy) -> None:
        """An earlier instance placed it, perhaps by a priority that is configured: what is there of it is ours."""
        if policy.kernel.priority is not None:
            self._expected.update(_name(entry) for entry in entries(policy) if self._stands(entry))

    def clear(self, rule: Policy | Shunt) -> None:
        """Of its entries those that are ours, stand for it, and that nothing has replaced."""
        for entry in entries(rule):
            if _name(entry) not in self._placed and self._stands(entry, rule):
                self._drop(entry)

    def _stands(self, entry: Entry, rule: Policy | Shunt | None = None) -> bool:
        """Whether what the kernel has there is ours, and part of that rule if one is given."""
        try:
            present = self._netlink.ask(GetPolicy.request(0, entry.key, entry.lane), NewPolicy)
        except KernelError as error:
            if error.number != errno.ENOENT:
                raise
            return False
        return (is_ours(present) or is_same(present, entry)) and (rule is None or stands_for(present, rule))

    # for `events.py`

    def requiring(self, reqid: int, priority: int) -> int | None:
        """The number of the policy that a packet matched; None if it is not ours."""
        policy = self._requiring.get(reqid)
        if policy is None or not (has_our_priority(priority) or priority == policy.kernel.priority):
            return None
        return policy.number


def _named(rule: Policy | Shunt) -> dict[_Name, Entry]:
    """Its entries by name."""
    return {_name(entry): entry for entry in entries(rule)}


def _name(entry: Entry) -> _Name:
    return _hashable(entry.key), tuple((name, _hashable(values)) for name, values in entry.lane)


def _hashable(values: Values) -> tuple[tuple[str, Any], ...]:
    return tuple(values.items())
