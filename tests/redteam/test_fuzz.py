"""A short run of each fuzzer, and the proof that a fuzzer notices when a check is missing."""

import dataclasses
import os
import subprocess
import sys

import fuzz
import fuzz_keyd
import msgpack
import pytest
from fuzz_base import Finding
from fuzz_keyd import KeydFuzzer
from fuzz_monitor import MonitorFuzzer
from generate import well_formed

from keyd import handles
from keyd.handles import Entry, Registry, State
from keyd.phase1 import IkeSa
from keyd.phase2 import Keymat, Phase2
from monitor import authorize
from monitor.service import Service
from privsep.schema import codec, install
from privsep.schema import keyd as ops

SEED = 20240229
STEPS = 12000
STEPS_TO_FIND = 120_000
"""Ten times what the rarer of the findings below take with most seeds, some ten thousand."""
SECONDS_TO_FIND = 100.0
YES = {kind.__name__: answer.__name__ for kind, answer in fuzz_keyd.ANSWERS.items()}


def test_keyd_keeps_its_table_whatever_a_captured_worker_asks():
    fuzzer = KeydFuzzer(SEED).run(steps=STEPS)
    unanswered = [kind for kind, answer in YES.items() if not fuzzer.answered[f"{kind}: {answer}"]]
    assert unanswered == []
    assert fuzzer.answered["RedeemInbound: Redeemed"]
    assert fuzzer.answered["RedeemOutbound: RedeemedOutbound"]
    assert set(fuzzer.reached) == {state.name for state in State if state is not State.GONE}
    # where a message ends something, or a quota is met
    for rejection in (
        "AuthOpen: UNKNOWN_IDENTITY",
        "AuthOpen: WRONG_TOO_OFTEN",
        "QuickFinish: BAD_MESSAGE",
        "gave way: half-open",
        "gave way: authenticated",
    ):
        assert fuzzer.answered[rejection]
    for refusal in (ops.Refusal.WORN_OUT, ops.Refusal.QUOTA):
        assert any(answer.endswith(f": {refusal.name}") for answer in fuzzer.answered)
    assert fuzzer.answered["frame: refused"] > fuzzer.answered["frame: admitted"] > 0


def test_the_monitor_installs_nothing_outside_the_configuration_whatever_it_is_asked():
    fuzzer = MonitorFuzzer(SEED).run(steps=STEPS)
    for answer in (
        "AllocateSpi: Allocated",
        "InstallInbound: Installed",
        "InstallOutbound: Installed",
        "Remove: Removed",
    ):
        assert fuzzer.answered[answer]
    for taken in ("Progress: taken", "Completed: taken", "Described: taken"):
        assert fuzzer.answered[taken]
    refused = {each.split(": ")[1] for each in fuzzer.answered if each.startswith(("Install", "AllocateSpi"))}
    every = {each.name for each in install.Denial} - {"NO_SUCH_CHILD", "UNKNOWN_SA"}
    assert every <= refused
    assert all(fuzzer.reached[event] for event in ("installed", "compressed", "moved", "migrated", "yielded"))


def trace(name, seed, hash_seed):
    command = [sys.executable, fuzz.__file__, "--which", name, "--seed", str(seed), "--steps", "800"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
    )
    return next(line.split()[-1] for line in done.stdout.splitlines() if " steps, " in line)


@pytest.mark.parametrize("name", sorted(fuzz.FUZZERS))
def test_equal_seeds_make_equal_runs_in_any_process(name):
    assert trace(name, 1, "1") == trace(name, 1, "2") != trace(name, 2, "1")


def found(fuzzer, *words):
    with pytest.raises(Finding) as caught:
        fuzzer.run(steps=STEPS_TO_FIND, seconds=SECONDS_TO_FIND)
    assert f"seed {SEED}, step {fuzzer.steps}" in str(caught.value)
    assert any(word in str(caught.value) for word in words), str(caught.value)


# positive controls: keyd


@pytest.mark.parametrize(
    ("state", "operation", "following"),
    [
        (State.KEYED_I, ops.InfoSeal, State.KEYED_I),
        (State.DEAD, ops.AuthOpen, State.AUTHENTICATED),
        (State.KEYED_I, ops.AuthOpen, State.AUTHENTICATED),
        (State.QUICK_FINISHED, ops.QuickFinish, State.QUICK_FINISHED),
        (State.QUICK_ANSWERED, ops.QuickAnswer, State.QUICK_ANSWERED),
    ],
)
def test_a_transition_too_many_is_found(monkeypatch, state, operation, following):
    monkeypatch.setitem(handles.TRANSITIONS, (state, operation), following)
    found(KeydFuzzer(SEED), "is no violation", "is answered")


