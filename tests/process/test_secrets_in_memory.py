"""The promise, looked for: secrets of running sessions, searched in the memory of every live process.

The peer is an initiator inside this test, which so knows what both ends know: RFC 2409 section 5's SKEYID, SKEYID_d, _a
and _e, both g^xy, appendix B's cipher key, section 5.5's KEYMAT. One session is established; another is held after
message 4, where our daemon has derived everything and nobody has authenticated yet.
"""

import secrets

import pytest
from lab import LEFT, LEFT_HOST, RIGHT, RIGHT_HOST
from load import Load
from memory import open_session, recorded, search, turn

pytestmark = [pytest.mark.root, pytest.mark.filterwarnings("ignore:Diffie-Hellman over finite fields")]

HEADER_FLAGS, ENCRYPTED = 19, 1
"""RFC 2408 section 3.1: offset of the flags, and the bit of what is encrypted."""

SUITES = [("aes256-sha256-modp2048", "aes256gcm16-modp2048"), ("aes128-sha1-curve25519", "aes128-sha256-curve25519")]


class Silenced:
    """The initiator's socket, which loses every encrypted message: phase 1 stops after message 4."""

    def __init__(self, sock) -> None:
        self._sock = sock

    def send(self, data: bytes) -> None:
        if not data[HEADER_FLAGS] & ENCRYPTED:
            self._sock.send(data)

    def __getattr__(self, name: str):
        return getattr(self._sock, name)


def hold_session(load: Load) -> dict[str, bytes]:
    """The secrets of an IKE SA whose keys both ends have derived and whose initiator then falls silent."""
    with recorded() as found:
        load._socket = Silenced(load._socket)
        load.open()
        turn(load, lambda: found)
    return found


@pytest.mark.parametrize(("ike", "esp"), SUITES)
def test_the_worker_s_memory_holds_no_secret_of_a_running_session(network, ours, ike, esp):
    psk, marker = secrets.token_hex(20), f"c{secrets.token_hex(12)}"
    ours.configure(ike, esp, psk=psk)
    # every process knows the connection's name: a search that does not find it has not looked
    ours.config.write_text(ours.config.read_text().replace("connection.peer", f"connection.{marker}"))
    ours.launch()
    inside = {"local": RIGHT, "remote": LEFT, "inner": RIGHT_HOST, "other": LEFT_HOST}
    load = network.right.enter(lambda: Load(**inside, ike=ike, esp=esp, psk=psk))
    try:
        running, held = open_session(load), hold_session(load)
    finally:
        load.close()
    (sa,) = (sa for sa in ours.status()["ike_sas"] if sa["state"] == "established")
    cookies = {"cookies": b"".join(bytes.fromhex(cookie[2:]) for cookie in sa["cookies"])}
    esp_keys = {name: octets for name, octets in running.items() if name.startswith("KEYMAT")}
    ike_keys = {"PSK": psk.encode()} | {name: octets for name, octets in running.items() if name not in esp_keys}
    ike_keys |= {f"{name} of the held session": octets for name, octets in held.items()}
    assert len(ike_keys) == 1 + 7 + 6
    assert len(esp_keys) == (2 if "gcm" in esp else 4)
    name = {"the marker": marker.encode()}
    found = {
        process: search(pid, process, ike_keys | esp_keys | cookies | name) for process, pid in ours.processes().items()
    }

    assert found["worker"] == {"the marker", "cookies"}
    assert found["monitor"] & ike_keys.keys() == set()
    assert "the marker" in found["monitor"]
    # of an integrity key OpenSSL keeps what it derives from it; the octets themselves may be there or not
    assert {name for name in esp_keys if name.endswith("cipher")} <= found["userspace"] <= esp_keys.keys()
    # keyd holds what it still needs: SKEYID_e as the cipher's key (appendix B), SKEYID until both have authenticated
    assert found["keyd"] >= {"the marker", "PSK", "SKEYID_d", "SKEYID_a", "the cipher's key"}
    assert found["keyd"] >= {f"{each} of the held session" for each in ("SKEYID", "SKEYID_d", "SKEYID_a")}
