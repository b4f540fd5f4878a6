"""What is released: the same octets each time, all that belongs to it, and versions that are as the locks say."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from pip._vendor.packaging.requirements import Requirement

HOUSE = Path(__file__).parents[2]
PROJECT = tomllib.loads((HOUSE / "pyproject.toml").read_text())
PINNED = re.compile(r"^([A-Za-z0-9_.-]+)==(\S+)", re.MULTILINE)


def locked(name):
    """Versions by package; each has a hash."""
    text = (HOUSE / name).read_text()
    blocks = re.split(r"\n(?=\S)", re.sub(r"(?m)^\s*#.*\n", "", text).strip())
    assert all("--hash=sha256:" in block for block in blocks)
    return dict(PINNED.findall(text))


BUILD, RUN, DEV = (locked(f"requirements{kind}.lock") for kind in ("-build", "", "-dev"))


@pytest.mark.parametrize(
    ("lock", "requirements"),
    [
        (RUN, PROJECT["project"]["dependencies"]),
        (DEV, PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["dev"]),
        (BUILD, PROJECT["build-system"]["requires"]),
    ],
)
def test_what_is_locked_is_what_the_project_asks_for(lock, requirements):
    for each in map(Requirement, requirements):
        assert lock[each.name] in each.specifier, each


def test_what_is_tested_with_is_what_is_installed():
    assert {name: DEV[name] for name in RUN} == RUN


needs_setuptools = pytest.mark.skipif(
    version("setuptools") != BUILD["setuptools"], reason="setuptools is not the locked one, which `make setup` installs"
)
needs_git = pytest.mark.skipif(not (HOUSE / ".git").exists(), reason="no repository here")


@needs_git
@needs_setuptools
def test_two_builds_are_the_same_octets_and_have_everything(tmp_path):
    """Also as somebody else, at another time, in another time zone."""
    changes = ({}, {"umask": 0o077, "env": {**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7"}})
    digests = []
    for number, change in enumerate(changes):
        built = subprocess.run(
            [sys.executable, str(HOUSE / ".ci" / "dist"), str(tmp_path / str(number))],
            capture_output=True,
            text=True,
            check=True,
            **change,
        )
        digests.append([line.split()[0] for line in built.stdout.splitlines()])
    assert len(digests[0]) == 2
    assert digests[0] == digests[1]

    (sdist,) = (tmp_path / "0").glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        inside = {member.name.partition("/")[2] for member in tar.getmembers() if member.isreg()}
    tracked = subprocess.run(["git", "ls-files"], cwd=HOUSE, capture_output=True, text=True, check=True).stdout.split()
    assert set(tracked) - {".gitignore"} - inside == set()
