"""`python -m keyd.selftest`: passes on published answers, fails on any other, and on nothing."""

import hashlib
import hmac
import re

import pytest

from keyd import selftest, vectors


def dsa_case() -> str:
    """A case of the signature variant, computed here from the RFC's formulas."""
    ni, nr, g_xy, cky = b"n" * 8, b"r" * 8, b"g" * 32, b"i" * 8 + b"c" * 8

    def prf(key: bytes, message: bytes) -> bytes:
        return hmac.new(key, message, hashlib.sha256).digest()

    skeyid = prf(ni + nr, g_xy)
    d = prf(skeyid, g_xy + cky + b"\0")
    a = prf(skeyid, d + g_xy + cky + b"\1")
    e = prf(skeyid, a + g_xy + cky + b"\2")
    lines = ["# CAVS 17.3", "[g^xy length = 256]", "[SHA-256]", "[Ni length = 64]", "", "COUNT = 0"]
    values = {"CKY_I": cky[:8], "CKY_R": cky[8:], "Ni": ni, "Nr": nr, "g^xy": g_xy}
    values |= {"SKEYID": skeyid, "SKEYID_d": d, "SKEYID_a": a, "SKEYID_e": e}
    return "\n".join(lines + [f"{name} = {value.hex()}" for name, value in values.items()]) + "\n"


def run(capsys, *arguments: str) -> tuple[int, str]:
    status = selftest.main(list(arguments))
    return status, capsys.readouterr().out


def test_embedded_answers_all_come_out(capsys):
    status, out = run(capsys)
    assert status == 0
    assert re.fullmatch(r"(ok    .+\n){20}20 passed, 0 failed\n", out)


def test_a_cavs_file_of_pre_shared_keys_passes(tmp_path, capsys):
    file = tmp_path / "cavs.txt"
    file.write_text(vectors.CAVS)
    assert run(capsys, "--cavs", str(file)) == (0, "4 passed, 0 failed\n")


def test_a_cavs_file_of_signatures_passes(tmp_path, capsys):
    file = tmp_path / "cavs.txt"
    file.write_text(dsa_case() * 2)
    assert run(capsys, "--cavs", str(file)) == (0, "2 passed, 0 failed\n")


@pytest.mark.parametrize("name", ["SKEYID", "SKEYID_d", "SKEYID_a", "SKEYID_e", "Ni", "CKY_R", "g^xy"])
def test_one_wrong_digit_fails(tmp_path, capsys, name):
    def flip(match: re.Match) -> str:
        return match[1] + ("0" if match[2] != "0" else "1")

    text = re.sub(rf"(?m)^({re.escape(name)} = )([0-9a-f])", flip, dsa_case(), count=1)
    file = tmp_path / "cavs.txt"
    file.write_text(text)
    assert run(capsys, "--cavs", str(file)) == (1, "FAIL  SHA-256 case 0\n0 passed, 1 failed\n")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "[SHA-256]\nCOUNT = 0\nNi = 00\n",
        dsa_case().replace("[SHA-256]", "[SHA-224]"),
        dsa_case().replace("[SHA-256]", ""),
        dsa_case() + "COUNT = 1\nNi = xyz\n",
        "some text\n",
    ],
)
def test_a_file_without_one_whole_case_fails(tmp_path, capsys, text):
    file = tmp_path / "cavs.txt"
    file.write_text(text)
    assert selftest.main(["--cavs", str(file)]) == 1


def test_a_file_that_is_not_there_fails(tmp_path, capsys):
    assert selftest.main(["--cavs", str(tmp_path / "absent")]) == 1
    assert "absent" in capsys.readouterr().err
