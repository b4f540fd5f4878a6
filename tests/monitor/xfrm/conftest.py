"""Pairs and policies, each beside the `ip xfrm` command that says the same; golden messages; namespaces."""

import ctypes
import ipaddress
import os
import re
import select
import shlex
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from monitor.dataplane import Cpis, Events, Pair, Policy
from monitor.xfrm import messages, policy, sa, structs
from monitor.xfrm.client import KernelDataplane
from monitor.xfrm.events import XfrmEvents
from monitor.xfrm.netlink import XfrmNetlink
from privsep.algorithms import ChildSuite
from privsep.config.lanes import KernelOptions, Lane, Mark
from privsep.config.model import Action, Order, Shunt
from privsep.iana import ProtocolId
from privsep.tasks import Task
from privsep.types import Cpi, Endpoint, Mode, Spi, TrafficSelector

GOLDEN = Path(__file__).parents[2] / "golden" / "xfrm"
GCM_IN, GCM_OUT = bytes(range(36)), bytes(range(100, 136))
AES_IN, AES_OUT = bytes(range(16)), bytes(range(16, 32))
SHA256_IN, SHA256_OUT = bytes(range(32, 64)), bytes(range(64, 96))


def selectors(*texts, protocol=0, port=0):
    return tuple(TrafficSelector(ipaddress.ip_network(text), protocol, port) for text in texts)


def endpoint(address, port=500):
    return Endpoint(ipaddress.ip_address(address), port)


def make_policy(**changes):
    values = {
        "number": 7,
        "protocol": ProtocolId.ESP,
        "mode": Mode.TUNNEL,
        "local": endpoint("192.0.2.1"),
        "remote": endpoint("192.0.2.2"),
        "local_ts": selectors("10.1.0.0/16"),
        "remote_ts": selectors("10.2.0.0/16"),
    }
    return Policy(**(values | changes))


def make_pair(chosen=None, **changes):
    chosen = make_policy() if chosen is None else chosen
    values = {
        "policy": chosen,
        "spi_in": Spi(0x1000),
        "spi_out": Spi(0x2000),
        "suite": ChildSuite.parse("aes256gcm16"),
        "encryption_in": GCM_IN,
        "integrity_in": b"",
        "encryption_out": GCM_OUT,
        "integrity_out": b"",
        "local": chosen.local,
        "remote": chosen.remote,
        "encap": False,
        "local_ts": chosen.local_ts,
        "remote_ts": chosen.remote_ts,
        "lifetime": 3600,
        "replay_window": 64,
    }
    return Pair(**(values | changes))


def make_shunt(**changes):
    values = {
        "name": "spare",
        "local_ts": selectors("10.1.0.0/16"),
        "remote_ts": selectors("10.2.3.0/24"),
        "action": Action.PASS,
        "order": Order.FIRST,
    }
    return Shunt(**(values | changes))


DROP = {"action": Action.DROP}
EVERYTHING = {
    "local_ts": selectors("0.0.0.0/0"),
    "remote_ts": selectors("0.0.0.0/0"),
    "order": Order.LAST,
    **DROP,
}
CBC = {
    "suite": ChildSuite.parse("aes128-sha256"),
    "encryption_in": AES_IN,
    "integrity_in": SHA256_IN,
    "encryption_out": AES_OUT,
    "integrity_out": SHA256_OUT,
}


def keyed(suite):
    """The suite with keys that count up."""
    encryption, integrity = suite.encryption_octets, suite.integrity_octets
    return {
        "suite": suite,
        "encryption_in": bytes(range(encryption)),
        "integrity_in": bytes(range(32, 32 + integrity)),
        "encryption_out": bytes(range(100, 100 + encryption)),
        "integrity_out": bytes(range(150, 150 + integrity)),
    }


