"""RUN_DIR: the control socket, an empty root for every child, and the place where keyd and the worker meet.

Everything here is done by descriptor, without following a link: what others prepared is refused, not taken over.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path

from privsep.config.model import Users
from privsep.errors import OperatorError

_OTHERS_MAY_WRITE = 0o022


class Directories:
    """Paths; `prepare` makes what is below `run_dir`."""

    def __init__(self, run_dir: str) -> None:
        """OperatorError unless RUN_DIR is, or can be made, a directory that root alone writes to."""
        self.run_dir = Path(run_dir).absolute()
        self.root = self.run_dir / "empty"
        self.meeting = self.run_dir / "keyd"
        os.close(_own(self.run_dir, 0o755, 0))

    def prepare(self, users: Users) -> None:
        """The rest, once it is certain that no other instance runs here."""
        keyd_uid, _ = users.keyd
        _, worker_gid = users.worker
        os.close(_own(self.root, 0o555, 0))
        meeting = _own(self.meeting, 0o711, 0, keyd_uid)
        try:
            for leftover in os.listdir(meeting):
                os.unlink(leftover, dir_fd=meeting)
            # keyd makes its socket here, mode 0660; set-group-id hands it to the worker's group. Search is for all,
            # since the children enter as root without CAP_DAC_OVERRIDE
            os.fchown(meeting, keyd_uid, worker_gid)
            os.fchmod(meeting, 0o2711)
        except OSError as error:
            raise refused(self.meeting, error) from error
        finally:
            os.close(meeting)


def refused(path: Path, error: OSError) -> OperatorError:
    """Why something in RUN_DIR cannot be had, and what would be right."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            right = "make room there (`df` shows octets, `df -i` inodes), or name another --run-dir"
        case _:
            right = "--run-dir must be a directory of root's, in which root may write"
    return OperatorError(f"{path}: {error.strerror or error}; {right}")


def _own(path: Path, mode: int, *owners: int) -> int:
    """A descriptor of the directory, made if need be; OperatorError if it is a link, another's, or open to others."""
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, mode)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise refused(path, error) from error
    status = os.fstat(fd)
    if status.st_uid not in owners or stat.S_IMODE(status.st_mode) & _OTHERS_MAY_WRITE:
        os.close(fd)
        raise OperatorError(
            f"{path}: belongs to uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}; "
            "--run-dir must be root's, and nobody else may write to it"
        )
    os.fchmod(fd, mode)
    return fd
