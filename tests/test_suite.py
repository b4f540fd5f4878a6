"""The suite itself: which tests a command runs, and what they may count on."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import mutate
import pytest

ROOT = Path(__file__).parents[1]


def pytest_of(*words: str, before: str = "", **environment: str) -> str:
    """What a run of these tests prints."""
    script = f'{before}exec "$0" -m pytest -p no:cacheprovider "$@"'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, *words],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.stdout + done.stderr


def test_each_directory_whose_tests_start_daemons_is_a_tier_that_make_test_leaves_out():
    fast = re.search(r"^test:.*\n\t.*-m \"not \((.*)\)\"$", (ROOT / "Makefile").read_text(), re.M)[1].split(" or ")
    starting = {
        file.relative_to(ROOT / "tests").parts[0]
        for file in (ROOT / "tests").rglob("*.py")
        if re.search(r"^from (lab import .*(Ours|Network|made)|world|counterpart import)\b", file.read_text(), re.M)
    }
    assert starting - {"shared", "bench"} == set(fast)
    for tier in fast:
        assert f"tests/{tier}" in (ROOT / "Makefile").read_text()
        marked = pytest_of("--collect-only", "-q", "-m", tier, "tests/privsep/test_rate.py", f"tests/{tier}")
        files = set(re.findall(r"^tests/(\w+)/", marked, re.M))
        assert files == {tier}, marked[-2000:]


def test_what_kernel_seconds_leave_out_is_named_and_counted():
    printed = pytest_of("tests/kernel/test_cases.py", "tests/kernel/test_traps.py", KERNEL_SECONDS="0")
    assert re.search(r"left out, 0 s being over =+\s+test_cases: \d+\ntest_traps: \d+\n", printed), printed
    assert re.search(r"^=+ \d+ skipped in ", printed, re.M), printed


def test_children_of_tests_can_be_interrupted_where_a_shell_started_them_in_the_background():
    """POSIX, 2.11: SIGINT is ignored there, and ignored signals are inherited."""
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    printed = pytest_of(
        "tests/privsep/cli/test_commands.py", "-k", "until_interrupted", "--timeout=60", before="trap '' INT; "
    )
    assert "1 passed" in printed, printed


def test_each_class_of_vulnerabilities_has_its_line_and_each_test_that_is_named_there_exists():
    lines = re.findall(r"^\| (\d+) \| (.+?) \| (.+) \|$", (ROOT / "docs/vulnerabilities.md").read_text(), re.M)
    assert [int(number) for number, _, _ in lines] == list(range(1, 45))
    for number, _, tests in lines:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
        assert named, number
        for file, name in named:
            assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(), re.M), f"class {number}: {name}"


SURVIVED_ONCE = {
    "worker/ikev1/main_mode.py": ["_from_peer does nothing"],
    "worker/moving.py": ["the condition never holds: not connection.describes("],
    "worker/exchange.py": ["linger does nothing"],
    "monitor/authorize.py": ["the bound moves: (len(encryption), len(integrity))"],
    "keyd/groups/modp.py": ["a quarter of: GROUP_2_EXPONENT_BITS"],
    "privsep/schema/codec.py": ["without max_array_len", "the condition never holds: len(frame) > MAX_FRAME"],
    "privsep/isakmp/identification.py": ["the condition never holds: len(payload.data) != _WIDTHS[kind]"],
    "monitor/sockets.py": ["the call is dropped: bypass(sock)"],
}
"""Mutants that no test noticed when somebody made them by hand."""


@pytest.mark.parametrize("file", SURVIVED_ONCE)
def test_make_mutants_makes_those_that_once_survived(file):
    assert file in mutate.TARGETS
    made = [mutant.what for mutant in mutate.mutants((ROOT / file).read_text())]
    for what in SURVIVED_ONCE[file]:
        assert any(each.startswith(what) for each in made), what