ESP_ALGORITHMS = {
    "aes192-md5": ("auth-trunc hmac(md5) {integrity} 96", "enc cbc(aes) {encryption}"),
    "aes256-sha1": ("auth-trunc hmac(sha1) {integrity} 96", "enc cbc(aes) {encryption}"),
    "aes256-sha384": ("auth-trunc hmac(sha384) {integrity} 192", "enc cbc(aes) {encryption}"),
    "aes256ctr-sha512": ("auth-trunc hmac(sha512) {integrity} 256", "enc rfc3686(ctr(aes)) {encryption}"),
    "aes128ccm8": ("aead rfc4309(ccm(aes)) {encryption} 64",),
    "aes192ccm12": ("aead rfc4309(ccm(aes)) {encryption} 96",),
    "aes256ccm16": ("aead rfc4309(ccm(aes)) {encryption} 128",),
    "aes128gcm8": ("aead rfc4106(gcm(aes)) {encryption} 64",),
    "aes192gcm12": ("aead rfc4106(gcm(aes)) {encryption} 96",),
    "aes256gmac": ("aead rfc4543(gcm(aes)) {encryption} 128",),
    "chacha20poly1305": ("aead rfc7539esp(chacha20,poly1305) {encryption} 128",),
    "camellia192-aesxcbc": ("auth-trunc xcbc(aes) {integrity} 96", "enc cbc(camellia) {encryption}"),
    "3des-aescmac": ("auth-trunc cmac(aes) {integrity} 96", "enc cbc(des3_ede) {encryption}"),
    "null-sha256": ("auth-trunc hmac(sha256) {integrity} 128", "enc ecb(cipher_null) {encryption}"),
}
"""What iproute2 calls the algorithms of a suite."""
AH = ChildSuite.parse("sha256", ProtocolId.AH)
NATTED = {"encap": True, "local": endpoint("192.0.2.1", 4500), "remote": endpoint("192.0.2.2", 62345)}
HOSTS = make_policy(
    mode=Mode.TRANSPORT, local_ts=selectors("192.0.2.1/32"), remote_ts=selectors("192.0.2.2/32", protocol=6, port=443)
)
AH_POLICY = make_policy(protocol=ProtocolId.AH)
OVER_IPV6 = make_policy(local=endpoint("2001:db8::1"), remote=endpoint("2001:db8::2"))
MIXED = make_policy(
    local_ts=selectors("10.1.0.0/16", "fd00:1::/64"),
    remote_ts=selectors("10.2.0.0/16", "fd00:2::/64"),
)
COMPRESSED = make_policy(ipcomp=True)
CPIS = Cpis(inbound=Cpi(0x400), outbound=Cpi(0x500))
SIX_IN_FOUR = replace(MIXED, local_ts=MIXED.local_ts[1:], remote_ts=MIXED.remote_ts[1:])
ADDRESS = ipaddress.ip_address("192.0.2.1")
LANE = Lane(mark_in=Mark(0x20, 0xF0), mark_out=Mark(0x10, 0xFF), if_id_in=41, if_id_out=42)
IN_LANE = make_policy(kernel=KernelOptions(lane=LANE, priority=77, reqid=70000))
MARKED = sa.SaId(ADDRESS, ProtocolId.ESP, Spi(0x1000), LANE.mark_out)
LIMITED = make_policy(kernel=KernelOptions(life_bytes=1 << 20, life_packets=1000))


def _entry(chosen, direction):
    return next(entry for entry in policy.entries(chosen) if entry.key["dir"] == direction)


def _policy(chosen, direction, kind=messages.NewPolicy, flags=0x600):
    entry = _entry(chosen, direction)
    return kind.request(flags, entry.values, entry.attributes)


def _key(direction, kind, chosen=None):
    entry = _entry(chosen or make_policy(), direction)
    return kind.request(0, entry.key, entry.lane)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A message of ours and iproute2's arguments for the same."""

    ours: Any
    ip: str


def _esp(name, algorithms):
    pair = keyed(ChildSuite.parse(name))
    keys = {key: f"0x{pair[f'{key}_out'].hex()}" if pair[f"{key}_out"] else '""' for key in ("encryption", "integrity")}
    return Case(
        ours=messages.NewSa.request(0x600, *sa.outbound(make_pair(**pair))),
        ip=f"state add {_FROM_US} tunnel {_HARD} {_OUTWARD} " + " ".join(algorithms).format(**keys),
    )


