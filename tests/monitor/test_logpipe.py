"""What a captured child can and cannot do to the log."""

import os

import pytest

from monitor import logpipe as logpipe_module
from monitor.logpipe import LINES_PER_SECOND, MAX_LINE, LogPipe
from privsep.log import Level
from privsep.rate import TELL_SECONDS


@pytest.fixture
def child(loop):
    class Child:
        def __init__(self):
            reader, self.fd = os.pipe()
            os.set_blocking(self.fd, False)
            self.lines = []
            self.records = []
            self.pipe = LogPipe(reader, loop, "worker", self._write)

        def _write(self, line, record):
            self.lines.append(line)
            self.records += [record] if record else []

        def say(self, data):
            os.write(self.fd, data)
            return self

        def end(self):
            os.close(self.fd)
            self.fd = -1

    child = Child()
    yield child
    child.pipe.close()
    if child.fd >= 0:
        child.end()


def test_lines_come_out_with_the_process_in_front(child, loop):
    child.say(b"notice up\nnotice down\n")
    loop.until(lambda: len(child.lines) == 2)
    assert child.lines == ["worker: notice up", "worker: notice down"]


def test_a_line_in_pieces_is_one_line(child, loop):
    child.say(b"one ")
    loop.during(0.02)
    child.say(b"line\n")
    loop.until(lambda: child.lines)
    assert child.lines == ["worker: one line"]


@pytest.mark.parametrize(
    ("said", "written"),
    [
        (b"x\rkeyd: error y", "worker: x\\x0dkeyd: error y"),
        (b"\x1b]0;owned\x07\x1b[2J", "worker: \\x1b]0;owned\\x07\\x1b[2J"),
        (b"\xe2\x80\xa8\x00\x7f", "worker: \\xe2\\x80\\xa8\\x00\\x7f"),
    ],
)
def test_whatever_is_not_printable_is_escaped(child, loop, said, written):
    child.say(said + b"\n")
    loop.until(lambda: child.lines)
    assert child.lines == [written]


def test_no_line_passes_for_another_processs(child, loop):
    child.say(b"monitor: error all is lost\n\n\nkeyd: error too\n")
    loop.until(lambda: len(child.lines) == 2)
    assert all(line.startswith("worker: ") for line in child.lines)


def test_a_long_line_is_cut_and_the_next_one_is_whole(child, loop):
    child.say(b"x" * (MAX_LINE + 5000) + b"\nnext\n")
    loop.until(lambda: len(child.lines) == 2)
    assert child.lines == ["worker: " + "x" * MAX_LINE + "... (5000 octets more)", "worker: next"]


def test_a_flood_is_dropped_and_counted(child, loop, monkeypatch):
    times = [100.0]
    for clock, name in ((loop, "now"), *((budget, "_now") for budget in child.pipe._lines.values())):
        monkeypatch.setattr(clock, name, lambda: times[-1])
    child.say(b"flood\n" * 800)
    child.pipe._readable()
    assert len(child.lines) == LINES_PER_SECOND
    times.append(101.0)
    child.say(b"after\n")
    child.pipe._readable()
    child.pipe._readable()
    assert child.lines[-1] == "worker: after"
    times.append(100.0 + TELL_SECONDS)
    loop._run_timers()
    assert child.lines[-1] == f"worker: ({(4096 // 6) - LINES_PER_SECOND} lines dropped)"


def test_many_notices_hide_no_warning_and_are_counted(child, loop, monkeypatch):
    monkeypatch.setattr(child.pipe._lines[Level.NOTICE], "_now", lambda: 100.0)
    notices = b"".join(b"notice removed n=%d\n" % number for number in range(LINES_PER_SECOND))
    child.say(notices)
    loop.until(lambda: len(child.lines) == LINES_PER_SECOND)
    child.say(b"notice removed n=last\nwarning denied\n")
    loop.until(lambda: len(child.lines) == LINES_PER_SECOND + 1)
    assert child.lines[-1] == "worker: warning denied"
    child.end()
    loop.until(lambda: len(child.lines) == LINES_PER_SECOND + 2)
    assert child.lines[-1].startswith("worker: notice left-out lines=1 ")
    assert (child.records[-1].code, child.records[-1].fields["lines"]) == ("left-out", "1")


def test_what_is_an_event_is_given_on_as_one(child, loop):
    child.say(b'notice ike-closed connection=paris reason="the peer \\"deleted\\" it"\nTraceback\n')
    loop.until(lambda: len(child.lines) == 2)
    (record,) = child.records
    assert (record.level, record.code) == (Level.NOTICE, "ike-closed")
    assert record.fields == {"connection": "paris", "reason": 'the peer "deleted" it'}


def test_what_was_cut_is_no_event(child, loop):
    child.say(b"notice ike-closed reason=" + b"x" * MAX_LINE + b"\n")
    loop.until(lambda: child.lines)
    assert child.records == []


def test_a_child_that_writes_without_end_does_not_keep_the_loop(child, loop, monkeypatch):
    monkeypatch.setattr(logpipe_module, "READS_PER_SECOND", 3)
    child.pipe._reads._limit = 3
    reads = []
    monkeypatch.setattr(os, "read", lambda fd, size: reads.append(size) or b"x" * size)
    child.say(b"x")
    loop.during(0.2)
    assert len(reads) <= 6


def test_the_last_words_of_a_dead_child_are_written(child, loop):
    child.say(b"Traceback: no newline at the end")
    child.end()
    loop.until(lambda: child.lines)
    assert child.lines == ["worker: Traceback: no newline at the end"]


def test_close_reads_what_is_left_and_may_be_repeated(child):
    child.say(b"last\nwords")
    child.pipe.close()
    child.pipe.close()
    assert child.lines == ["worker: last", "worker: words"]


def test_the_last_words_of_a_child_that_has_ended_are_read_when_the_pipe_is_closed(child):
    child.say(b"last words\n").end()
    child.pipe.close()
    assert child.lines == ["worker: last words"]
