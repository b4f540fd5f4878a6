"""What is written down for a successor: what it finds, what it does not believe, what a full disk costs."""

import os
from dataclasses import replace

import pytest

from monitor import journal as journal_module
from monitor.dataplane import Cpis
from monitor.journal import RECORDS, Ended, Journal, Opened, OptionsRecord, PairRecord, PolicyRecord
from privsep.algorithms import ChildSuite
from privsep.config.lanes import UNSAID, KernelOptions, Lane, Mark
from privsep.iana import ProtocolId
from privsep.types import Mode


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def opened(path, clock):
    """A journal over the file, as many as there are calls; its log."""
    logged = []

    def make():
        return Journal(path, clock, lambda level, code, **fields: logged.append(code))

    make.logged = logged
    return make


@pytest.fixture
def records(kit):
    """A policy and a pair under it."""
    ends = {"local": kit.endpoint("192.0.2.1"), "remote": kit.endpoint("192.0.2.2")}
    traffic = {
        "local_ts": kit.selectors("10.1.0.0/16"),
        "remote_ts": kit.selectors("10.2.0.0/16"),
        "kernel": OptionsRecord.of(UNSAID),
    }
    policy = PolicyRecord(
        connection="paris",
        child="lan",
        number=1,
        protocol=ProtocolId.ESP,
        mode=Mode.TUNNEL,
        ipcomp=False,
        **ends,
        **traffic,
    )
    pair = PairRecord(
        connection="paris",
        child="lan",
        identity=kit.identity("gw2.example.org"),
        suite=ChildSuite.parse("aes256gcm16-modp2048"),
        policy=1,
        mode=Mode.TUNNEL,
        spi_in=0x1000,
        spi_out=0x2000,
        encap=False,
        since_ms=1000_000,
        lifetime=3600,
        cpi_in=None,
        cpi_out=None,
        **ends,
        **traffic | {side: traffic[side][0] for side in ("local_ts", "remote_ts")},
    )
    return policy, pair


def everything(journal):
    return journal.of(PolicyRecord) + journal.of(PairRecord)


@pytest.mark.parametrize(
    "options",
    [
        UNSAID,
        KernelOptions(
            lane=Lane(mark_in=Mark(1, 0xFF), mark_out=Mark(2), if_id_in=3, if_id_out=4),
            interface="ipsec0",
            priority=5,
            reqid=65536,
            life_bytes=1 << 40,
            life_packets=1 << 33,
        ),
    ],
)
def test_what_only_the_kernel_knows_is_written_down_whole(opened, records, options):
    policy, _ = records
    opened().add(replace(policy, kernel=OptionsRecord.of(options)))
    (found,) = opened().of(PolicyRecord)
    assert found.kernel.options() == options


def test_compression_is_written_down_with_policies_and_pairs(opened, records):
    policy, pair = records
    assert pair.cpis is None
    journal = opened()
    journal.add(replace(policy, ipcomp=True))
    journal.add(replace(pair, cpi_in=0x400, cpi_out=61439))
    ((found_policy,), (found,)) = opened().of(PolicyRecord), opened().of(PairRecord)
    assert found_policy == replace(policy, ipcomp=True)
    assert found.cpis == Cpis(inbound=0x400, outbound=61439)


@pytest.mark.parametrize("half", [{"cpi_in": 0x400}, {"cpi_out": 0x400}])
def test_half_a_compression_is_none(records, half):
    assert replace(records[1], **half).cpis is None


def test_of_two_records_of_a_pair_the_one_said_last_ends_with_it(opened, records, kit):
    _, pair = records
    moved = replace(pair, remote=kit.endpoint("192.0.2.2", 40001))
    journal = opened()
    journal.add(pair)
    journal.add(moved)
    assert opened().of(PairRecord) == (pair, moved)
    assert journal.pair(pair.spi_in) == moved
    journal.end(moved)
    journal.add(pair)
    assert journal.pair(pair.spi_in) == pair
    journal.end_pair(pair.spi_in)
    assert opened().of(PairRecord) == ()


def test_a_successor_finds_what_is_in_force_and_nothing_else(opened, records):
    policy, pair = records
    first = opened()
    for number in range(5):
        first.add(replace(pair, spi_in=0x1000 + number))
    first.add(policy)
    first.end_pair(0x1001)
    first.end(replace(pair, spi_in=0x1003))
    first.end(replace(pair, spi_in=0x9999))
    second = opened()
    assert [record.spi_in for record in second.of(PairRecord)] == [0x1000, 0x1002, 0x1004]
    assert second.of(PolicyRecord) == (policy,)
    second.end_pair(0x1002)
    third = opened()
    assert [record.spi_in for record in third.of(PairRecord)] == [0x1000, 0x1004]
    assert (third.problem, opened.logged) == (None, [])


def test_a_record_that_is_in_force_is_not_written_twice(opened, path, records):
    opened().add(records[0])
    size = path.stat().st_size
    opened().add(records[0])
    assert path.stat().st_size == size


def test_the_file_is_for_its_owner_alone_and_holds_no_key(opened, path, kit, records):
    journal = opened()
    for record in records:
        journal.add(record)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not {name for name in PairRecord.__slots__ if "key" in name or "encryption" in name or "integrity" in name}
    assert kit.key not in path.read_bytes()