IN, OUT, FWD = structs.Direction.IN, structs.Direction.OUT, structs.Direction.FWD
_HARD = "limit time-hard 3600"
_SOFT = f"limit time-soft 3240 {_HARD}"
_FROM_US = "src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x2000 reqid 7 mode"
_TO_US = "src 192.0.2.2 dst 192.0.2.1 proto esp spi 0x1000 reqid 7 mode"
_LIMITS = "limit byte-soft 838860 limit byte-hard 1048576 limit packet-soft 800 limit packet-hard 1000"
_OUTWARD = "sel src 10.1.0.0/16 dst 10.2.0.0/16"
_INWARD = "sel src 10.2.0.0/16 dst 10.1.0.0/16"
_OUT_TMPL = "tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 7 mode tunnel"
_IN_TMPL = "tmpl src 192.0.2.2 dst 192.0.2.1 proto esp reqid 7 mode tunnel"
_WIDE = policy.PRIORITY_BASE - 4 * 32
_NARROW = policy.PRIORITY_BASE - 4 * 64 - 3

CASES = {
    "newsa-out-gcm": Case(
        ours=messages.NewSa.request(0x600, *sa.outbound(make_pair())),
        ip=f"state add {_FROM_US} tunnel {_HARD} {_OUTWARD} aead rfc4106(gcm(aes)) 0x{GCM_OUT.hex()} 128",
    ),
    "newsa-out-cbc-sha256-udp": Case(
        ours=messages.NewSa.request(0x600, *sa.outbound(make_pair(**CBC, **NATTED))),
        ip=f"state add {_FROM_US} tunnel {_HARD} {_OUTWARD} encap espinudp 4500 62345 0.0.0.0"
        f" auth-trunc hmac(sha256) 0x{SHA256_OUT.hex()} 128 enc cbc(aes) 0x{AES_OUT.hex()}",
    ),
    "newsa-out-transport": Case(
        ours=messages.NewSa.request(0x600, *sa.outbound(make_pair(HOSTS))),
        ip=f"state add {_FROM_US} transport {_HARD} sel src 192.0.2.1 dst 192.0.2.2 proto tcp dport 443"
        f" aead rfc4106(gcm(aes)) 0x{GCM_OUT.hex()} 128",
    ),
    "newsa-out-ipv6": Case(
        ours=messages.NewSa.request(0x600, *sa.outbound(make_pair(OVER_IPV6))),
        ip=f"state add src 2001:db8::1 dst 2001:db8::2 proto esp spi 0x2000 reqid 7 mode tunnel {_HARD} {_OUTWARD}"
        f" aead rfc4106(gcm(aes)) 0x{GCM_OUT.hex()} 128",
    ),
    "newsa-out-both-families": Case(
        ours=messages.NewSa.request(0x600, *sa.outbound(make_pair(MIXED))),
        ip=f"state add {_FROM_US} tunnel {_HARD} flag af-unspec aead rfc4106(gcm(aes)) 0x{GCM_OUT.hex()} 128",
    ),
    "updsa-in-gcm": Case(
        ours=messages.UpdSa.request(0, *sa.inbound(make_pair())),
        ip=f"state update {_TO_US} tunnel {_SOFT} replay-window 64 {_INWARD}"
        f" aead rfc4106(gcm(aes)) 0x{GCM_IN.hex()} 128",
    ),
    "updsa-in-cbc-sha256-udp": Case(
        ours=messages.UpdSa.request(0, *sa.inbound(make_pair(**CBC, **NATTED))),
        ip=f"state update {_TO_US} tunnel {_SOFT} replay-window 64 {_INWARD} encap espinudp 62345 4500 0.0.0.0"
        f" auth-trunc hmac(sha256) 0x{SHA256_IN.hex()} 128 enc cbc(aes) 0x{AES_IN.hex()}",
    ),
    **{f"newsa-out-{name}": _esp(name, algorithms) for name, algorithms in ESP_ALGORITHMS.items()},
    "newsa-out-esn": Case(
        ours=messages.NewSa.request(0x600, *sa.outbound(make_pair(suite=ChildSuite.parse("aes256gcm16-esn")))),
        ip=f"state add {_FROM_US} tunnel replay-window 32 flag esn {_HARD} {_OUTWARD}"
        f" aead rfc4106(gcm(aes)) 0x{GCM_OUT.hex()} 128",
    ),
    "updsa-in-esn-window-4096": Case(
        ours=messages.UpdSa.request(
            0, *sa.inbound(make_pair(suite=ChildSuite.parse("aes256gcm16-esn"), replay_window=4096))
        ),
        ip=f"state update {_TO_US} tunnel replay-window 4096 flag esn {_SOFT} {_INWARD}"
        f" aead rfc4106(gcm(aes)) 0x{GCM_IN.hex()} 128",
    ),
    "updsa-in-window-32": Case(
        ours=messages.UpdSa.request(0, *sa.inbound(make_pair(replay_window=32))),
        ip=f"state update {_TO_US} tunnel replay-window 32 {_SOFT} {_INWARD}"
        f" aead rfc4106(gcm(aes)) 0x{GCM_IN.hex()} 128",
    ),
    "newsa-out-ah": Case(
        ours=messages.NewSa.request(0x600, *sa.outbound(make_pair(AH_POLICY, **keyed(AH)))),
        ip=f"state add {_FROM_US.replace('esp', 'ah')} tunnel {_HARD} flag align4 {_OUTWARD}"
        f" auth-trunc hmac(sha256) 0x{keyed(AH)['integrity_out'].hex()} 128",
    ),
    "updsa-in-ah-ipv6": Case(
        ours=messages.UpdSa.request(0, *sa.inbound(make_pair(replace(OVER_IPV6, protocol=ProtocolId.AH), **keyed(AH)))),
        ip="state update src 2001:db8::2 dst 2001:db8::1 proto ah spi 0x1000 reqid 7 mode tunnel"
        f" replay-window 64 {_SOFT} {_INWARD} auth-trunc hmac(sha256) 0x{keyed(AH)['integrity_in'].hex()} 128",
    ),
    "newpolicy-out-ah": Case(
        ours=_policy(AH_POLICY, OUT),
        ip=f"policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out priority {_WIDE} {_OUT_TMPL.replace('esp', 'ah')}",
    ),
    "newpolicy-in-ah-transport": Case(
        ours=_policy(replace(HOSTS, protocol=ProtocolId.AH), IN),
        ip=f"policy add src 192.0.2.2 dst 192.0.2.1 proto tcp sport 443 dir in priority {_NARROW}"
        " tmpl proto ah reqid 7 mode transport",
    ),
    "allocspi-ipcomp": Case(
        ours=messages.AllocSpi.request(0, sa.allocation(ADDRESS, ipaddress.ip_address("192.0.2.2"), ProtocolId.IPCOMP)),
        ip="state allocspi src 192.0.2.2 dst 192.0.2.1 proto comp mode tunnel min 0x100 max 0xefff",
    ),
    "newsa-out-ipcomp": Case(
        ours=messages.NewSa.request(0x600, *sa.compressing(make_pair(COMPRESSED, ipcomp=CPIS), CPIS)),
        ip=f"state add src 192.0.2.1 dst 192.0.2.2 proto comp spi 0x500 reqid 7 mode tunnel {_HARD} {_OUTWARD}"
        " comp deflate",
    ),
    "updsa-in-ipcomp": Case(
        ours=messages.UpdSa.request(0, *sa.decompressing(make_pair(COMPRESSED, ipcomp=CPIS), CPIS)),
        ip=f"state update src 192.0.2.2 dst 192.0.2.1 proto comp spi 0x400 reqid 7 mode tunnel {_HARD} {_INWARD}"
        " comp deflate",
    ),
    "newsa-out-within-ipcomp": Case(
        ours=messages.NewSa.request(0x600, *sa.outbound(make_pair(COMPRESSED, ipcomp=CPIS))),
        ip=f"state add {_FROM_US} transport {_HARD} {_OUTWARD} aead rfc4106(gcm(aes)) 0x{GCM_OUT.hex()} 128",
    ),
    "newpolicy-out-ipcomp": Case(
        ours=_policy(COMPRESSED, OUT),
        ip=f"policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out priority {_WIDE} {_OUT_TMPL.replace('esp', 'comp')}"
        " tmpl proto esp reqid 7 mode transport",
    ),
    "newpolicy-in-ipcomp": Case(
        ours=_policy(COMPRESSED, IN),
        ip=f"policy add src 10.2.0.0/16 dst 10.1.0.0/16 dir in priority {_WIDE} {_IN_TMPL.replace('esp', 'comp')}"
        " level use tmpl proto esp reqid 7 mode transport",
    ),
    "allocspi-ah": Case(
        ours=messages.AllocSpi.request(0, sa.allocation(ADDRESS, ipaddress.ip_address("192.0.2.2"), ProtocolId.AH)),
        ip="state allocspi src 192.0.2.2 dst 192.0.2.1 proto ah mode tunnel min 0x100 max 0xffffffff",
    ),
    "delsa-ah": Case(
        ours=messages.DelSa.request(0, sa.key(sa.SaId(ADDRESS, ProtocolId.AH, Spi(0x1000)))),
        ip="state delete dst 192.0.2.1 proto ah spi 0x1000",
    ),
    "allocspi": Case(
        ours=messages.AllocSpi.request(0, sa.allocation(ADDRESS, ipaddress.ip_address("192.0.2.2"), ProtocolId.ESP)),
        ip="state allocspi src 192.0.2.2 dst 192.0.2.1 proto esp mode tunnel min 0x100 max 0xffffffff",
    ),
    "delsa": Case(
        ours=messages.DelSa.request(0, sa.key(sa.SaId(ADDRESS, ProtocolId.ESP, Spi(0x1000)))),
        ip="state delete dst 192.0.2.1 proto esp spi 0x1000",
    ),
    "getsa": Case(
        ours=messages.GetSa.request(0, sa.key(sa.SaId(ADDRESS, ProtocolId.ESP, Spi(0x1000)))),
        ip="state get dst 192.0.2.1 proto esp spi 0x1000",
    ),
    "newpolicy-out": Case(
        ours=_policy(make_policy(), OUT),
        ip=f"policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out priority {_WIDE} {_OUT_TMPL}",
    ),
    "newpolicy-in": Case(
        ours=_policy(make_policy(), IN),
        ip=f"policy add src 10.2.0.0/16 dst 10.1.0.0/16 dir in priority {_WIDE} {_IN_TMPL}",
    ),
    "newpolicy-fwd": Case(
        ours=_policy(make_policy(), FWD),
        ip=f"policy add src 10.2.0.0/16 dst 10.1.0.0/16 dir fwd priority {_WIDE} {_IN_TMPL}",
    ),
    "newpolicy-out-transport": Case(
        ours=_policy(HOSTS, OUT),
        ip=f"policy add src 192.0.2.1 dst 192.0.2.2 proto tcp dport 443 dir out priority {_NARROW}"
        " tmpl proto esp reqid 7 mode transport",
    ),
    "newpolicy-in-ipv6-in-ipv4": Case(
        ours=_policy(SIX_IN_FOUR, IN),
        ip=f"policy add src fd00:2::/64 dst fd00:1::/64 dir in priority {policy.PRIORITY_BASE - 4 * 128} {_IN_TMPL}",
    ),
    "newpolicy-out-pass": Case(
        ours=_policy(make_shunt(), OUT),
        ip=f"policy add src 10.1.0.0/16 dst 10.2.3.0/24 dir out priority {policy.SHUNT_BASES[Order.FIRST] - 4 * 40}",
    ),
    "newpolicy-in-drop": Case(
        ours=_policy(make_shunt(**EVERYTHING), IN),
        ip=f"policy add src 0.0.0.0/0 dst 0.0.0.0/0 dir in action block priority {policy.SHUNT_BASES[Order.LAST]}",
    ),
    "newpolicy-fwd-drop-ipv6": Case(
        ours=_policy(make_shunt(local_ts=selectors("::/0"), remote_ts=selectors("::/0", protocol=58), **DROP), FWD),
        ip="policy add src ::/0 dst ::/0 proto ipv6-icmp dir fwd action block"
        f" priority {policy.SHUNT_BASES[Order.FIRST] - 2}",
    ),
    "delpolicy-pass": Case(
        ours=messages.DelPolicy.request(0, _entry(make_shunt(), OUT).key),
        ip="policy delete src 10.1.0.0/16 dst 10.2.3.0/24 dir out",
    ),
    "updpolicy-out": Case(
        ours=_policy(make_policy(), OUT, messages.UpdPolicy, 0),
        ip=f"policy update src 10.1.0.0/16 dst 10.2.0.0/16 dir out priority {_WIDE} {_OUT_TMPL}",
    ),
    "delpolicy": Case(ours=_key(IN, messages.DelPolicy), ip="policy delete src 10.2.0.0/16 dst 10.1.0.0/16 dir in"),
    "newsa-out-lane": Case(
        ours=messages.NewSa.request(0x600, *sa.outbound(make_pair(IN_LANE))),
        ip=f"state add {_FROM_US.replace('reqid 7', 'reqid 70000')} tunnel mark 0x10 mask 0xff {_HARD} {_OUTWARD}"
        f" if_id 42 aead rfc4106(gcm(aes)) 0x{GCM_OUT.hex()} 128",
    ),
    "updsa-in-lane": Case(
        ours=messages.UpdSa.request(0, *sa.inbound(make_pair(IN_LANE))),
        ip=f"state update {_TO_US.replace('reqid 7', 'reqid 70000')} tunnel replay-window 64 {_SOFT} {_INWARD}"
        f" if_id 41 output-mark 0x20 mask 0xf0 aead rfc4106(gcm(aes)) 0x{GCM_IN.hex()} 128",
    ),
    "newsa-out-limits": Case(
        ours=messages.NewSa.request(0x600, *sa.outbound(make_pair(LIMITED))),
        ip=f"state add {_FROM_US} tunnel {_HARD} {_LIMITS} {_OUTWARD} aead rfc4106(gcm(aes)) 0x{GCM_OUT.hex()} 128",
    ),
    "updsa-in-limits": Case(
        ours=messages.UpdSa.request(0, *sa.inbound(make_pair(LIMITED))),
        ip=f"state update {_TO_US} tunnel replay-window 64 {_SOFT} {_LIMITS} {_INWARD}"
        f" aead rfc4106(gcm(aes)) 0x{GCM_IN.hex()} 128",
    ),
    "delsa-mark": Case(
        ours=messages.DelSa.request(0, sa.key(MARKED), sa.marked(MARKED)),
        ip="state delete dst 192.0.2.1 proto esp spi 0x1000 mark 0x10 mask 0xff",
    ),
    "getsa-mark": Case(
        ours=messages.GetSa.request(0, sa.key(MARKED), sa.marked(MARKED)),
        ip="state get dst 192.0.2.1 proto esp spi 0x1000 mark 0x10 mask 0xff",
    ),
    "newpolicy-out-lane": Case(
        ours=_policy(IN_LANE, OUT),
        ip="policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out mark 0x10 mask 0xff priority 77 if_id 42 "
        + _OUT_TMPL.replace("reqid 7", "reqid 70000"),
    ),
    "newpolicy-fwd-lane": Case(
        ours=_policy(IN_LANE, FWD),
        ip="policy add src 10.2.0.0/16 dst 10.1.0.0/16 dir fwd mark 0x20 mask 0xf0 priority 77 if_id 41 "
        + _IN_TMPL.replace("reqid 7", "reqid 70000"),
    ),
    "updpolicy-out-lane": Case(
        ours=_policy(IN_LANE, OUT, messages.UpdPolicy, 0),
        ip="policy update src 10.1.0.0/16 dst 10.2.0.0/16 dir out mark 0x10 mask 0xff priority 77 if_id 42 "
        + _OUT_TMPL.replace("reqid 7", "reqid 70000"),
    ),
    "delpolicy-lane": Case(
        ours=_key(IN, messages.DelPolicy, IN_LANE),
        ip="policy delete src 10.2.0.0/16 dst 10.1.0.0/16 dir in mark 0x20 mask 0xf0 if_id 41",
    ),
    "getpolicy-lane": Case(
        ours=_key(OUT, messages.GetPolicy, IN_LANE),
        ip="policy get src 10.1.0.0/16 dst 10.2.0.0/16 dir out mark 0x10 mask 0xff if_id 42",
    ),
    "newpolicy-out-ipv4-in-ipv6": Case(
        ours=_policy(OVER_IPV6, OUT),
        ip=f"policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out priority {_WIDE}"
        " tmpl src 2001:db8::1 dst 2001:db8::2 proto esp reqid 7 mode tunnel",
    ),
    "newsa-out-ipv6-in-ipv4": Case(
        ours=messages.NewSa.request(0x600, *sa.outbound(make_pair(SIX_IN_FOUR))),
        ip=f"state add {_FROM_US} tunnel {_HARD} sel src fd00:1::/64 dst fd00:2::/64"
        f" aead rfc4106(gcm(aes)) 0x{GCM_OUT.hex()} 128",
    ),
    "getpolicy": Case(ours=_key(IN, messages.GetPolicy), ip="policy get src 10.2.0.0/16 dst 10.1.0.0/16 dir in"),
}

