"""Secrets that stand in what we ship, or in its documentation, are refused; `genpsk` makes better ones."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from keyd.credentials import MIN_STRENGTH, Credentials, strength
from keyd.genpsk import LENGTH, generate
from keyd.samples import is_known
from keyd.secret import Secret
from privsep.config.problems import ConfigError

HOUSE = Path(__file__).parents[2]
SHIPPED = [*HOUSE.glob("*.md"), *(HOUSE / "docs").iterdir(), *(HOUSE / "etc").iterdir()]
SAMPLE = re.compile(r"""^\W*(?:secret|passphrase)\s*=\s*(?P<quote>["'])(?P<secret>.*?)(?P=quote)""", re.MULTILINE)


def samples():
    return sorted({found["secret"] for file in SHIPPED for found in SAMPLE.finditer(file.read_text())})


def test_there_are_samples_where_they_are_looked_for():
    assert {"a long random passphrase", "REPLACE ME by the output of: privsep-ike genpsk"} <= set(samples())


@pytest.mark.parametrize(
    "text",
    [
        *samples(),
        "REPLACE ME by the output of: openssl rand -base64 24",
        " replace me",
        "A Long Random Passphrase",
        "hex:" + b"a long random passphrase".hex(),
    ],
)
def test_a_secret_that_stands_in_what_we_ship_is_refused_by_name(build, text):
    with pytest.raises(ConfigError) as caught:
        Credentials.parse(f'[[psk]]\nconnection = "paris"\nsecret = "{text}"\n', "s", build.gateway(build.connection()))
    assert str(caught.value) == (
        "s:3: secret: a sample's, which everybody knows; one of your own would be right: privsep-ike genpsk"
    )


def test_a_secret_of_ones_own_is_none_of_them():
    assert not is_known(b"a long random passphrase of mine")


def test_genpsk_prints_a_secret_of_128_bits_and_more_that_is_nobodys_and_that_every_daemon_takes_as_text():
    done = subprocess.run(
        [sys.executable, "-I", "-m", "privsep", "genpsk"], capture_output=True, text=True, check=True, timeout=60
    )
    made = [done.stdout.removesuffix("\n"), *(generate() for _ in range(200))]
    assert len(set(made)) == len(made)
    for each in made:
        # a first 0x or 0s would be hexadecimal or base64 to strongSwan and libreswan
        assert re.fullmatch(rf"[A-Za-z][A-Za-z0-9]{{{LENGTH - 1}}}", each)
        assert strength(Secret(each.encode())) >= MIN_STRENGTH
