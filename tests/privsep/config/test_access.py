"""A configuration is root's, or whose that asks: nobody else can change it or put another in its place."""

import os
import stat

import pytest

from privsep.config import access
from privsep.config.problems import ConfigError

pytestmark = pytest.mark.root
LIMIT = 100


@pytest.fixture
def file(tmp_path):
    directory = tmp_path / "etc"
    directory.mkdir(mode=0o755)
    path = directory / "file.toml"
    path.write_text("a = 1\n")
    path.chmod(0o644)
    return path


def refused(path, **how):
    with pytest.raises(ConfigError) as caught:
        access.read(str(path), LIMIT, **how)
    return [problem.text for problem in caught.value.problems]


def test_a_file_that_others_may_read_is_no_secret(file):
    assert access.read(str(file), LIMIT) == b"a = 1\n"
    assert refused(file, private=True) == [f"has mode 0644; 0600 or stricter would be right: chmod 600 {file}"]
    file.chmod(0o600)
    assert access.read(str(file), LIMIT, private=True) == b"a = 1\n"


@pytest.mark.parametrize(("mode", "right"), [(0o664, "0644"), (0o646, "0644"), (0o666, "0644"), (0o660, "0640")])
def test_a_file_that_others_may_write_is_refused_with_the_mode_that_is_right(file, mode, right):
    file.chmod(mode)
    found = f"has mode {mode:04o}, so others can change it; {right} would be right: chmod go-w {file}"
    assert refused(file) == [found]


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize(("mode", "right"), [(0o775, "0755"), (0o757, "0755"), (0o777, "0755"), (0o2770, "2750")])
def test_a_directory_that_others_may_write_is_refused_with_the_mode_that_is_right(file, mode, right, private):
    file.chmod(0o600)
    file.parent.chmod(mode)
    assert refused(file, private=private) == [
        f"is in {file.parent} of mode {mode:04o}, where others can replace it; "
        f"{right} would be right: chmod go-w {file.parent}"
    ]


def test_so_is_any_directory_above(file):
    file.parent.parent.chmod(0o777)
    assert f"is in {file.parent.parent} of mode 0777" in refused(file)[0]


def test_in_a_sticky_directory_nobody_replaces_what_is_not_his(file):
    file.parent.chmod(0o777 | stat.S_ISVTX)
    assert access.read(str(file), LIMIT) == b"a = 1\n"


def test_what_is_somebody_elses_is_refused(file):
    os.chown(file, 12345, -1)
    assert refused(file) == [f"belongs to uid 12345; root must own it: chown root {file}"]
    os.chown(file, 0, -1)
    os.chown(file.parent, 12345, -1)
    assert refused(file) == [f"is in {file.parent}, where uid 12345 can replace it; root must own that directory"]


def test_a_symbolic_link_is_followed_and_its_own_directory_counts_too(file, tmp_path):
    links = tmp_path / "links"
    links.mkdir(mode=0o755)
    (links / "to").symlink_to("../etc/file.toml")
    (links / "again").symlink_to(links / "to")
    assert access.read(str(links / "again"), LIMIT) == b"a = 1\n"
    links.chmod(0o777)
    assert f"is in {links} of mode 0777" in refused(links / "again")[0]
    links.chmod(0o755)
    file.parent.chmod(0o777)
    assert f"is in {file.parent} of mode 0777" in refused(links / "again")[0]


def test_so_does_the_directory_of_a_link_to_a_directory(file, tmp_path):
    between = tmp_path / "between"
    between.mkdir(mode=0o755)
    (between / "there").symlink_to(file.parent)
    assert access.read(str(between / "there" / "file.toml"), LIMIT) == b"a = 1\n"
    between.chmod(0o777)
    assert f"is in {between} of mode 0777" in refused(between / "there" / "file.toml")[0]


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe") == ["not a regular file; a plain file would be right"]
    assert refused(tmp_path) == ["cannot be read (Is a directory); a file of root's is needed"]
    assert refused(tmp_path / "absent") == ["cannot be read (No such file or directory); a file of root's is needed"]
    (tmp_path / "round").symlink_to("round")
    assert "cannot be read (Too many levels of symbolic links)" in refused(tmp_path / "round")[0]


def test_no_more_than_the_limit_and_one_octet_is_read(file):
    file.write_bytes(bytes(LIMIT * 2))
    assert len(access.read(str(file), LIMIT)) == LIMIT + 1