REQUESTS = (
    messages.NewSa,
    messages.UpdSa,
    messages.DelSa,
    messages.GetSa,
    messages.AllocSpi,
    messages.NewPolicy,
    messages.UpdPolicy,
    messages.DelPolicy,
    messages.GetPolicy,
    messages.Migrate,
)
KNOWN = {number: (name, record) for name, (number, record) in structs.ATTRIBUTES.items()}
KINDS = {
    kind.kind: kind for kind in (*REQUESTS, messages.Acquire, messages.Expire, messages.PolExpire, messages.Mapping)
}


def read_golden(name):
    """The message of a golden file: the lines that are no comments, in hexadecimal."""
    lines = (GOLDEN / f"{name}.hex").read_text().splitlines()
    return bytes.fromhex("".join(line for line in lines if not line.startswith("#")))


def flatten(message):
    """Every field by name, padding and keys included; sequence number and port of the sender masked."""
    decoded = KINDS[int.from_bytes(message[4:6], "little")](bytearray(message))
    decoded.decode()
    fields = {f"header.{name}": value for name, value in decoded["header"].items()}
    for name in ("header.sequence_number", "header.pid"):
        fields[name] = "masked"
    fields |= {name: value for name, value in decoded.items() if name not in ("header", "attrs")}
    at = 16 + decoded.layout.size
    order = 0
    while at < len(message):
        length = int.from_bytes(message[at : at + 2], "little")
        number = int.from_bytes(message[at + 2 : at + 4], "little")
        name, record = KNOWN.get(number, (f"attribute {number}", structs.Record))
        fields[f"{name}.order"] = order
        fields |= {f"{name}.{field}": value for field, value in record.read(message, at + 4).items()}
        fields[f"{name}.rest"] = message[at + 4 + record.layout.size : at + length]
        at += (length + 3) & ~3
        order += 1
    return fields


