"""RUN_DIR: what somebody else prepared there is refused, never taken over."""

import os
import subprocess
import sys

import pytest

from monitor.directories import Directories
from privsep.config.model import Users
from privsep.errors import OperatorError

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="root is missing: ownership is the point"),
]
USERS = Users(worker=(62001, 62101), keyd=(62002, 62102), userspace=(62003, 62103))
STRANGER = 65534


def test_everything_is_made_with_its_owner_and_mode(tmp_path):
    made = Directories(str(tmp_path / "run"))
    made.prepare(USERS)
    modes = {path.name: path.stat().st_mode & 0o7777 for path in (made.run_dir, made.root, made.meeting)}
    assert modes == {"run": 0o755, "empty": 0o555, "keyd": 0o2711}
    assert (made.meeting.stat().st_uid, made.meeting.stat().st_gid) == (62002, 62101)


def test_leftovers_of_an_earlier_instance_go(tmp_path):
    made = Directories(str(tmp_path / "run"))
    made.prepare(USERS)
    (made.meeting / "keyd.sock").touch()
    Directories(str(tmp_path / "run")).prepare(USERS)
    assert list(made.meeting.iterdir()) == []


def test_a_link_in_place_of_our_directory_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").touch()
    made = Directories(str(tmp_path / "run"))
    made.meeting.symlink_to(victim)
    with pytest.raises(OperatorError, match="must be a directory of root's"):
        made.prepare(USERS)
    assert (victim / "precious").exists()
    assert victim.stat().st_uid == 0


@pytest.mark.parametrize("inodes", [1, 2, 3, 4, 5])
def test_a_file_system_without_inodes_is_told_as_that(tmp_path, inodes):
    """Whichever of the directories, the lock and the socket is the first that does not fit."""
    script = f"""
import os, sys
from pathlib import Path
from monitor import control
from monitor.directories import Directories
from privsep.config.model import Users
from privsep.errors import OperatorError
try:
    made = Directories({str(tmp_path)!r} + "/run")
    control.listen(made.run_dir)
    made.prepare(Users(worker=(62001, 62101), keyd=(62002, 62102), userspace=(62003, 62103)))
except OperatorError as error:
    print(error)
"""
    mount = f"mount -t tmpfs -o nr_inodes={inodes},mode=755 none {tmp_path}"
    words = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert "No space left on device; make room there (`df` shows octets, `df -i` inodes)" in done.stdout, done.stderr


@pytest.mark.parametrize(("owner", "mode"), [(STRANGER, 0o755), (0, 0o777), (0, 0o775)])
def test_a_run_dir_of_anothers_or_open_to_others_is_refused(tmp_path, owner, mode):
    run = tmp_path / "run"
    run.mkdir()
    os.chown(run, owner, owner)
    run.chmod(mode)
    with pytest.raises(OperatorError, match="nobody else may write"):
        Directories(str(run))