def test_a_file_that_is_mostly_history_is_written_anew_and_stays_bounded(opened, path, records, monkeypatch):
    monkeypatch.setattr(journal_module, "SLACK", 4096)
    journal = opened()
    journal.add(records[0])
    sizes = []
    for number in range(500):
        spi = 0x1000 + number
        journal.add(replace(records[1], spi_in=spi))
        journal.end_pair(spi)
        sizes.append(path.stat().st_size)
    assert max(sizes) < 3 * 4096
    assert everything(opened()) == (records[0],)
    assert [each.name for each in path.parent.iterdir()] == ["journal"]


def test_a_file_that_ends_anywhere_yields_the_records_before(opened, path, records):
    journal = opened()
    ends = [0]
    for record in records:
        journal.add(record)
        ends.append(path.stat().st_size)
    whole = path.read_bytes()
    for kept in range(len(whole) + 1):
        path.write_bytes(whole[:kept])
        found = opened()
        complete = sum(kept >= end for end in ends[1:])
        assert everything(found) == records[:complete]
        assert (found.problem is None) == (kept in (0, len(frames((Opened.here(), 0))), *ends))
        found.add(replace(records[1], spi_in=0x7777))
        assert len(everything(opened())) == complete + 1


FOREIGN = [Opened(boot="another", network=1), replace(Opened.here(), network=1), replace(Opened.here(), boot="another")]


@pytest.mark.parametrize("other", FOREIGN)
def test_another_boot_or_network_namespace_is_not_believed(opened, path, records, monkeypatch, other):
    with monkeypatch.context() as there:
        there.setattr(Opened, "here", classmethod(lambda cls: other))
        opened().add(records[1])
        assert everything(opened()) == (records[1],)
    found = opened()
    assert everything(found) == ()
    assert "another boot" in found.problem
    found.add(records[0])
    assert everything(opened()) == (records[0],)


def frames(*messages):
    """A file of these messages with their numbers."""
    encoded = [RECORDS.encode(message, number) for message, number in messages]
    return b"".join(len(frame).to_bytes(4) + frame for frame in encoded)


def test_impossible_histories_end_belief_at_their_first_impossibility(opened, path, records):
    policy, pair = records
    begin = (Opened.here(), 0)
    for tail, reason in (
        ([(pair, 1)], "twice, or out of order"),
        ([(policy, 2)], "twice, or out of order"),
        ([(Ended(), 9)], "not in force"),
        ([(Ended(), 1), (Ended(), 1)], "not in force"),
        ([(Opened.here(), 0)], "begins twice"),
    ):
        path.write_bytes(frames(begin, (policy, 1), *tail))
        path.chmod(0o600)
        assert reason in opened().problem
    path.write_bytes(frames(begin, (policy, 1)) + b"\0\0\0\3\xc1\xc1\xc1" + frames((pair, 2)))
    found = opened()
    assert found.problem is not None
    assert everything(found) == (policy,)


@pytest.mark.parametrize("spoil", ["mode", "link", "directory", "length"])
def test_a_file_that_is_not_ours_alone_is_not_read(opened, path, records, spoil, monkeypatch):
    opened().add(records[0])
    assert everything(opened()) == (records[0],)
    match spoil:
        case "mode":
            path.chmod(0o640)
        case "link":
            path.rename(path.with_name("real"))
            path.symlink_to("real")
        case "directory":
            path.unlink()
            path.mkdir()
        case "length":
            monkeypatch.setattr(journal_module, "MAX_OCTETS", 10)
    found = opened()
    assert found.problem is not None
    assert everything(found) == ()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_file_of_somebody_else_is_not_read(opened, path, records):
    opened().add(records[0])
    os.chown(path, 1, -1)
    assert "root's alone" in opened().problem


def test_a_full_disk_is_told_once_and_made_good_when_there_is_room(opened, path, records, clock, monkeypatch):
    journal = opened()
    journal.add(records[0])

    def full(fd, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as there:
        there.setattr(journal_module.os, "write", full)
        for number in range(50):
            journal.add(replace(records[1], spi_in=0x1000 + number))
            clock.advance(1.0)
        assert everything(opened()) == (records[0],)
    assert opened.logged == ["journal-unwritten"]
    clock.advance(journal_module.RETRY_SECONDS)
    assert opened.logged == ["journal-unwritten", "journal-written-again"]
    assert len(everything(opened())) == 51


def test_a_record_that_was_cut_off_by_a_full_disk_spoils_nothing(opened, path, records, clock, monkeypatch):
    journal = opened()
    journal.add(records[0])
    write = os.write
    room = [10]

    def nearly_full(fd, data):
        if not room:
            raise OSError(28, "No space left on device")
        return write(fd, data[: room.pop()])

    with monkeypatch.context() as there:
        there.setattr(journal_module.os, "write", nearly_full)
        journal.add(records[1])
    assert everything(opened()) == (records[0],)
    clock.advance(journal_module.RETRY_SECONDS)
    assert everything(opened()) == records


def test_a_clean_end_leaves_no_file(opened, path, records, clock):
    journal = opened()
    journal.add(records[0])
    journal.remove()
    journal.add(records[1])
    assert list(path.parent.iterdir()) == []


def test_without_a_path_nothing_is_written(tmp_path, clock, records):
    journal = Journal(None, clock, lambda level, code, **fields: None)
    for record in records:
        journal.add(record)
    assert everything(journal) == records
    assert list(tmp_path.iterdir()) == []