def capture(namespace, arguments):
    """The first netlink message that `ip xfrm` sends, by strace. Whether the kernel accepts it does not matter."""
    command = ["ip", "netns", "exec", namespace, "strace", "-qq", "-e", "trace=sendmsg,sendto", "-e", "write=all"]
    traced = subprocess.run(
        [*command, "ip", "xfrm", *shlex.split(arguments)], capture_output=True, text=True, check=False
    )
    rows = re.findall(r"^ \| ([0-9a-f]{5})  ((?:[0-9a-f]{2} {1,2})+)", traced.stderr, re.MULTILINE)
    found = bytearray()
    for offset, row in rows:
        if offset == "00000" and found:
            break
        found += bytes.fromhex(row)
    return bytes(found)


_CLONE_NEWNET = 0x40000000
_numbers = count()


@contextmanager
def network():
    """The name of a fresh network namespace."""
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    if shutil.which("ip") is None:
        pytest.skip("needs iproute2's ip")
    name = f"xfr-{os.getpid()}-{next(_numbers)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@contextmanager
def entered(name):
    """This thread is in that namespace; sockets that it opens there stay there."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{name}").open() as there:
        assert libc.setns(there.fileno(), _CLONE_NEWNET) == 0
        try:
            yield
        finally:
            assert libc.setns(home.fileno(), _CLONE_NEWNET) == 0


def recording(reported):
    """Events that are written down."""
    return Events(
        acquired=lambda number: reported.append(("acquired", number)),
        expired=lambda spi, hard: reported.append(("expired", spi, hard)),
        moved=lambda spi, remote: reported.append(("moved", spi, str(remote))),
    )


class Kit:
    """The makers, by attribute."""

    cases, kinds, requests = CASES, KINDS, REQUESTS
    keyed = staticmethod(keyed)
    ah, in_lane, limited = AH_POLICY, IN_LANE, LIMITED
    cbc, hosts, mixed, over_ipv6, natted = CBC, HOSTS, MIXED, OVER_IPV6, NATTED
    policy = staticmethod(make_policy)
    shunt = staticmethod(make_shunt)
    pair = staticmethod(make_pair)
    selectors = staticmethod(selectors)
    endpoint = staticmethod(endpoint)
    flatten = staticmethod(flatten)
    golden = staticmethod(read_golden)
    capture = staticmethod(capture)
    network = staticmethod(network)
    entered = staticmethod(entered)
    recording = staticmethod(recording)

    @staticmethod
    def install(plane, pair):
        """Both SAs, one after the other, or none, as `monitor.installer` has it."""
        first = plane.install_inbound(pair)
        if first._error is not None:
            return first
        second = plane.install_outbound(pair)
        if second._error is not None:
            plane.remove(pair)
        return second

    @staticmethod
    def result(future):
        """The value of a future that is resolved; raises its error."""
        values, errors = [], []

        async def wait():
            values.append(await future)

        Task(wait(), errors.append)
        assert errors, "the future is still open"
        if errors[0] is not None:
            raise errors[0]
        return values[0]


@pytest.fixture
def kit(kit):
    """These makers, and from the other tests of the monitor the configuration's."""
    Kit.gateway, Kit.connection, Kit.child = kit.gateway, kit.connection, kit.child
    return Kit