def test_a_reply_with_a_key_in_it_is_found(monkeypatch):
    honest = Phase2.info_seal

    def leaky(self, request):
        reply = honest(self, request)
        sa = self._context.registry.get(request.ike)
        return dataclasses.replace(reply, ciphertext=reply.ciphertext + bytes(sa.skeyid_d))

    monkeypatch.setattr(Phase2, "info_seal", leaky)
    found(KeydFuzzer(SEED), "a reply holds a key")


@pytest.mark.parametrize(
    ("kind", "name", "broken", "words"),
    [
        (Registry, "room", lambda self, parent: None, ("quota",)),
        (Registry, "count", lambda self, entry: None, ("quota",)),
        (Entry, "advance", lambda self, operation: None, ("has become", "no violation", "has vanished")),
        (IkeSa, "wipe", lambda self: None, ("not wiped",)),
        (Keymat, "wipe", lambda self: None, ("not wiped",)),
        (Registry, "get", lambda self, handle: self._entries.get(handle), ("guessed",)),
    ],
    ids=["children", "quota", "advance", "wipe", "wipe-keymat", "guessing"],
)
def test_a_missing_step_in_keyd_is_found(monkeypatch, kind, name, broken, words):
    monkeypatch.setattr(kind, name, broken)
    found(KeydFuzzer(SEED), *words)


def test_a_forgotten_expiry_is_found(monkeypatch):
    def ageless(self, handle, kind, operation):
        entry, self._clock = self._entries.get(handle), lambda: 0.0
        if entry is not None:
            entry.expires = 1e9
        return honest(self, handle, kind, operation)

    honest = Registry.find
    monkeypatch.setattr(Registry, "find", ageless)
    found(KeydFuzzer(SEED), "after its time")


@pytest.mark.parametrize(("kind", "module"), [(KeydFuzzer, ops), (MonitorFuzzer, install)])
def test_a_codec_that_does_not_look_at_lengths_is_found(monkeypatch, kind, module):
    monkeypatch.setattr(codec, "_sized", lambda kind, bounds: codec._exactly(kind))
    name = "REQUESTS" if module is ops else "FROM_WORKER"
    numbered = {number: message for message, (number, _) in getattr(module, name)._by_type.items()}
    found(kind(SEED, codec.Table(numbered)), "out of bounds")


def test_a_codec_that_takes_true_for_one_is_found(monkeypatch):
    def any_integer(bounds):
        def decode(value):
            if not isinstance(value, int):
                raise ValueError
            return value

        return decode

    monkeypatch.setattr(codec, "_integer", any_integer)
    numbered = {number: message for message, (number, _) in install.FROM_WORKER._by_type.items()}
    table = codec.Table(numbered)
    frame = msgpack.packb([3, 1, True])
    assert not well_formed(table.decode(frame)[0])
    found(MonitorFuzzer(SEED, table), "out of bounds", "changes")


# positive controls: the monitor

BACKED_UP = {
    # AllocateSpi asks the same, and the addresses must be the allocation's
    authorize._outer_addresses,
    # nobody allocated a CPI for such a child, so that nothing would be compressed
    authorize._compression,
}


@pytest.mark.parametrize(
    "check", [each for each in authorize.CHECKS if each not in BACKED_UP], ids=lambda f: f.__name__
)
def test_a_check_that_is_left_out_is_found(monkeypatch, check):
    for name in ("CHECKS", "FORESEEABLE"):
        monkeypatch.setattr(authorize, name, tuple(each for each in getattr(authorize, name) if each is not check))
    found(MonitorFuzzer(SEED), "installed although", "more pairs", "foreign selectors")


def test_addresses_that_nobody_compares_are_found(monkeypatch):
    monkeypatch.setattr(authorize, "outer_addresses", lambda *_: authorize.PASSED)
    found(MonitorFuzzer(SEED), "address is foreign", "there is no such peer")


def test_a_policy_that_goes_with_its_pair_is_found(monkeypatch):
    honest = Service._remove

    async def thorough(self, epoch, entry, sequence):
        await self.dataplane.remove_policy(entry.pair.policy)
        await honest(self, epoch, entry, sequence)

    monkeypatch.setattr(Service, "_remove", thorough)
    found(MonitorFuzzer(SEED), "a policy is removed")


def test_keys_that_the_monitor_keeps_are_found(monkeypatch):
    monkeypatch.setattr("monitor.service._without_keys", lambda pair: pair)
    found(MonitorFuzzer(SEED), "keeps keys")