@pytest.fixture
def namespace():
    """A network namespace with two ends of a link: 192.0.2.1 and 10.1.0.1 at one, nobody at the other."""
    with network() as name:
        for command in (
            "link add under type veth peer name far",
            "addr add 192.0.2.1/24 dev under",
            "addr add 10.1.0.1/16 dev under",
            "link set under up",
            "link set far up",
            "route add 10.2.0.0/16 dev under",
        ):
            subprocess.run(["ip", "-n", name, *command.split()], check=True)
        yield name


@pytest.fixture
def inside(namespace):
    """The test runs in the namespace."""
    with entered(namespace):
        yield namespace


class Bench:
    """The data plane of this machine's kernel with its events, both in the namespace."""

    def __init__(self, namespace):
        self.namespace = namespace
        self.netlink = XfrmNetlink()
        self.plane = KernelDataplane(self.netlink)
        self.reported = []
        self.events = XfrmEvents(
            self.plane,
            recording(self.reported),
        )

    def close(self):
        self.events.close()
        self.netlink.close()

    def ip(self, *arguments):
        command = ["ip", "netns", "exec", self.namespace, "ip", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def wait(self, seconds):
        """What is reported until then, or until something is."""
        deadline = time.monotonic() + seconds
        while not self.reported and (left := deadline - time.monotonic()) > 0:
            if select.select([self.events], [], [], left)[0]:
                self.events.read_events()
        return self.reported

    @staticmethod
    def knock(mark=0):
        """Send a packet from one protected network to the other; nobody is there."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            sock.bind(("10.1.0.1", 0))
            sock.sendto(b"knock", ("10.2.0.9", 9))


@pytest.fixture
def bench(inside):
    bench = Bench(inside)
    yield bench
    bench.close()
